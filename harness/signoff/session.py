"""A sign-off from beginning to end: every candidate measured in turn, concluded, reported, sealed into a package."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePath

import msgspec

from harness.artifacts import describe
from harness.backend import Backend, load_backends
from harness.checkpoint import find_checkpoint, sha256_text
from harness.errors import UsageError
from harness.golden import MANIFEST as GOLDEN_MANIFEST
from harness.golden import golden_roots, open_golden
from harness.journal import journal_of
from harness.policy import read_policy
from harness.prompts import read_suite
from harness.record import RunRecord, read_record
from harness.run import Settings
from harness.signoff.candidates import Candidate, Plan, recipe_of
from harness.signoff.conclude import conclude
from harness.signoff.measure import Inputs, Measured, Progress, Sample, header, measure
from harness.signoff.package import (
    CANDIDATES,
    CONCLUSION,
    MANIFEST,
    POLICY,
    WAIVERS,
    begin_folder,
    identity,
    seal,
    write_folder,
)
from harness.signoff.report import RENDERERS, REPORT
from harness.signoff.suite import check_scored, choose, ensure_golden
from harness.waivers import read_waivers


class Request(msgspec.Struct, frozen=True):
    """What the user asked for. `created` is UTC, `harness` the version."""

    plan: Plan
    checkpoint: str
    prompts: Path
    answers: Path
    golden: Path | None
    policy: Path
    waivers: Path
    interpreters: dict[str, PurePath]
    trust_remote_code: bool
    command: tuple[str, ...]
    created: str
    harness: str


class SignedOff(msgspec.Struct, frozen=True):
    """What came of it: whether all that must pass do, the report, and the package's number of files and identity."""

    passed: bool
    report: str
    files: int
    identity: str


def sign_off(request: Request, out: Path, announce: Callable[[str], None], progress: Progress) -> SignedOff:
    """Carry out a sign-off and write its package into the folder `out`, which must be empty, or hold what an earlier
    one of the same candidates has left that was cut short: what was measured is then not measured again.

    Every input is read before anything is measured. Raises HarnessError; what goes wrong with a candidate is in its
    record and fails it.
    """
    backends, inputs = load_backends(), _inputs(request)
    policy = inputs.settings.policy
    policy.limits_of_signoff()
    for candidate in request.plan.candidate:
        recipe_of(candidate, backends)
    plan = request.plan.public()
    begin_folder(out, encode(plan))
    _goldens(request, inputs.settings, announce, progress)
    measured = _measure(request.plan, inputs, backends, out, announce, progress)
    records = {name: found.record for name, found in measured.items()}
    sample = inputs.sample
    found = conclude(plan, records, policy, sample.suite, sample.answered, request.harness)
    reports = {name: render(found, records, policy, sample.suite) for name, render in RENDERERS.items()}
    files = {
        CONCLUSION: encode(found),
        **{name: text.encode() for name, text in reports.items()},
        CANDIDATES: encode(plan),
        POLICY: request.policy.read_bytes(),
        WAIVERS: request.waivers.read_bytes(),
        **_prompts(inputs),
    }
    for name, one in measured.items():
        files |= _parts(out, name, one)
    files[MANIFEST] = seal(files, request.harness, found.checkpoint, request.created)
    write_folder(out, files)
    return SignedOff(found.passed, reports[REPORT], len(files), identity(files))


def encode(value: msgspec.Struct) -> bytes:
    """JSON to be read by people too."""
    return msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n"


def _inputs(request: Request) -> Inputs:
    checkpoint = find_checkpoint(request.checkpoint)
    fingerprint = checkpoint.fingerprint()
    suite, answered = read_suite(request.prompts), read_suite(request.answers)
    check_scored(suite)
    if suite.name == answered.name:
        raise UsageError(f"both suites are called {suite.name!r}", "rename one of the files")
    roots = (request.golden,) if request.golden else golden_roots(checkpoint, fingerprint)
    settings = Settings(
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        suites=(answered, suite),
        golden_roots=roots,
        policy=read_policy(request.policy),
        interpreters=request.interpreters,
        trust_remote_code=request.trust_remote_code,
    )
    return Inputs(
        settings=settings,
        sample=Sample(suite, tuple(choose(suite, request.plan.items)), answered),
        waivers=read_waivers(request.waivers),
        policy_sha256=sha256_text(request.policy),
        waivers_sha256=sha256_text(request.waivers),
        command=request.command,
    )


def _goldens(request: Request, settings: Settings, announce: Callable[[str], None], progress: Progress) -> None:
    """Record the goldens that are not there yet, and verify all."""
    for suite in settings.suites:
        if ensure_golden(settings, suite, request.golden, progress):
            announce(f"recorded the golden of {settings.checkpoint.name} on {suite.name}: {len(suite.prompts)} prompts")
        open_golden(settings.golden_roots, settings.checkpoint, settings.fingerprint, suite)


def _measure(
    plan: Plan,
    inputs: Inputs,
    backends: Mapping[str, Backend],
    out: Path,
    announce: Callable[[str], None],
    progress: Progress,
) -> dict[str, Measured]:
    measured = {}
    for number, candidate in enumerate(plan.candidate, start=1):
        began = time.monotonic()

        def tell(what: str, done: int, total: int, name: str = candidate.name) -> None:
            progress(f"{name}: {what}", done, total)

        path = out / "records" / f"{candidate.name}.json"
        finished = _finished(out, candidate, inputs)
        if finished is not None:
            measured[candidate.name] = finished
            announce(
                f"{number}/{len(plan.candidate)} {candidate.name}: measured before, from {finished.record.finished}"
            )
            continue
        found = measured[candidate.name] = measure(candidate, inputs, backends, path, announce, tell)
        write_folder(out, _parts(out, candidate.name, found))
        bad = [case for case in found.record.cases if case.outcome in ("ERROR", "NOT_RUN")]
        said = f"; {len(bad)} errors, first {bad[0].case}: {bad[0].message.splitlines()[0]}" if bad else ""
        announce(f"{number}/{len(plan.candidate)} {candidate.name}: {time.monotonic() - began:.0f} s{said}")
    return measured


def _prompts(inputs: Inputs) -> dict[str, bytes]:
    """Both suites, and the manifests of their goldens."""
    files = {}
    for suite in inputs.settings.suites:
        settings = inputs.settings
        golden = open_golden(settings.golden_roots, settings.checkpoint, settings.fingerprint, suite)
        files[f"suite/{suite.name}.jsonl"] = suite.path.read_bytes()
        files[f"goldens/{suite.name}.json"] = (golden.folder / GOLDEN_MANIFEST).read_bytes()
    return files


def _finished(out: Path, candidate: Candidate, inputs: Inputs) -> Measured | None:
    """What an earlier sign-off into the same folder, which was cut short, has measured of the same candidate.

    A ready-made folder must hold what it held then, the goldens must be the same, and so must this machine.
    """
    name = candidate.name
    path, audit, manifest = (out / part / f"{name}.json" for part in ("records", "audits", "artifacts"))
    if not path.is_file() or journal_of(path).exists():
        return None
    record, wanted = read_record(path), header(inputs)
    same = (
        (record.harness, record.suites, record.checkpoint, record.policy_sha256, record.waivers_sha256)
        == (wanted.harness, wanted.suites, wanted.checkpoint, wanted.policy_sha256, wanted.waivers_sha256)
    )  # fmt: skip
    if not (record.complete and same and record.machine == wanted.machine):
        return None
    if record.goldens != _golden_hashes(inputs.settings) or not _as_it_was(candidate, record):
        return None
    said = audit.read_text(encoding="utf-8") if audit.is_file() else None
    return Measured(record, said, manifest.read_bytes() if manifest.is_file() else None)


def _golden_hashes(settings: Settings) -> dict[str, str]:
    roots, checkpoint, fingerprint = settings.golden_roots, settings.checkpoint, settings.fingerprint
    goldens = {suite.name: open_golden(roots, checkpoint, fingerprint, suite) for suite in settings.suites}
    return {name: golden.manifest.own_sha256 for name, golden in sorted(goldens.items())}


def _as_it_was(candidate: Candidate, record: RunRecord) -> bool:
    """Whether a ready-made folder still holds what was measured. Versions of runtimes are not known before one runs."""
    if candidate.artifact is None:
        return True
    sha256 = describe(Path(candidate.artifact), "given").sha256
    return all(session.artifact.sha256 == sha256 for session in record.sessions)


def _parts(out: Path, name: str, found: Measured) -> dict[str, bytes]:
    """A candidate's record as it was written, the audit, and the manifest of the artifact."""
    files = {f"records/{name}.json": (out / "records" / f"{name}.json").read_bytes()}
    if found.audit is not None:
        files[f"audits/{name}.json"] = found.audit.encode()
    if found.manifest is not None:
        files[f"artifacts/{name}.json"] = found.manifest
    return files
