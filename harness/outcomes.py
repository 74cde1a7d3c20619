"""From what pytest saw of an item to the outcome of its case, waivers included."""

from __future__ import annotations

import datetime
import shlex
import subprocess
import sys

import msgspec
import pytest

from harness.compare import Outcome, Verdict
from harness.entries import session_record
from harness.errors import HarnessError, NotRun, StageError, Unsupported
from harness.fixtures import JUDGE, SESSION, STARTED, CaseId
from harness.judge import CaseFailed
from harness.options import DEFAULT_CHECKPOINT, POLICY, WAIVERS
from harness.record import CaseRecord
from harness.state import State, as_plain
from harness.waivers import Waiver, applying_waivers

# Options without which a case is another one.
_SHAPING = (
    *("checkpoint", "golden", "prompts", "artifact", "recipe", "load_option"),
    *("interpreter", "host", "policy", "waivers", "stage_timeout", "worker_memory", "memory", "minutes"),
)


# Seconds that a case's set-up took, without the start of a session.
_SET_UP: pytest.StashKey[float] = pytest.StashKey()


class Finding(msgspec.Struct, frozen=True):
    """An outcome with the verdict behind it, and the stage where it is an ERROR."""

    verdict: Verdict
    stage: str | None = None
    traceback: bool = False
    """Whether it is a defect of a test or of the harness, whose traceback pytest must show."""

    @property
    def label(self) -> str:
        """`FAIL`, `ERROR(run)` and so on, as waivers write it."""
        return f"{self.verdict.outcome.value}({self.stage})" if self.stage else self.verdict.outcome.value


def conclude(
    state: State, item: pytest.Item, case: CaseId, call: pytest.CallInfo[None], report: pytest.TestReport
) -> None:
    """Give the report of a conformance item its outcome; adds `report.conformance` once a case."""
    finding = _finding(item, call, report)
    if finding is None:
        if report.when == "setup":
            item.stash[_SET_UP] = call.duration - _starting(item)
        return
    waiver, judged = None, finding.label
    if finding.verdict.outcome is not Outcome.UNSUPPORTED:
        finding, waiver = _waived(state, item, case, finding)
    _show(report, item, finding, waiver)
    judge = item.stash.get(JUDGE, None)
    record = CaseRecord(
        id=item.nodeid,
        test=case.test,
        target=str(case.target),
        case=case.case,
        outcome=finding.verdict.outcome.value,
        stage=finding.stage,
        numbers=finding.verdict.numbers,
        limits=finding.verdict.limits,
        message=finding.verdict.message,
        waiver=None if waiver is None else waiver.id,
        seconds=call.duration + item.stash.get(_SET_UP, 0.0),
        judged="" if waiver is None else judged,
        detail=judge.detail if judge is not None else None,
    )
    session = item.session.stash.get(SESSION, None)
    kept = session_record(session) if session is not None and session.target == case.target else None
    plain = {"case": as_plain(record), "session": None if kept is None else as_plain(kept)}
    report.conformance = plain  # type: ignore[attr-defined]


def _starting(item: pytest.Item) -> float:
    """How much of a set-up was the start of the target's session, which its timings have: counted once."""
    started = item.session.stash.get(STARTED, 0.0)
    item.session.stash[STARTED] = 0.0
    return started


def _finding(item: pytest.Item, call: pytest.CallInfo[None], report: pytest.TestReport) -> Finding | None:
    """What this phase says of the case; None where another phase decides."""
    error = call.excinfo.value if call.excinfo is not None else None
    if report.when == "setup" and error is None:
        return None
    if report.when == "teardown":
        return None if error is None else _of_error(error)
    if isinstance(error, pytest.skip.Exception):
        return Finding(Verdict(Outcome.UNSUPPORTED, {}, {}, str(error.msg)))
    if error is not None:
        return _of_error(error)
    judge = item.stash.get(JUDGE, None)
    if judge is None or not judge.verdicts:
        return Finding(Verdict(Outcome.FAIL, {}, {}, "the test ended without judging anything"))
    return Finding(judge.verdicts[-1])


def _of_error(error: BaseException) -> Finding | None:
    if isinstance(error, CaseFailed):
        return Finding(error.verdict)
    if isinstance(error, StageError):
        return Finding(Verdict(Outcome.ERROR, {}, {}, str(error)), error.stage.value)
    if isinstance(error, Unsupported):
        return Finding(Verdict(Outcome.UNSUPPORTED, {}, {}, str(error)))
    if isinstance(error, NotRun):
        return Finding(Verdict(Outcome.NOT_RUN, {}, {}, str(error)))
    if isinstance(error, HarnessError):
        return Finding(Verdict(Outcome.ERROR, {}, {}, str(error)), "compare")
    if isinstance(error, (KeyboardInterrupt, pytest.exit.Exception)):
        return None  # the run ends; this case has no outcome
    return Finding(Verdict(Outcome.ERROR, {}, {}, f"{type(error).__name__}: {error}"), "compare", traceback=True)


def _waived(state: State, item: pytest.Item, case: CaseId, finding: Finding) -> tuple[Finding, Waiver | None]:
    session = item.session.stash.get(SESSION, None)
    loaded = session if session is not None and session.target == case.target else None
    versions = loaded.versions() if loaded is not None else {}
    computes = loaded.info.arithmetic if loaded is not None and loaded.info is not None else None
    checkpoint = state.checkpoint()[0].name
    applying = applying_waivers(state.waivers(), case.target, case.case, checkpoint, versions, computes)
    if not applying:
        return finding, None
    verdict = finding.verdict
    waiver = next((w for w in applying if w.expects(finding.label, verdict.message)), None)
    if waiver is None and verdict.outcome is not Outcome.PASS:
        return finding, None
    waiver = waiver or applying[0]
    if waiver.expired(datetime.date.today()):
        note = f"waiver {waiver.id!r} expired on {waiver.expires}: look at {waiver.url}, then extend or delete it"
        return _changed(finding, Outcome.FAIL, f"{verdict.message}\n  {note}".strip()), waiver
    if verdict.outcome is Outcome.PASS:
        note = (
            f"passes, though waiver {waiver.id!r} expects {' or '.join(waiver.outcomes)}: delete or narrow the waiver"
        )
        return _changed(finding, Outcome.FAIL, f"{case.target}  {case.case} {note}"), waiver
    return _changed(finding, Outcome.WAIVED, verdict.message), waiver


def _changed(finding: Finding, outcome: Outcome, message: str) -> Finding:
    return Finding(msgspec.structs.replace(finding.verdict, outcome=outcome, message=message))


def _show(report: pytest.TestReport, item: pytest.Item, finding: Finding, waiver: Waiver | None) -> None:
    """Make pytest's report say what the finding says."""
    outcome = finding.verdict.outcome
    if outcome is Outcome.PASS:
        report.outcome = "passed"
    elif outcome is Outcome.WAIVED and waiver is not None:
        report.outcome = "skipped"
        report.wasxfail = f"{waiver.id}: {waiver.reason} ({waiver.url})"
        report.longrepr = finding.verdict.message
    elif outcome is Outcome.UNSUPPORTED and report.outcome != "skipped":
        report.outcome = "skipped"
        report.longrepr = (str(item.path), item.location[1] or 0, f"Skipped: {finding.verdict.message}")
    elif outcome is not Outcome.UNSUPPORTED:
        report.outcome = "failed"
        if not finding.traceback:
            words = ["pytest", *_given_options(item.config), item.nodeid]
            command = subprocess.list2cmdline(words) if sys.platform == "win32" else shlex.join(words)
            report.longrepr = f"{finding.label}\n{finding.verdict.message}\n  reproduce: {command}"


def _given_options(config: pytest.Config) -> list[str]:
    """The options of this run without which a case is another: as given, in the form `--name=value`."""
    given = []
    for name in _SHAPING:
        value = config.getoption(name)
        if value not in (None, []) and not _is_default(name, value):
            values = value if isinstance(value, list) else [value]
            given += [f"--{name.replace('_', '-')}={item}" for item in values]
    return given


def _is_default(name: str, value: object) -> bool:
    defaults = {"checkpoint": str(DEFAULT_CHECKPOINT), "policy": POLICY, "waivers": WAIVERS}
    return name in defaults and value == defaults[name]
