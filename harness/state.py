"""What the plugin knows of a run: the options as read, the targets they select, and the cases as they finish."""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import __version__
from harness.backend import Backend, load_backends
from harness.checkpoint import Checkpoint, Fingerprint, find_checkpoint, sha256_text
from harness.compare import Outcome
from harness.connection import Host
from harness.details import prompt_record
from harness.devices import Machine, parse_interpreters, this_machine
from harness.entries import waiver_record
from harness.environment import recorded
from harness.errors import HarnessError, Stage, UsageError
from harness.golden import TREE, Golden, golden_roots, open_golden
from harness.journal import NOT_ENDED
from harness.lab import parse_hosts
from harness.ledger import Ledger
from harness.options import PROMPTS, Options, parse_memory, parse_size, parse_timeouts, select_targets
from harness.policy import Policy, read_policy
from harness.privacy import machines_named, of_this_machine
from harness.prompts import PromptSuite, check_names, read_suite
from harness.ready_made import check_artifacts, find_artifacts
from harness.record import SCHEMA, CaseRecord, CheckpointRecord, RunRecord
from harness.run import PromptCase, Run, Settings
from harness.target import DeviceKind, Target, matches
from harness.waivers import Waiver, read_waivers
from harness.words import Words

STATE: pytest.StashKey[State] = pytest.StashKey()


class State:
    """One process's view of a run. Nothing is read from disk before it is needed."""

    def __init__(
        self,
        options: Options,
        announce: Callable[[str], None],
        command: Sequence[str] = (),
        step: Callable[[str], None] | None = None,
    ) -> None:
        self.options = options
        self.due: Mapping[Target, int] = {}
        """How many cases of each target were collected."""
        self._step = step or (lambda _: None)
        self.privacy = of_this_machine(TREE, machines_named(options.hosts))
        self.ledger = Ledger(self.privacy, announce)
        self.backends: Mapping[str, Backend] = load_backends()
        self.started = _now()
        self.matched_waivers: set[str] = set()
        self._announce = announce
        self._command = command
        self._machine: Machine | None = None
        self._goldens: dict[str, Golden] = {}
        self._words: Words | None = None
        self._run: Run | None = None
        self._marked: Mapping[Stage, float] = {}
        self._suites: tuple[PromptSuite, ...] | None = None
        self._policy: Policy | None = None
        self._waivers: tuple[Waiver, ...] | None = None
        self._checkpoint: tuple[Checkpoint, Fingerprint] | None = None
        self._artifacts: tuple[tuple[str, Path], ...] | None = None
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
            run = Run(self._settings(), self.backends, self._announce, self._step)
            try:
                for suite in self.suites():
                    run.golden(suite)
            except BaseException:
                run.close()
                raise
            self._run = run
            run.limits.mark(self._marked)
        return self._run

    def begin(self, target: Target) -> None:
        """Say which target's turn it is, of how many."""
        order = list(self.due)
        if target in order:
            place, total = order.index(target) + 1, sum(self.due.values())
            self._step(f"{target}: target {place} of {len(order)}, {self.due[target]} of {total} cases")

    def mark(self, timeouts: Mapping[Stage, float]) -> None:
        """Let the test that runs now have timeouts of its own, in seconds by stage."""
        self._marked = timeouts
        if self._run is not None:
            self._run.limits.mark(timeouts)

    def check(self) -> None:
        """Read every file that the options name, so that a bad one stops the run before it begins."""
        targets = self.targets()
        self.waivers()
        options = self.options
        given: dict[str, Sequence[tuple[Any, ...]]] = {
            "--artifact": options.chosen_artifacts(),
            "--recipe": options.chosen_recipes(),
            "--load-option": options.chosen_load_options(),
        }
        for option, chosen in given.items():
            for pattern in [words[0] for words in chosen]:
                if not any(matches(target, pattern) for target in targets):
                    raise UsageError(f"{option} {pattern!r} matches no target of this run", "mend it, or --targets")
        settings = self._settings()
        check_artifacts(settings.artifacts, targets, self.backends)
        for backend in settings.interpreters:
            if backend.split(":")[0] not in self.backends:
                raise UsageError(f"--interpreter {backend!r} is no backend", f"one of {', '.join(self.backends)}")
        for suite in self.suites():
            self._golden(suite)

    def _found_artifacts(self) -> tuple[tuple[str, Path], ...]:
        """`--artifact`, looked up once: the hub may be asked. Raises UsageError where there is none of the name."""
        if self._artifacts is None:
            self._artifacts = find_artifacts(self.options.chosen_artifacts(), self.backends)
        return self._artifacts

    def take(self, case: Mapping[str, Any], session: Mapping[str, Any] | None) -> None:
        """Enter what a report brings: a case, and the session that it was judged on, both as builtins."""
        if not self.ledger.cases:
            self.ledger.begin(self.options.record, self._header())
        if session is not None:
            self.ledger.session(session)
            self.keep_known()
        found = self.ledger.case(case)
        target = Target.parse(found.target)
        for waiver in self.waivers():
            if waiver.covers(target, found.case):
                self.ledger.waiver(waiver_record(waiver))
        if found.outcome != Outcome.UNSUPPORTED.value:
            self._take_prompt(found)
        if self._checkpoint is not None:
            self._words = self._words or Words(self._checkpoint[0].path)
            self.ledger.words(self._words)

    def _take_prompt(self, case: CaseRecord) -> None:
        """Enter the prompt of a case, if it has one; none where its golden has gone meanwhile."""
        subject = case.case.removeprefix(case.test)[1:-1]
        found = ((suite, prompt) for suite in self._suites or () for prompt in suite.prompts if prompt.id == subject)
        suite, prompt = next(found, (None, None))
        if suite is not None and prompt is not None and not self.ledger.knows_prompt(suite.name, prompt.id):
            with contextlib.suppress(HarnessError):
                self.ledger.prompt(prompt_record(self._prompt(suite, prompt.id), prompt.about))

    def _prompt(self, suite: PromptSuite, prompt_id: str) -> PromptCase:
        if self._run is not None:
            return self._run.case(suite, prompt_id)
        golden = self._golden(suite)
        return PromptCase(suite.name, golden.case(prompt_id), golden)

    def _golden(self, suite: PromptSuite) -> Golden:
        if suite.name not in self._goldens:
            settings = self._settings()
            found = open_golden(settings.golden_roots, settings.checkpoint, settings.fingerprint, suite)
            self._goldens[suite.name] = found
        return self._goldens[suite.name]

    def _verified(self) -> dict[str, Golden]:
        """By suite every golden that this process has opened, whose files were then those of its manifest."""
        return {**self._goldens, **(self._run.goldens if self._run is not None else {})}

    def close(self) -> None:
        """Stop workers and delete scratch files. Takes up to 20 s a worker."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def keep_known(self) -> None:
        """Keep what this process has found out of machines and runtimes."""
        if self._run is not None:
            self.ledger.platform(self._run.crew.lab.machines, self._run.crew.discovery.reports())

    def unmet(self) -> list[str]:
        """The --require demands that no judged case meets."""
        judged = {Target.parse(case.target) for case in self.ledger.cases if case.outcome in ("PASS", "FAIL")}
        return [wanted for wanted in self.options.require if not any(self._meets(t, wanted) for t in judged)]

    def _meets(self, target: Target, wanted: str) -> bool:
        names = (self.kind(target).value, target.backend, target.precision.value)
        return wanted in names or matches(target, wanted)

    def record(self, *, complete: bool, exit_status: int) -> RunRecord:
        """The run record of all cases so far."""
        header = msgspec.structs.replace(self._header(), finished=_now(), complete=complete, exit_status=exit_status)
        return self.ledger.complete(header)

    def _header(self) -> RunRecord:
        """The record without its parts, as of a run that has just begun."""
        checkpoint = None
        if self._checkpoint is not None:
            checkpoint = CheckpointRecord(self._checkpoint[0].name, self._checkpoint[1], self._checkpoint[0].window)
        self._machine = self._machine or this_machine()
        return RunRecord(
            schema=SCHEMA,
            harness=__version__,
            started=self.started,
            finished=self.started,
            complete=False,
            exit_status=NOT_ENDED,
            command=list(map(self.privacy.hide, self._command)),
            machine=self._machine,
            checkpoint=checkpoint,
            suites={suite.name: suite.sha256 for suite in self._suites or ()},
            goldens={name: golden.manifest.own_sha256 for name, golden in sorted(self._verified().items())},
            policy_sha256=_hash(self.options.policy),
            waivers_sha256=_hash(self.options.waivers),
            sessions=[],
            cases=[],
            environment=recorded(os.environ, self.privacy),
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
            artifacts=self._found_artifacts(),
            recipes=self.options.chosen_recipes(),
            load_options=self.options.chosen_load_options(),
            interpreters=parse_interpreters(list(self.options.interpreters)),
            hosts=self.hosts(),
            device_wait=self.options.device_wait,
            timeouts=parse_timeouts(self.options.stage_timeouts),
            worker_memory=parse_memory(self.options.worker_memory),
            memory=parse_size(self.options.memory) if self.options.memory else None,
            trust_remote_code=self.options.trust_remote_code,
        )


def _check_distinct(suites: Sequence[PromptSuite]) -> None:
    check_names(suites)
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
