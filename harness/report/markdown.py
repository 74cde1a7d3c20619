"""The report of a run as Markdown for a pull request.

The verdict, why, the matrix, the three errors, what is waived and what was skipped; long lists are cut. Text of the
record is escaped: it makes no markup, mentions nobody and links to nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from harness.record import RunRecord
from harness.report.apart import ErrorsApart, errors_apart, prompt_of
from harness.report.figures import count, number, ratio, share
from harness.report.overview import Overview, TargetRow, look_over, took
from harness.report.page import sign

# GitHub refuses a comment of more than 65536 letters; what is long stands in the HTML.
_MOST_CARDS = 20
_MOST_ROWS = 60
_LETTERS = 300
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+!|~$&-])")


def to_markdown(record: RunRecord) -> str:
    """The report, which ends with a line break."""
    view = look_over(record)
    name = record.checkpoint.name if record.checkpoint is not None else "no checkpoint"
    about = " · ".join(part for part in (escape(name), escape(record.started), took(record)) if part)
    parts = [f"## {view.word}: {escape(view.headline)}", f"{escape(view.summary)}\n\n{about}"]
    if not record.complete:
        parts.append("> **INCOMPLETE**: the run was cut short. What is missing was not judged.")
    parts += [
        _failures(view),
        _matrix(view),
        _errors(errors_apart(view.rows)),
        _known(view),
        _skips(view),
        _origin(record),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Text of one line in which no letter means anything to Markdown, and which mentions nobody."""
    line = " ".join(text.split())
    line = line if len(line) <= _LETTERS else f"{line[:_LETTERS]}…"
    return _SPECIAL.sub(r"\\\1", line).replace("@", "@\u200b").replace("://", ":\u200b//")


def code(text: str) -> str:
    """Text of one line in a code span, in which nothing but its end means anything; safe in a cell of a table."""
    line = " ".join(text.split()).replace("`", "ˋ").replace("|", "¦")
    return f"`{line[:_LETTERS] or ' '}`"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], right_from: int) -> str:
    """A table of cells that are Markdown already; columns from `right_from` on are aligned to the right."""
    marks = ["---" if at < right_from else "---:" for at in range(len(head))]
    lines = [head, marks, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _failures(view: Overview) -> str:
    lines = []
    for row in view.failed[:_MOST_CARDS]:
        failing = f"{row.failing} of {count(len(row.cases), 'case')}"
        lines.append(f"- **{code(row.target)}** {row.outcome.replace('_', ' ')}, {failing}")
        lines += [f"  - {line}" for line in _why(row)]
    if len(view.failed) > _MOST_CARDS:
        lines.append(f"- and {len(view.failed) - _MOST_CARDS} more targets")
    return "### What failed, and why\n\n" + "\n".join(lines) if lines else ""


def _why(row: TargetRow) -> list[str]:
    lines = []
    for found in row.blames:
        where = f" on {code(prompt_of(found.case))}" if prompt_of(found.case) else ""
        cases = count(len(found.cases), "case")
        lines.append(f"**{found.cause.label}** in {cases}. {found.cause.meaning} {escape(found.cause.text)}{where}")
    if row.session is not None and row.session.first_bad:
        lines.append(escape(row.session.first_bad))
    return lines


def _matrix(view: Overview) -> str:
    if not view.rows:
        return ""
    head = ["target", *(f"{column.suite}: {column.title}" for column in view.columns)]
    rows = []
    for row in view.rows[:_MOST_ROWS]:
        cells = [f"{sign(cell.outcome)} {cell.text}" if cell.cases else "" for cell in row.cells]
        rows.append([code(row.target), *cells])
    legend = "✓ pass, ✗ fail, ~ known defect that is waived, – could not run here"
    return f"### Targets by suites\n\n{table([escape(text) for text in head], rows, 1)}\n\n{legend}"


def _errors(errors: Sequence[ErrorsApart]) -> str:
    if not errors:
        return ""
    head = ["target", "weight audit", "quantisation, mean KL", "implementation, yardsticks", "total, mean KL", "top-1"]
    rows = []
    for one in errors[:_MOST_ROWS]:
        audit = "not audited" if one.findings is None else count(one.findings, "finding") if one.findings else "clean"
        apart = f"{ratio(one.times)} of {ratio(one.allowed)}" if one.implementation is not None else "not taken apart"
        if one.implementation is not None and one.implementation.exceeded:
            apart = f"**{apart}**"
        kl = number(one.quantisation_kl) if one.quantisation is not None else "–"
        rows.append(
            [code(one.target), audit, kl, apart, _or_dash(one.kl_mean), share(one.top1) if one.top1 >= 0 else "–"]
        )
    note = "KL in nat; implementation: the worst prompt, of what is allowed."
    return f"### The three errors\n\n{table(head, rows, 2)}\n\n{note}"


def _or_dash(value: float) -> str:
    return "–" if math.isnan(value) else number(value)


def _known(view: Overview) -> str:
    lines = []
    for found in view.known:
        waiver = found.waiver
        terms = ", ".join(part for part in (waiver.owner, waiver.expires and f"expires {waiver.expires}") if part)
        reason = f": {escape(waiver.reason)}" if waiver.reason else ""
        in_brackets = f" ({escape(terms)})" if terms else ""
        lines.append(f"- {code(waiver.id)}, {count(len(found.cases), 'case')}{reason}{in_brackets}")
    return "### Known defects, waived\n\n" + "\n".join(lines) if lines else ""


def _skips(view: Overview) -> str:
    lines = []
    for skip in view.skips:
        targets = ", ".join(code(target) for target in skip.what[:12]) + (" …" if len(skip.what) > 12 else "")
        lines.append(
            f"- {targets}<br>{escape(skip.reason)}" + (f"<br>Remedy: {escape(skip.remedy)}" if skip.remedy else "")
        )
    if not lines:
        return ""
    title = f"Not run here: {count(len(view.absent), 'target')}" if view.absent else "Not run here: single cases"
    return f"<details><summary>{title}</summary>\n\n" + "\n".join(lines) + "\n\n</details>"


def _origin(record: RunRecord) -> str:
    machine = record.machine
    lines = [f"- {escape(machine.processor)}, {escape(machine.system)} {escape(machine.release)}"]
    for found in machine.accelerators:
        lines.append(f"- {escape(found.name)}, driver {escape(found.driver_version)}")
    lines.append(f"- {code(' '.join(record.command))}, phi3-conformance {escape(record.harness)}")
    return "<details><summary>Machine and command</summary>\n\n" + "\n".join(lines) + "\n\n</details>"
