"""An audit as text: a line for each kind of tensor, what was found, and what could not be looked at."""

from __future__ import annotations

import re
from collections import defaultdict

from rich.table import Table

from harness.findings import AuditReport, TensorFigures
from harness.report.terminal import render

_LAYER = re.compile(r"\.layers\.\d+\.")
_SHOWN = 20
_DULL = ("", "[]", "False")


def describe_audit(report: AuditReport, width: int, encoding: str) -> str:
    """The report as text that `encoding` can hold."""
    parts = [f"{report.scheme}; {_exporter(report)}", "", render(_table(report), width, encoding)]
    parts.append("Worst: the largest distance of a code from its weight, in steps, or of a float value from its own.")
    parts.append(_stated(report))
    parts.append("")
    parts += [f"  {finding.sentence}" for finding in report.findings[:_SHOWN]]
    if report.count > _SHOWN:
        left = report.count - min(_SHOWN, len(report.findings))
        parts.append(f"  and {left} more; --json has the first of each tensor")
    parts.append(_conclusion(report))
    text = "\n".join(parts)
    return text.encode(encoding, errors="replace").decode(encoding)


def _exporter(report: AuditReport) -> str:
    told = {name: value for name, value in report.stated.items() if len(value) <= 24 and value not in _DULL}
    said = ", ".join(f"{name} {value}" for name, value in told.items())
    return f"by its own account {said}" if said else "it says nothing of how it was made"


def _table(report: AuditReport) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("tensor", no_wrap=True)
    for name in ("tensors", "stored", "group", "scales are", "follow", "moved", "worst", "flagged"):
        table.add_column(name, justify="right", no_wrap=True)
    kinds: dict[tuple[str, str, int, str], list[TensorFigures]] = defaultdict(list)
    for figures in report.tensors:
        name = _LAYER.sub(".layers.*.", figures.tensor)
        kinds[name, figures.stored, figures.group, figures.grid].append(figures)
    for (name, stored, group, grid), members in kinds.items():
        quantised = group > 0
        table.add_row(
            name,
            str(len(members)),
            stored,
            str(group) if quantised else "-",
            grid or "-",
            f"{100 * min(figures.follow for figures in members):.2f} %" if quantised else "-",
            f"{100 * max(figures.moved for figures in members):.2g} %",
            f"{max(figures.worst for figures in members):.3g}",
            str(sum(figures.flagged for figures in members)),
        )
    return table


def _stated(report: AuditReport) -> str:
    lines = []
    if report.judged:
        names = ", ".join(f"{name} ({times})" for name, times in sorted(report.judged.items()))
        lines.append(f"Stated beside the weights, and held against the checkpoint: {names}.")
    if report.unstated:
        names = ", ".join(report.unstated)
        lines.append(f"Not stated, or in a form that is not recognised, and so not looked at: {names}.")
    return "\n".join(lines)


def _conclusion(report: AuditReport) -> str:
    if not report.tensors:
        return "nothing was audited: the artifact holds no tensors"
    if report.count:
        return f"{report.count} finding{'s' if report.count > 1 else ''}"
    return f"clean: {len(report.tensors)} tensors are the checkpoint's, stored as the artifact says"
