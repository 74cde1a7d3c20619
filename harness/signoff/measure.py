"""One candidate of a sign-off, measured: prepared, loaded, asked every item and every prompt, into one record."""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from harness import __version__
from harness.arithmetic import Arithmetic
from harness.artifacts import MANIFEST
from harness.audit import to_json
from harness.backend import Backend
from harness.compare import Outcome, Verdict, compare_logits
from harness.devices import this_machine
from harness.entries import session_record, waiver_record
from harness.environment import recorded
from harness.errors import ArtifactError, NotRun, Stage, StageError, Unsupported
from harness.findings import AuditReport
from harness.golden import TREE
from harness.journal import NOT_ENDED
from harness.judge import CaseFailed, Judge
from harness.ledger import Ledger
from harness.privacy import of_this_machine
from harness.prompts import Prompt, PromptSuite
from harness.record import SCHEMA, CaseRecord, CheckpointRecord, RunRecord, write_record
from harness.run import PromptCase, Run, Settings
from harness.sessions import TargetSession
from harness.signoff.candidates import Candidate, recipe_of
from harness.signoff.figures import IMPLEMENTATION, ITEM, item_numbers, scored_kl
from harness.speed import time_target
from harness.target import Target, Unavailable
from harness.waivers import Waiver
from harness.yardstick import Decomposed, judge_implementation

# The implementation error is measured on one item in four: a hundred are plenty for the mean of a kernel's errors.
_APART = 4

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


class Sample(msgspec.Struct, frozen=True):
    """What every candidate is asked: the items that are scored, of their suite, and the suite that is answered."""

    suite: PromptSuite
    items: tuple[Prompt, ...]
    answered: PromptSuite


class Inputs(msgspec.Struct, frozen=True):
    """What all candidates of a sign-off have in common. `settings` name no artifact and no recipe yet."""

    settings: Settings
    sample: Sample
    waivers: tuple[Waiver, ...]
    policy_sha256: str
    waivers_sha256: str
    command: tuple[str, ...]


class Measured(msgspec.Struct, frozen=True):
    """A candidate's record; the audit of its weights as JSON and the manifest of its artifact, where there are any."""

    record: RunRecord
    audit: str | None
    manifest: bytes | None


def measure(
    candidate: Candidate,
    inputs: Inputs,
    backends: Mapping[str, Backend],
    out: Path,
    announce: Callable[[str], None],
    progress: Progress,
) -> Measured:
    """Measure one candidate and write its record to `out`, a journal beside it meanwhile.

    What goes wrong with the candidate is in its record. Raises UsageError where it cannot be what it says,
    GoldenError and RecordError.
    """
    found = _Measurement(candidate, inputs, backends, out, announce, progress)
    try:
        found.go()
    finally:
        found.close()
    return found.finished()


class _Measurement:
    def __init__(
        self,
        candidate: Candidate,
        inputs: Inputs,
        backends: Mapping[str, Backend],
        out: Path,
        announce: Callable[[str], None],
        progress: Progress,
    ) -> None:
        self.target = Target.parse(candidate.target)
        self.inputs = inputs
        self.run = Run(_settings(candidate, inputs.settings, backends), backends, announce)
        self.ledger = Ledger(of_this_machine(TREE), announce)
        self._name, self._out, self._progress = candidate.name, out, progress
        self._session: TargetSession | None = None
        self._audit: AuditReport | None = None
        self._apart: list[Decomposed] = []
        self._header = header(inputs)
        self.ledger.begin(out, self._header)

    def go(self) -> None:
        """Everything that is asked of a candidate, in turn; one that cannot be loaded is asked nothing more."""
        self._case("test_session", "", self._start)
        session = self._session
        if session is None:
            return
        judge = Judge(session, self.inputs.settings.policy, self.inputs.settings.checkpoint)
        self._case("test_weights", "", lambda: self._weights(session, judge))
        sample = self.inputs.sample
        for index, item in enumerate(sample.items):
            self._tell(item.id, index)
            case = self.run.case(sample.suite, item.id)
            apart = index % _APART == 0
            self._case(ITEM, item.id, lambda case=case, apart=apart: self._item(session, case, apart=apart))  # type: ignore[misc]
        self._case(IMPLEMENTATION, "", self._implementation)
        for index, prompt in enumerate(sample.answered.prompts):
            self._tell(prompt.id, len(sample.items) + index)
            self._answer(session, judge, self.run.case(sample.answered, prompt.id))
        self._case("test_speed", "", lambda: _judged(judge, lambda: judge.speed(time_target(session))))
        self._case("test_attestation", "", lambda: _judged(judge, judge.attestation))
        self._keep_session()

    def finished(self) -> Measured:
        """What was measured, its record written."""
        complete = any(case.test in ("test_attestation", "test_session") for case in self.ledger.cases[-1:])
        goldens = {name: golden.manifest.own_sha256 for name, golden in sorted(self.run.goldens.items())}
        header = msgspec.structs.replace(
            self._header, finished=_now(), complete=complete, exit_status=0, goldens=goldens
        )
        record = self.ledger.complete(header)
        write_record(self._out, record)
        self.ledger.end(written=True)
        artifact = self._session.artifact if self._session is not None else None
        exported = artifact is not None and artifact.origin == "exported"
        manifest = artifact.path / MANIFEST if artifact is not None and exported else None
        return Measured(
            record,
            None if self._audit is None else to_json(self._audit),
            manifest.read_bytes() if manifest is not None and manifest.is_file() else None,
        )

    def close(self) -> None:
        """Stop all workers."""
        if self._session is not None:
            self._session.close()
        self.run.close()

    def _start(self) -> Verdict:
        device = self.run.find_device(self.target)
        if isinstance(device, Unavailable):
            raise Unsupported(device.reason, device.remedy)
        session = TargetSession(self.run, self.target)
        try:
            session.start()
        except BaseException:
            session.close()
            raise
        self._session = session
        return Verdict(Outcome.PASS, {}, {})

    def _weights(self, session: TargetSession, judge: Judge) -> Verdict:
        self._audit = report = session.audit()
        return _judged(judge, lambda: judge.weights(report))

    def _item(self, session: TargetSession, prompt: PromptCase, *, apart: bool) -> Verdict:
        """Score an item; `apart`: with its implementation error, whose yardstick takes longer than all the rest."""
        logits, golden, case = session.logits(prompt), prompt.rows(), prompt.case
        whole = session.info is None or session.info.capabilities.whole_prompt_logits
        found = (
            session.compare(prompt, logits)
            if apart
            else compare_logits(golden, logits, len(case.tokens), whole_prompt=whole)
        )
        if isinstance(found, Verdict):
            return found
        if isinstance(found, Decomposed):
            self._apart.append(found)
        numbers = item_numbers(golden, logits, found, len(case.tokens), case.continuation)
        references = session.references()
        if references is not None:
            exact = references.logits(case.sequence, len(case.tokens), Arithmetic())
            numbers["quantisation_kl"] = scored_kl(golden, exact, len(case.tokens), len(case.continuation))
        return Verdict(Outcome.PASS, numbers, {})

    def _implementation(self) -> Verdict:
        """The implementation error of all items together, held against the policy's limits for a suite."""
        if not self._apart:
            reason = self._session.undecomposed if self._session is not None else ""
            raise Unsupported(f"the error was not taken apart: {reason}")
        limits = self.inputs.settings.policy.implementation_of(self._apart[0].compute_class)
        found = judge_implementation(self._apart, limits, suite=True)
        pooled = {f"pooled_{name}": value for name, value in self._apart[0].pooled.items()}
        return msgspec.structs.replace(found, numbers={**found.numbers, **pooled})

    def _answer(self, session: TargetSession, judge: Judge, prompt: PromptCase) -> None:
        asked: dict[str, Callable[[list[int]], None]] = {
            "test_greedy_form": lambda tokens: judge.form(prompt, tokens),
            "test_greedy_match": lambda tokens: judge.match(prompt, tokens),
            "test_greedy_regret": lambda tokens: judge.regret(prompt, tokens),
        }
        for test, ask in asked.items():
            self._case(test, prompt.id, lambda ask=ask: _judged(judge, lambda: ask(session.generate(prompt))))  # type: ignore[misc]

    def _case(self, test: str, subject: str, action: Callable[[], Verdict]) -> None:
        """Enter what a case comes to; an error of the candidate is an outcome, one of ours is raised."""
        began = time.monotonic()
        stage = None
        try:
            verdict = action()
        except NotRun as error:
            verdict = Verdict(Outcome.NOT_RUN, {}, {}, str(error))
        except Unsupported as error:
            verdict = Verdict(Outcome.UNSUPPORTED, {}, {}, str(error))
        except StageError as error:
            verdict, stage = Verdict(Outcome.ERROR, {}, {}, str(error)), error.stage.value
        except ArtifactError as error:
            verdict, stage = Verdict(Outcome.ERROR, {}, {}, str(error)), Stage.COMPARE.value
        name = f"{test}[{subject}]" if subject else test
        record = CaseRecord(
            id=f"sign-off::{self._name}::{name}",
            test=test,
            target=str(self.target),
            case=name,
            outcome=verdict.outcome.value,
            stage=stage,
            numbers=verdict.numbers,
            limits=verdict.limits,
            message=verdict.message,
            waiver=None,
            seconds=round(time.monotonic() - began, 4),
        )
        self.ledger.case(msgspec.to_builtins(record))
        for waiver in self.inputs.waivers:
            if waiver.covers(self.target, name):
                self.ledger.waiver(waiver_record(waiver))
        if test != ITEM:
            self._keep_session()

    def _keep_session(self) -> None:
        kept = None if self._session is None else session_record(self._session)
        if kept is not None:
            self.ledger.session(msgspec.to_builtins(kept))
            self.ledger.platform(self.run.crew.lab.machines, self.run.crew.discovery.reports())

    def _tell(self, what: str, done: int) -> None:
        sample = self.inputs.sample
        self._progress(what, done, len(sample.items) + len(sample.answered.prompts))


def _judged(judge: Judge, action: Callable[[], None]) -> Verdict:
    try:
        action()
    except CaseFailed as failed:
        return failed.verdict
    return judge.verdicts[-1]


def _settings(candidate: Candidate, settings: Settings, backends: Mapping[str, Backend]) -> Settings:
    recipe = recipe_of(candidate, backends)
    return msgspec.structs.replace(
        settings,
        artifacts=((candidate.target, Path(candidate.artifact)),) if candidate.artifact else (),
        recipes=((candidate.target, recipe),) if recipe is not None else (),
    )


def header(inputs: Inputs) -> RunRecord:
    """A candidate's record without its parts, as of a measurement that has just begun."""
    settings, sample, privacy = inputs.settings, inputs.sample, of_this_machine(TREE)
    began = _now()
    return RunRecord(
        schema=SCHEMA,
        harness=__version__,
        started=began,
        finished=began,
        complete=False,
        exit_status=NOT_ENDED,
        command=list(map(privacy.hide, inputs.command)),
        machine=this_machine(),
        checkpoint=CheckpointRecord(settings.checkpoint.name, settings.fingerprint, settings.checkpoint.window),
        suites={suite.name: suite.sha256 for suite in (sample.suite, sample.answered)},
        policy_sha256=inputs.policy_sha256,
        waivers_sha256=inputs.waivers_sha256,
        sessions=[],
        cases=[],
        environment=recorded(os.environ, privacy),
    )


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
