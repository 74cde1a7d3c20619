"""A run held against the table of coverage: what was judged that the table has no room for, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

import msgspec

from harness.coverage import Column, Table
from harness.record import CaseRecord, RunRecord, SessionRecord
from harness.target import Target

# What came of a case says whether its test could be run, unless it never got so far or broke off.
_SILENT = ("ERROR", "NOT_RUN")


class Contradiction(msgspec.Struct, frozen=True):
    """A case of a run that the table says otherwise of."""

    target: str
    case: str
    sentence: str


class Cell(msgspec.Struct, frozen=True):
    """What a run made of one test on the targets of a column: how many cases had which outcome, and which waivers."""

    outcomes: dict[str, int]
    waivers: tuple[str, ...]
    absent: int
    """Cases of devices that are not there."""


def check(table: Table, record: RunRecord, *, bundled: bool) -> list[Contradiction]:
    """Every case of a record that was UNSUPPORTED where it ought to run, or ran where it ought not to.

    Left aside are absent devices, backends without a column, and sessions with load options of their own. `bundled`:
    the run was of the bundled checkpoint; of another, only what is said of capabilities counts, since lengths differ.
    """
    sessions = {session.target: session for session in record.sessions}
    found = []
    for case in record.cases:
        session, column = sessions.get(case.target), table.column(Target.parse(case.target))
        if session is None or session.info.load_options or column is None or case.outcome in _SILENT:
            continue
        strict = bundled and session.artifact.origin != "given"
        found += [Contradiction(case.target, case.case, text) for text in _of_case(table, column, case, strict)]
    return found


def _of_case(table: Table, column: Column, case: CaseRecord, strict: bool) -> Iterator[str]:
    row = table.row(case.case)
    if row is None:
        yield "the table has no such test"
        return
    lacking = table.lacking(row, column)
    exemptions = [one for one in table.exemption if one.covers(column, Target.parse(case.target), case.case)]
    if case.outcome == "UNSUPPORTED":
        known = [lack.says for lack in lacking.values()] + [one.says for one in exemptions]
        if not _says(case.message, known) and (strict or _says(case.message, _every_lack(table))):
            yield f"UNSUPPORTED, though {column.id} {_offers(table, row, lacking)}: {case.message.splitlines()[0]}"
        return
    ran = f"{case.outcome}, though {column.id}"
    for capability, lack in lacking.items():
        yield f"{ran} lacks {capability}: {lack.reason}"
    for one in exemptions:
        if strict or one.kind == "design":
            yield f"{ran} is exempted: {one.reason}"


def _says(message: str, patterns: Iterable[str]) -> bool:
    return any(pattern and re.search(pattern, message) for pattern in patterns)


def _every_lack(table: Table) -> list[str]:
    return [lack.says for column in table.backend for lack in column.lacks.values()]


def _offers(table: Table, row: str, lacking: Mapping[str, object]) -> str:
    """What the table says that a column offers of what a row needs, or lacks for another reason than was given."""
    if lacking:
        return f"lacks {' and '.join(lacking)} for another reason"
    return f"offers {' and '.join(table.needs(row)) or 'all that it needs'}"


def cells(table: Table, record: RunRecord) -> dict[tuple[str, str], Cell]:
    """What a run made of each row in each column, by both names; nothing of what was not run."""
    sessions = {session.target: session for session in record.sessions}
    found: dict[tuple[str, str], list[CaseRecord]] = {}
    for case in record.cases:
        row, column = table.row(case.case), table.column(Target.parse(case.target))
        if row is not None and column is not None:
            found.setdefault((row, column.id), []).append(case)
    return {key: _cell(cases, sessions) for key, cases in found.items()}


def _cell(cases: list[CaseRecord], sessions: Mapping[str, SessionRecord]) -> Cell:
    here = [case for case in cases if case.outcome != "UNSUPPORTED" or case.target in sessions]
    outcomes: dict[str, int] = {}
    for case in here:
        outcomes[case.outcome] = outcomes.get(case.outcome, 0) + 1
    waivers = sorted({case.waiver for case in here if case.outcome == "WAIVED" and case.waiver})
    return Cell(outcomes, tuple(waivers), len(cases) - len(here))
