"""The table of coverage as text for a terminal, and as the Markdown that is kept in docs/coverage.md."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from harness.coverage import Column, Suite, Table
from harness.coverage_check import Cell

Cells = Mapping[tuple[str, str], Cell]
"""What a run made of a row in a column, by both names."""

_HEAD = """\
# What is covered

This is the output of `phi3-conformance coverage --markdown`, from
[conformance/coverage.toml](../conformance/coverage.toml). Tests hold it against the suites, against what each adapter
offers and against the planted faults; `phi3-conformance coverage --record FILE` holds a run against it, and ends with
status 1 where a case could not be run that ought to be, or the other way round.

`yes`: judged. `part`: some cases are UNSUPPORTED, see [below](#cases-that-are-left-out). `no`: UNSUPPORTED, with what
the backend lacks. A device that is not here is skipped, whatever the table says.
"""
_BOUNDS = """\
By the nature of a runtime (`design`), or by a length (`length`) of the bundled checkpoint at the runtime's defaults,
which may be another with another checkpoint or with load options.
"""
_DEFECTS = """\
Each was reported by users of a runtime or measured; [field-defects.md](field-defects.md) says how each is imitated
and found. First the tests that fail on a device which has it, then the harness's own tests in which a planted fault
imitates it.
"""


class _Grid(msgspec.Struct):
    """A table of texts: its header and its rows."""

    header: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """As a table of Markdown."""
        lines = [self.header, ["---"] * len(self.header), *self.rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)

    def text(self) -> str:
        """In columns as wide as they must be."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [self.header, *self.rows]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        return "\n".join("  ".join(line).rstrip() for line in padded)


def describe_coverage(table: Table, found: Cells | None = None) -> str:
    """The tables as text: suites by backend, capabilities by backend, defects by test. With `found`, of a run."""
    parts = [
        f"{suite.id}: {suite.asks}{_sharper(suite)}\n{_suite(table, suite, found).text()}" for suite in table.suite
    ]
    parts += [f"capabilities\n{_capabilities(table).text()}", "\n".join(_reasons(table)), "\n".join(_exemptions(table))]
    for defect in table.defect:
        lines = [f"defect {defect.number}: {defect.what}", *(f"  source     {one}" for one in defect.sources)]
        lines += [f"  caught by  {_with_run(table, test, found)}" for test in defect.caught_by]
        lines += [f"  proved by  {one}" for one in defect.proved_by]
        parts.append("\n".join(lines))
    return "\n\n".join(part for part in parts if part)


def markdown_coverage(table: Table, found: Cells | None = None) -> str:
    """The same as a page of Markdown."""
    parts = [_HEAD, "## Suites by backend"]
    for suite in table.suite:
        parts += [f"### {suite.id}", f"{suite.asks}{_sharper(suite)}", _suite(table, suite, found, code="`").markdown()]
    parts += ["## Capabilities by backend", _capabilities(table, code="`").markdown(), "\n".join(_reasons(table, "- "))]
    parts += ["## Cases that are left out", _BOUNDS.strip(), "\n".join(_exemptions(table, "- "))]
    parts += ["## Defects of the field", _DEFECTS.strip(), _defects(table).markdown()]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _suite(table: Table, suite: Suite, found: Cells | None, code: str = "") -> _Grid:
    rows = []
    for test, needs in suite.tests.items():
        cells = [_cell(table, test, column, found) for column in table.backend]
        rows.append([f"{code}{test}{code}", ", ".join(needs) or "-", *cells])
    return _Grid(["test", "needs", *(column.id for column in table.backend)], rows)


def _cell(table: Table, row: str, column: Column, found: Cells | None) -> str:
    """What the table says of a row in a column; with a run, what that made of it."""
    lacking = table.lacking(row, column)
    if lacking:
        return f"no: {', '.join(lacking)}"
    if found is not None:
        return _ran(found.get((row, column.id)))
    part = any(one.covers_column(column) and one.covers_row(row) for one in table.exemption)
    return "part" if part else "yes"


def _ran(cell: Cell | None) -> str:
    """`PASS 12, WAIVED 2 (ort-genai-window-error)`."""
    if cell is None:
        return "not run"
    if not cell.outcomes:
        return "absent"
    parts = [f"{outcome} {count}" for outcome, count in sorted(cell.outcomes.items())]
    named = f" ({', '.join(cell.waivers)})" if cell.waivers else ""
    return ", ".join(part + named * part.startswith("WAIVED") for part in parts)


def _capabilities(table: Table, code: str = "") -> _Grid:
    rows = [
        [f"{code}{one.id}{code}", one.meaning, *("no" if one.id in column.lacks else "yes" for column in table.backend)]
        for one in table.capability
    ]
    return _Grid(["capability", "meaning", *(column.id for column in table.backend)], rows)


def _reasons(table: Table, mark: str = "  ") -> list[str]:
    return [
        f"{mark}{column.id} lacks {capability}: {lack.reason}"
        for column in table.backend
        for capability, lack in column.lacks.items()
    ]


def _exemptions(table: Table, mark: str = "  ") -> list[str]:
    lines = []
    for one in table.exemption:
        where = ", ".join(one.backends) or "any backend"
        if one.targets != ("*",):
            where += f" on {', '.join(one.targets)}"
        lines.append(f"{mark}{where}, {', '.join(one.cases)} ({one.kind}): {one.reason}")
    return lines


def _defects(table: Table) -> _Grid:
    rows = [
        [
            str(defect.number),
            defect.what,
            "<br>".join(_link(source) for source in defect.sources),
            "<br>".join(f"`{test}`" for test in defect.caught_by),
            "<br>".join(f"`{test}`" for test in defect.proved_by),
        ]
        for defect in table.defect
    ]
    return _Grid(["", "what happened", "source", "caught by", "proved by"], rows)


def _link(source: str) -> str:
    """`https://github.com/owner/name/issues/5` as a link named `name#5`; other sources as they are."""
    parts = source.removeprefix("https://github.com/").split("/")
    return f"[{parts[1]}#{parts[3]}]({source})" if source.startswith("https://github.com/") else source


def _with_run(table: Table, test: str, found: Cells | None) -> str:
    """A test, and with a run what it made of it in each column."""
    row = table.row(test)
    if found is None or row is None:
        return test
    ran = {column.id: found.get((row, column.id)) for column in table.backend}
    return f"{test}: {'; '.join(f'{name} {_ran(cell)}' for name, cell in ran.items() if cell is not None) or 'not run'}"


def _sharper(suite: Suite) -> str:
    """What makes a suite's verdicts sharper, as a sentence."""
    return f" Sharper with {', '.join(suite.uses)}." if suite.uses else ""
