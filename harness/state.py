"""What the plugin knows of a run: the options as read, the targets they select, and the cases as they finish."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import __version__
from harness.backend import Backend, load_backends
from harness.checkpoint import Checkpoint, Fingerprint, find_checkpoint, sha256_text
from harness.connection import Host
from harness.devices import Machine, parse_interpreters, this_machine
from harness.discovery import RuntimeReport
from harness.errors import Stage, UsageError
from harness.golden import TREE, golden_roots, open_golden
from harness.lab import parse_hosts
from harness.options import PROMPTS, Options, parse_memory, parse_timeouts, select_targets
from harness.policy import Policy, read_policy
from harness.prompts import PromptSuite, read_suite
from harness.record import (
    SCHEMA,
    ArtifactRecord,
    CaseRecord,
    CheckpointRecord,
    RunRecord,
    SessionRecord,
    without_folders,
)
from harness.run import Run, Settings
from harness.sessions import TargetSession
from harness.target import DeviceKind, Target, matches
from harness.waivers import Waiver, read_waivers

STATE: pytest.StashKey[State] = pytest.StashKey()


class State:
    """One process's view of a run. Nothing is read from disk before it is needed."""

    def __init__(self, options: Options, announce: Callable[[str], None]) -> None:
        self.options = options
        self.backends: Mapping[str, Backend] = load_backends()
        self.started = _now()
        self.cases: list[CaseRecord] = []
        self.sessions: dict[str, SessionRecord] = {}
        self.matched_waivers: set[str] = set()
        self.machines: dict[str, Machine] = {}
        self.runtimes: dict[str, RuntimeReport] = {}
        self._announce = announce
        self._run: Run | None = None
        self._marked: Mapping[Stage, float] = {}
        self._suites: tuple[PromptSuite, ...] | None = None
        self._policy: Policy | None = None
        self._waivers: tuple[Waiver, ...] | None = None
        self._checkpoint: tuple[Checkpoint, Fingerprint] | None = None
        self._targets: list[Target] | None = None

    def targets(self) -> list[Target]:
        """The targets that --targets selects of all declared; a target written out may name an indexed device.

        Raises UsageError when a pattern selects nothing.
        """
        if self._targets is None:
            declared = [target for backend in self.backends.values() for target in backend.targets()]
            there = [msgspec.structs.replace(target, host=host) for host in self.hosts() for target in declared]
            self._targets = select_targets([*declared, *there], self.options.targets, self.backends)
        return self._targets

    def hosts(self) -> dict[str, Host]:
        """The machines of --host by name. Raises UsageError."""
        return parse_hosts(self.options.hosts)

    def kind(self, target: Target) -> DeviceKind:
        """The kind of device a target names."""
        return self.backends[target.backend].devices[target.base_device]

    def device_group(self, target: Target) -> str:
        """What must not be used twice at once: an NPU or the GPUs of a machine; a CPU target shares with all others."""
        kind = self.kind(target)
        return str(target) if kind is DeviceKind.CPU else f"{kind.value}:{target.host or ''}"

    def suites(self) -> tuple[PromptSuite, ...]:
        """The suites of --prompts, or those that come with the project."""
        if self._suites is None:
            paths = self.options.prompts or tuple(sorted(PROMPTS.glob("*.jsonl")))
            self._suites = tuple(read_suite(path) for path in paths)
            _check_distinct(self._suites)
        return self._suites

    def policy(self) -> Policy:
        """The policy of the run."""
        if self._policy is None:
            self._policy = read_policy(self.options.policy)
        return self._policy

    def waivers(self) -> tuple[Waiver, ...]:
        """The waivers of the run."""
        if self._waivers is None:
            self._waivers = read_waivers(self.options.waivers)
        return self._waivers

    def checkpoint(self) -> tuple[Checkpoint, Fingerprint]:
        """The checkpoint and its hashes."""
        if self._checkpoint is None:
            checkpoint = find_checkpoint(self.options.checkpoint)
            self._checkpoint = (checkpoint, checkpoint.fingerprint())
        return self._checkpoint

    def run(self) -> Run:
        """The workers and goldens of this process; goldens are verified before the first is used."""
        if self._run is None:
            run = Run(self._settings(), self.backends, self._announce)
            try:
                for suite in self.suites():
                    run.golden(suite)
            except BaseException:
                run.close()
                raise
            self._run = run
            run.limits.mark(self._marked)
        return self._run

    def mark(self, timeouts: Mapping[Stage, float]) -> None:
        """Let the test that runs now have timeouts of its own, in seconds by stage."""
        self._marked = timeouts
        if self._run is not None:
            self._run.limits.mark(timeouts)

    def check(self) -> None:
        """Read every file that the options name, so that a bad one stops the run before it begins."""
        targets = self.targets()
        self.waivers()
        settings = self._settings()
        given: dict[str, Sequence[tuple[Any, ...]]]
        given = {"--artifact": settings.artifacts, "--recipe": settings.recipes, "--load-option": settings.load_options}
        for option, chosen in given.items():
            for pattern in [words[0] for words in chosen]:
                if not any(matches(target, pattern) for target in targets):
                    raise UsageError(f"{option} {pattern!r} matches no target of this run", "mend it, or --targets")
        for pattern, folder in settings.artifacts:
            if not folder.is_dir():
                raise UsageError(f"--artifact {pattern}: there is no artifact folder {folder}", "name a folder")
        for backend in settings.interpreters:
            if backend.split(":")[0] not in self.backends:
                raise UsageError(f"--interpreter {backend!r} is no backend", f"one of {', '.join(self.backends)}")
        for suite in self.suites():
            open_golden(settings.golden_roots, settings.checkpoint, settings.fingerprint, suite)

    def keep_session(self, session: TargetSession) -> SessionRecord | None:
        """What the record says of a session, None before it was loaded."""
        if session.info is None or session.artifact is None:
            return None
        artifact = session.artifact
        made = ArtifactRecord(
            artifact.origin, artifact.recipe, artifact.sha256, artifact.bytes, artifact.versions, artifact.command
        )
        inference = session.inference
        return SessionRecord(
            target=str(session.target),
            kind=session.kind,
            compute_class=session.compute_class,
            info=session.info,
            artifact=made,
            evidence=session.known_evidence,
            arithmetic=str(inference.arithmetic) if inference else "",
            distances=inference.distances if inference else {},
            undecomposed=session.undecomposed,
            first_bad=session.first_bad or "",
        )

    def enter(self, found: SessionRecord) -> None:
        """Enter a session into the record, with the evidence known of it before where it brings none."""
        known = self.sessions.get(found.target)
        if found.evidence is None and known is not None:
            found = msgspec.structs.replace(found, evidence=known.evidence)
        self.sessions[found.target] = found

    def close(self) -> None:
        """Stop workers and delete scratch files. Takes up to 20 s a worker."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def keep_known(self) -> None:
        """Keep what this process has found out of machines and runtimes."""
        if self._run is not None:
            self.keep_platform(self._run.crew.lab.machines, self._run.crew.discovery.reports())

    def keep_platform(self, machines: Mapping[str, Machine], runtimes: Sequence[RuntimeReport]) -> None:
        """Add to what is known of hosts and runtimes; xdist's workers each find out a part."""
        self.machines |= machines
        for found in runtimes:
            key = f"{found.backend}:{found.host}:{found.python}:{sorted(found.versions.items())}"
            known = self.runtimes.get(key)
            devices = {**(known.devices if known else {}), **found.devices}
            self.runtimes[key] = msgspec.structs.replace(found, devices=devices)

    def unmet(self) -> list[str]:
        """The --require demands that no judged case meets."""
        judged = {Target.parse(case.target) for case in self.cases if case.outcome in ("PASS", "FAIL")}
        return [wanted for wanted in self.options.require if not any(self._meets(t, wanted) for t in judged)]

    def _meets(self, target: Target, wanted: str) -> bool:
        names = (self.kind(target).value, target.backend, target.precision.value)
        return wanted in names or matches(target, wanted)

    def record(self, *, complete: bool, exit_status: int, command: Sequence[str]) -> RunRecord:
        """The run record of all cases so far."""
        checkpoint = None
        if self._checkpoint is not None:
            checkpoint = CheckpointRecord(self._checkpoint[0].name, self._checkpoint[1])
        return RunRecord(
            schema=SCHEMA,
            harness=__version__,
            started=self.started,
            finished=_now(),
            complete=complete,
            exit_status=exit_status,
            command=without_folders(command, TREE),
            machine=this_machine(),
            hosts=self.machines,
            runtimes=list(self.runtimes.values()),
            checkpoint=checkpoint,
            suites={suite.name: suite.sha256 for suite in self._suites or ()},
            policy_sha256=_hash(self.options.policy),
            waivers_sha256=_hash(self.options.waivers),
            sessions=list(self.sessions.values()),
            cases=self.cases,
        )

    def _settings(self) -> Settings:
        checkpoint, fingerprint = self.checkpoint()
        roots = golden_roots(checkpoint, fingerprint)
        return Settings(
            checkpoint=checkpoint,
            fingerprint=fingerprint,
            suites=self.suites(),
            golden_roots=(self.options.golden,) if self.options.golden else roots,
            policy=self.policy(),
            artifacts=self.options.chosen_artifacts(),
            recipes=self.options.chosen_recipes(),
            load_options=self.options.chosen_load_options(),
            interpreters=parse_interpreters(list(self.options.interpreters)),
            hosts=self.hosts(),
            device_wait=self.options.device_wait,
            timeouts=parse_timeouts(self.options.stage_timeouts),
            worker_memory=parse_memory(self.options.worker_memory),
            trust_remote_code=self.options.trust_remote_code,
        )


def _check_distinct(suites: Sequence[PromptSuite]) -> None:
    seen: dict[str, str] = {}
    for suite in suites:
        for prompt in suite.prompts:
            if prompt.id in seen:
                raise UsageError(
                    f"the prompt id {prompt.id!r} is in {seen[prompt.id]} and in {suite.name}",
                    "test ids are made of prompt ids: rename one",
                )
            seen[prompt.id] = suite.name


def _hash(path: Path) -> str:
    return sha256_text(path) if path.is_file() else ""


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def as_plain(value: msgspec.Struct) -> dict[str, Any]:
    """A Struct as builtins that xdist can send."""
    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain
