"""Verifying a package on another machine: it is whole, its parts belong together, and its numbers give its verdicts."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from harness import __version__
from harness.artifacts import ArtifactManifest
from harness.checkpoint import sha256_text
from harness.errors import HarnessError, PackageError
from harness.findings import AuditReport
from harness.golden import Manifest as GoldenManifest
from harness.policy import Policy, read_policy
from harness.prompts import PromptSuite, read_suite
from harness.record import RunRecord, read_record
from harness.signoff.candidates import Plan, check_plan
from harness.signoff.conclude import Conclusion, conclude
from harness.signoff.package import (
    CANDIDATES,
    CONCLUSION,
    POLICY,
    WAIVERS,
    check_closed,
    identity,
    read_files,
)
from harness.signoff.report import RENDERERS, plotted_elsewhere
from harness.untrusted import printable

# Sums in another order, by another processor, differ in their last bits.
_ROUNDING = 1e-7
# Resampling takes time and memory by the item; nobody needs so many, but a stranger may send them.
_MOST_ITEMS = 20_000


class Package(msgspec.Struct, frozen=True):
    """A package as read: what its files hold. `identity` is the SHA-256 of its manifest."""

    identity: str
    harness: str
    plan: Plan
    policy: Policy
    suite: PromptSuite
    answered: PromptSuite
    records: dict[str, RunRecord]
    conclusion: Conclusion


class Verified(msgspec.Struct, frozen=True):
    """What verifying found: nothing, in `problems`, where the package may be believed; its conclusion; and notes."""

    package: Package | None
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def verify(path: Path) -> Verified:
    """Verify a package, folder or zip file. Raises PackageError where it cannot be read at all."""
    files = read_files(path)
    manifest, problems = check_closed(files)
    if problems:
        return Verified(None, tuple(map(printable, problems)))
    try:
        with _laid_out(files) as folder:
            package = _open(folder, files, manifest.harness)
            problems = [*_belongs(folder, files, package), *_concludes(package)]
            found, notes = _reports(files, package)
    except (
        *(HarnessError, ValueError, ArithmeticError, LookupError, TypeError),
        *(msgspec.DecodeError, RecursionError),
    ) as error:
        said = error.problem if isinstance(error, HarnessError) else str(error)
        return Verified(None, (printable(f"a file of it cannot be used: {said}"),))
    return Verified(package, tuple(map(printable, (*problems, *found))), notes)


def open_package(path: Path) -> Package:
    """A package that verifies. Raises PackageError naming the first problem where it does not."""
    found = verify(path)
    if found.problems or found.package is None:
        raise PackageError(f"{path}: {found.problems[0]}", "have it sent again")
    return found.package


@contextlib.contextmanager
def _laid_out(files: Mapping[str, bytes]) -> Iterator[Path]:
    """The files in a folder of our own, as they were hashed: a folder that was given may change under our eyes."""
    with tempfile.TemporaryDirectory(prefix="phi3-conformance-") as made:
        folder = Path(made)
        for name, data in files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        yield folder


def _open(folder: Path, files: Mapping[str, bytes], harness: str) -> Package:
    needed = (CONCLUSION, CANDIDATES, POLICY, WAIVERS)
    missing = [name for name in needed if name not in files]
    if missing:
        raise PackageError(f"{missing[0]} is not part of it", "run the sign-off again")
    plan = msgspec.json.decode(files[CANDIDATES], type=Plan)
    check_plan(plan, CANDIDATES)
    conclusion = msgspec.json.decode(files[CONCLUSION], type=Conclusion)
    names = {Path(name).stem: name for name in files if name.startswith("suite/")}
    others = [name for name in names if name != conclusion.suite]
    if conclusion.suite not in names or len(others) != 1:
        raise PackageError("it has not the two suites of a sign-off", "run the sign-off again")
    suite, answered = (read_suite(folder / name) for name in (names[conclusion.suite], names[others[0]]))
    if len(suite.prompts) > _MOST_ITEMS:
        raise PackageError(f"its suite has {len(suite.prompts)} items; at most {_MOST_ITEMS} are read", "ask why")
    records = {Path(name).stem: read_record(folder / name) for name in files if name.startswith("records/")}
    return Package(
        identity=identity(files),
        harness=harness,
        plan=plan,
        policy=read_policy(folder / POLICY),
        suite=suite,
        answered=answered,
        records=records,
        conclusion=conclusion,
    )


def _belongs(folder: Path, files: Mapping[str, bytes], package: Package) -> Iterator[str]:
    """Whether the parts are of one sign-off: of these candidates, this policy, these prompts and their goldens."""
    planned = {candidate.name: candidate for candidate in package.plan.candidate}
    yield from (f"records/{name}.json is missing" for name in planned if name not in package.records)
    hashes = {suite.name: suite.sha256 for suite in (package.suite, package.answered)}
    policy, waivers = sha256_text(folder / POLICY), sha256_text(folder / WAIVERS)
    fingerprints = {record.checkpoint.fingerprint.key for record in package.records.values() if record.checkpoint}
    if len(fingerprints) > 1:
        yield "its records are of several checkpoints"
    for name, record in package.records.items():
        where = f"records/{name}.json"
        if name not in planned:
            yield f"{where} is of no candidate"
        elif any(case.target != planned[name].target for case in record.cases):
            yield f"{where} is of another target than the candidate's"
        if record.suites != hashes:
            yield f"{where} was made with other prompts"
        if record.policy_sha256 != policy:
            yield f"{where} was made with another policy"
        if record.waivers_sha256 != waivers:
            yield f"{where} was made with other waivers"
        yield from _artifact(name, record, files)
        yield from _audit(name, record, files)
    for suite in (package.suite, package.answered):
        yield from _golden(suite, files, fingerprints)
        yield from _measured_against(suite, files, package.records)


def _artifact(name: str, record: RunRecord, files: Mapping[str, bytes]) -> Iterator[str]:
    session = next(iter(record.sessions), None)
    if session is None or session.artifact.origin != "exported":
        return
    data = files.get(f"artifacts/{name}.json")
    if data is None:
        yield f"artifacts/{name}.json is missing"
        return
    made = msgspec.json.decode(data, type=ArtifactManifest)
    if (made.sha256, made.bytes) != (session.artifact.sha256, session.artifact.bytes):
        yield f"artifacts/{name}.json is of another artifact than its record"


def _audit(name: str, record: RunRecord, files: Mapping[str, bytes]) -> Iterator[str]:
    case = next((case for case in record.cases if case.test == "test_weights" and "findings" in case.numbers), None)
    data = files.get(f"audits/{name}.json")
    if case is None:
        return
    if data is None:
        yield f"audits/{name}.json is missing"
        return
    report = msgspec.json.decode(data, type=AuditReport)
    if (report.count, len(report.tensors)) != (case.numbers["findings"], case.numbers["tensors"]):
        yield f"audits/{name}.json is not what its record says of the weights"


def _golden(suite: PromptSuite, files: Mapping[str, bytes], fingerprints: set[str]) -> Iterator[str]:
    name = f"goldens/{suite.name}.json"
    if name not in files:
        yield f"{name} is missing"
        return
    manifest = msgspec.json.decode(files[name], type=GoldenManifest)
    if manifest.sealed().own_sha256 != manifest.own_sha256:
        yield f"{name} was changed after it was recorded"
    if manifest.suite_sha256 != suite.sha256:
        yield f"{name} is of other prompts"
    if {manifest.fingerprint.key} != fingerprints:
        yield f"{name} is of another checkpoint"


def _measured_against(
    suite: PromptSuite, files: Mapping[str, bytes], records: Mapping[str, RunRecord]
) -> Iterator[str]:
    """Whether the records were made with the golden of the package; one that asked nothing of it names none."""
    name = f"goldens/{suite.name}.json"
    if name in files:
        sealed = msgspec.json.decode(files[name], type=GoldenManifest).own_sha256
        for candidate, record in records.items():
            if record.goldens.get(suite.name, sealed) != sealed:
                yield f"records/{candidate}.json was made with another golden of {suite.name}"


def _concludes(package: Package) -> Iterator[str]:
    """Whether the numbers of the prompts give the conclusion again."""
    again = conclude(
        package.plan, package.records, package.policy, package.suite, package.answered, package.conclusion.harness
    )
    if again.passed != package.conclusion.passed:
        yield f"its numbers give another verdict: {again.sentence}"
    told = {candidate.name: candidate.outcome for candidate in package.conclusion.candidates}
    for candidate in again.candidates:
        if told.get(candidate.name) != candidate.outcome:
            yield f"its numbers give {candidate.outcome} for {candidate.name}, not {told.get(candidate.name)}"
    ours, theirs = msgspec.to_builtins(again), msgspec.to_builtins(package.conclusion)
    if package.conclusion.harness != __version__:  # which may say it in other words
        ours, theirs = _without_sentences(ours), _without_sentences(theirs)
    where = _difference(ours, theirs, "signoff.json")
    if where:
        yield f"its numbers do not give what it says: {where}"


def _without_sentences(plain: Any) -> Any:
    if isinstance(plain, dict):
        return {key: _without_sentences(value) for key, value in plain.items() if key != "sentence"}
    return [_without_sentences(value) for value in plain] if isinstance(plain, (list, tuple)) else plain


def _difference(ours: Any, theirs: Any, where: str) -> str:
    """The first place at which two conclusions differ by more than rounding, empty where they do not."""
    if isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys():
        return _first(lambda key: _difference(ours[key], theirs[key], f"{where}, {key}"), ours)
    if isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        return _first(lambda i: _difference(ours[i], theirs[i], f"{where} {i + 1}"), range(len(ours)))
    if isinstance(ours, float) and isinstance(theirs, (int, float)):
        return "" if math.isclose(ours, theirs, rel_tol=_ROUNDING, abs_tol=1e-12) else where
    return "" if type(ours) is type(theirs) and ours == theirs else where


def _first(ask: Callable[[Any], str], places: Any) -> str:
    return next(filter(None, map(ask, places)), "")


def _reports(files: Mapping[str, bytes], package: Package) -> tuple[list[str], tuple[str, ...]]:
    """Whether the reports are those that the contents give; another version may put them in other words."""
    if package.conclusion.harness != __version__:
        return [], (f"it was written by version {package.conclusion.harness}: its reports were not compared",)
    found, notes = [], []
    for name in sorted(RENDERERS):
        if name not in files:
            found.append(f"{name} is missing")
        elif (ours := rendered(name, package)) != files[name]:
            version = plotted_elsewhere(ours.decode(), files[name].decode(errors="replace"))
            if version:
                notes.append(f"{name}: matplotlib {version} drew its plots, which were not compared; --html draws anew")
            else:
                found.append(f"{name} does not say what the numbers do")
    return found, tuple(notes)


def rendered(name: str, package: Package) -> bytes:
    """A report of a package, as its contents give it."""
    return RENDERERS[name](package.conclusion, package.records, package.policy, package.suite).encode()
