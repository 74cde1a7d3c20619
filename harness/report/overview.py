"""What a run found, put together for reading: the verdict, a line a target, what failed and why, what did not run."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Sequence

import msgspec

from harness.record import CaseRecord, RunRecord, SessionRecord, WaiverRecord
from harness.report.blame import Blame, blame
from harness.report.figures import count, duration, enumerate_names

ORDER = ("ERROR", "FAIL", "UNATTESTED", "NOT_RUN", "WAIVED", "PASS", "UNSUPPORTED")
"""Outcomes, the one that decides first."""

HARMLESS = ("PASS", "WAIVED", "UNSUPPORTED")
"""Outcomes that do not fail a run."""

_TITLES = {
    "test_attestation": "attestation",
    "test_weights": "weights",
    "test_logits": "prompts",
    "test_logits_of_suite": "suites",
    "test_known_faults": "known faults",
    "test_speed": "speed",
    "test_greedy_form": "form",
    "test_greedy_match": "match",
    "test_greedy_regret": "regret",
    "test_greedy_of_suite": "suites",
}


class Column(msgspec.Struct, frozen=True):
    """A column of the matrix: a test and the suite that it belongs to, with what they are called."""

    test: str
    title: str
    suite: str


class Cell(msgspec.Struct, frozen=True):
    """What became of one test on one target; `outcome` is the one that decides, empty where nothing was judged."""

    outcome: str
    counts: dict[str, int]

    @property
    def cases(self) -> int:
        """How many cases there are."""
        return sum(self.counts.values())

    @property
    def deciding(self) -> int:
        """How many have the outcome that decides."""
        return self.counts.get(self.outcome, 0)

    @property
    def text(self) -> str:
        """`34` or `2/34`: how many cases, and how many of them are behind the outcome if that is not all."""
        return str(self.cases) if self.deciding == self.cases else f"{self.deciding}/{self.cases}"

    @property
    def spoken(self) -> str:
        """The counts in words."""
        known = [(outcome, self.counts[outcome]) for outcome in ORDER if outcome in self.counts]
        return ", ".join(f"{times} {outcome.lower().replace('_', ' ')}" for outcome, times in known) or "no cases"


class TargetRow(msgspec.Struct, frozen=True):
    """One target that was judged; `number` makes anchors of the page."""

    number: int
    target: str
    outcome: str
    counts: dict[str, int]
    cells: tuple[Cell, ...]
    blames: tuple[Blame, ...]
    session: SessionRecord | None
    cases: tuple[CaseRecord, ...]

    @property
    def anchor(self) -> str:
        """The id of the target's part of the page."""
        return f"target-{self.number}"

    @property
    def failing(self) -> int:
        """How many cases fail."""
        return sum(times for outcome, times in self.counts.items() if outcome not in HARMLESS)


class Skip(msgspec.Struct, frozen=True):
    """Why something did not run and what would change that; `what` are targets, or targets with the cases left out."""

    reason: str
    remedy: str
    what: tuple[str, ...]


class Known(msgspec.Struct, frozen=True):
    """A known defect: the waiver, whose fields but the id are empty where the record lists none, and its cases."""

    waiver: WaiverRecord
    cases: tuple[CaseRecord, ...]

    @property
    def targets(self) -> list[str]:
        """The targets that have the defect."""
        return sorted({case.target for case in self.cases})


class Overview(msgspec.Struct, frozen=True):
    """A run at a glance. `state`: pass, fail, incomplete (what was judged passed) or nothing (nothing was judged)."""

    state: str
    headline: str
    summary: str
    columns: tuple[Column, ...]
    rows: tuple[TargetRow, ...]
    absent: tuple[str, ...]
    skips: tuple[Skip, ...]
    known: tuple[Known, ...]
    counts: dict[str, int]

    @property
    def word(self) -> str:
        """The verdict in a word."""
        return {"pass": "PASS", "fail": "FAIL", "incomplete": "INCOMPLETE", "nothing": "NOTHING JUDGED"}[self.state]

    @property
    def failed(self) -> tuple[TargetRow, ...]:
        """The targets that fail."""
        return tuple(row for row in self.rows if row.outcome not in HARMLESS)

    def tone(self, outcome: str) -> str:
        """The tone of an outcome: pass, fail, waived or skip."""
        return tone(outcome)


def tone(outcome: str) -> str:
    """What an outcome looks like: pass, fail, waived, skip, or none."""
    if not outcome:
        return "none"
    return {"PASS": "pass", "WAIVED": "waived", "UNSUPPORTED": "skip"}.get(outcome, "fail")


def look_over(record: RunRecord) -> Overview:
    """A record put together."""
    by_target: dict[str, list[CaseRecord]] = {}
    for case in record.cases:
        by_target.setdefault(case.target, []).append(case)
    judged = {t: cases for t, cases in by_target.items() if any(c.outcome != "UNSUPPORTED" for c in cases)}
    columns = _columns([case for cases in judged.values() for case in cases])
    sessions = {session.target: session for session in record.sessions}
    rows = tuple(
        _row(number, target, cases, columns, sessions.get(target))
        for number, (target, cases) in enumerate(judged.items(), 1)
    )
    absent = tuple(target for target in by_target if target not in judged)
    counts = dict(Counter(case.outcome for case in record.cases))
    state = _state(record, counts)
    return Overview(
        state=state,
        headline=_headline(record, state, rows),
        summary=_summary(record, rows, absent),
        columns=columns,
        rows=rows,
        absent=absent,
        skips=_skips(record.cases, set(absent)),
        known=_known(record),
        counts=counts,
    )


def took(record: RunRecord) -> str:
    """How long a run took, empty where it does not say."""
    try:
        began, ended = (datetime.datetime.fromisoformat(text) for text in (record.started, record.finished))
        return duration((ended - began).total_seconds())
    except (ValueError, TypeError):
        return ""


def deciding(outcomes: Sequence[str]) -> str:
    """The outcome that decides: the gravest there is, a known one before an unknown one; empty where there is none."""
    known = [outcome for outcome in ORDER if outcome in outcomes]
    return known[0] if known else (outcomes[0] if outcomes else "")


def _row(
    number: int, target: str, cases: Sequence[CaseRecord], columns: Sequence[Column], session: SessionRecord | None
) -> TargetRow:
    failing = [case for case in cases if case.outcome not in HARMLESS]
    return TargetRow(
        number=number,
        target=target,
        outcome=deciding([case.outcome for case in cases]),
        counts=dict(Counter(case.outcome for case in cases)),
        cells=tuple(_cell([case for case in cases if case.test == column.test]) for column in columns),
        blames=tuple(blame(failing)),
        session=session,
        cases=tuple(cases),
    )


def _cell(cases: Sequence[CaseRecord]) -> Cell:
    outcomes = [case.outcome for case in cases]
    return Cell(deciding(outcomes), dict(Counter(outcomes)))


def _columns(cases: Sequence[CaseRecord]) -> tuple[Column, ...]:
    """Known tests in the order of judging, others as they come, those of a suite side by side."""
    suites: dict[str, str] = {}
    for case in cases:
        file = case.id.partition("::")[0].rpartition("/")[2]
        suites.setdefault(case.test, file.removesuffix(".py").removeprefix("test_") or case.test)
    known = [test for test in _TITLES if test in suites]
    tests = known + [test for test in suites if test not in _TITLES]
    order = list(dict.fromkeys(suites[test] for test in tests))
    tests.sort(key=lambda test: order.index(suites[test]))
    return tuple(
        Column(test, _TITLES.get(test, test.removeprefix("test_").replace("_", " ")), suites[test]) for test in tests
    )


def _state(record: RunRecord, counts: dict[str, int]) -> str:
    if any(outcome not in HARMLESS for outcome in counts):
        return "fail"
    if not record.complete:
        return "incomplete"
    if not counts.keys() - {"UNSUPPORTED"}:
        return "nothing"
    return "fail" if record.exit_status else "pass"


def _headline(record: RunRecord, state: str, rows: Sequence[TargetRow]) -> str:
    failed = [row.target for row in rows if row.outcome not in HARMLESS]
    if failed:
        verb = "fails" if len(failed) == 1 else "fail"
        return f"{len(failed)} of {count(len(rows), 'target')} {verb}: {enumerate_names(failed)}"
    if state == "nothing":
        return "No target was judged"
    if state == "incomplete":
        return f"The run was cut short; {'what it judged passes' if rows else 'nothing had been judged'}"
    if state == "fail":
        return f"No case fails, but the run ended with status {record.exit_status}"
    passed = f"All {len(rows)} targets pass" if len(rows) > 1 else "The target passes"
    waived = sum(row.outcome == "WAIVED" for row in rows)
    return f"{passed}, {waived} of them but for known defects" if waived else passed


def _summary(record: RunRecord, rows: Sequence[TargetRow], absent: Sequence[str]) -> str:
    parts = []
    outcomes = Counter(tone(row.outcome) for row in rows)
    if outcomes["pass"]:
        parts.append(f"{count(outcomes['pass'], 'target')} pass{'es' if outcomes['pass'] == 1 else ''} every case")
    if outcomes["waived"]:
        parts.append(f"{outcomes['waived']} fail{'s' if outcomes['waived'] == 1 else ''} only by known, waived defects")
    if absent:
        parts.append(f"{count(len(absent), 'target')} could not run here")
    text = "; ".join(parts)
    if not record.complete and record.finished:
        text = f"The run was cut short, so cases are missing. {text[:1].upper()}{text[1:]}"
    return f"{text[:1].upper()}{text[1:]}." if text else "There is nothing to report."


def _skips(cases: Sequence[CaseRecord], absent: set[str]) -> tuple[Skip, ...]:
    groups: dict[tuple[str, str], dict[str, int]] = {}
    for case in cases:
        if case.outcome == "UNSUPPORTED":
            reason, _, remedy = case.message.partition("; ")
            targets = groups.setdefault((reason, remedy), {})
            targets[case.target] = targets.get(case.target, 0) + 1
    return tuple(
        Skip(reason, remedy, tuple(t if t in absent else f"{t} ({count(n, 'case')})" for t, n in targets.items()))
        for (reason, remedy), targets in groups.items()
    )


def _known(record: RunRecord) -> tuple[Known, ...]:
    listed = {waiver.id: waiver for waiver in record.waivers}
    cases: dict[str, list[CaseRecord]] = {name: [] for name in listed}
    for case in record.cases:
        if case.waiver:
            cases.setdefault(case.waiver, []).append(case)
    return tuple(
        Known(listed.get(name, WaiverRecord(name, "", "", "", "")), tuple(found)) for name, found in cases.items()
    )
