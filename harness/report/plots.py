"""The plot of the three errors: a row to a target, on one log scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.report.apart import ErrorsApart, Judged
from harness.report.canvas import COLOURS, NARROW, WIDE, Plot, logarithmic, place, plot, shorten
from harness.report.figures import ratio

# Errors below this are equal in FP32; a log scale that went on down would show nothing else.
_FLOOR = 1e-9


def plot_errors(rows: Sequence[ErrorsApart]) -> Plot | None:
    """The errors of every target beside yardsticks and limits; None where there is nothing to draw."""
    shown = [row for row in rows if math.isfinite(row.total)]
    if not shown:
        return None
    pitch = (30, 46)
    tops = (48, 90)
    heights = tuple(top + len(shown) * step + 46 for top, step in zip(tops, pitch, strict=True))

    def draw(figure: Figure, narrow: bool) -> None:
        step, top = pitch[narrow], tops[narrow]
        left, right = (8, 12) if narrow else (192, 132)
        width = (NARROW if narrow else WIDE) - left - right
        axes = place(figure, left, top, width, len(shown) * step)
        axes.set(xscale="log", ylim=(len(shown) - 0.5, -0.5), yticks=[])
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel("centred RMS error, logits (log scale)", fontsize=9)
        for line, row in enumerate(shown):
            _draw_row(axes, line, row, narrow)
        logarithmic(axes, "x", 5 if narrow else 9)
        figure.legend(
            handles=_legend_of_errors(), loc="upper left", ncols=2 if narrow else 4, fontsize=9,
            bbox_to_anchor=(0, 1), borderaxespad=0, handletextpad=0.4, columnspacing=1.4,
        )  # fmt: skip

    label = f"The errors of {len(shown)} targets on one log scale, beside their yardsticks and limits"
    return plot("errors", label, draw, (heights[0], heights[1]))


def _draw_row(axes: Axes, line: int, row: ErrorsApart, narrow: bool) -> None:
    if line:
        axes.axhline(line - 0.5, color=COLOURS["line"], linewidth=0.5)
    middle = line + (0.17 if narrow else 0)
    _point(axes, row.total, middle, marker="o", markersize=5, markerfacecolor="none", color=COLOURS["total"])
    _judged(axes, row.quantisation, middle - 0.16, COLOURS["quantisation"], "o")
    if math.isfinite(row.yardstick):
        _point(
            axes,
            row.yardstick,
            middle + 0.16,
            marker="|",
            markersize=9,
            color=COLOURS["yardstick"],
            markeredgewidth=1.6,
        )
    _judged(axes, row.implementation, middle + 0.16, COLOURS["implementation"], "D")
    transform = axes.get_yaxis_transform()
    name: dict[str, Any] = {"family": "monospace", "fontsize": 9}
    if narrow:
        axes.text(0, line - 0.27, shorten(row.target, 30), transform=transform, va="center", **name)
    else:
        axes.text(-0.015, line, shorten(row.target, 26), transform=transform, ha="right", va="center", **name)
    text, colour = _how_far(row)
    x, y = (1, line - 0.27) if narrow else (1.015, line)
    axes.text(x, y, text, transform=transform, ha="right" if narrow else "left", va="center", color=colour, fontsize=9)


def _how_far(row: ErrorsApart) -> tuple[str, str]:
    if row.implementation is None:
        return "total error only", COLOURS["muted"]
    text = f"{ratio(row.times)} of {ratio(row.allowed)}" if math.isfinite(row.allowed) else ratio(row.times)
    if not row.implementation.exceeded:
        return text, COLOURS["muted"]
    return (f"~ {text}", COLOURS["waived"]) if row.implementation.waived else (f"✗ {text}", COLOURS["fail"])


def _judged(axes: Axes, found: Judged | None, line: float, colour: str, marker: str) -> None:
    """From the typical prompt to the worst, the limit, and a ring where a limit is exceeded."""
    if found is None:
        return
    axes.plot([max(found.typical, _FLOOR), max(found.worst, _FLOOR)], [line, line], color=colour, linewidth=1.5)
    _point(axes, found.limit, line, marker="|", markersize=11, color=colour, markeredgewidth=2.6)
    _point(axes, found.worst, line, marker=marker, markersize=5, color=colour)
    if found.exceeded:
        _point(
            axes, found.worst, line, marker="o", markersize=11, markerfacecolor="none",
            color=COLOURS["waived" if found.waived else "fail"], markeredgewidth=1.5,
        )  # fmt: skip


def _point(axes: Axes, value: float, line: float, **style: Any) -> None:
    if math.isfinite(value):
        axes.plot([max(value, _FLOOR)], [line], linestyle="none", **style)


def _legend_of_errors() -> list[Line2D]:
    def mark(label: str, role: str, **style: Any) -> Line2D:
        return Line2D([], [], linestyle="none", color=COLOURS[role], label=label, **style)

    return [
        mark("quantisation", "quantisation", marker="o", markersize=5),
        mark("its limit", "quantisation", marker="|", markersize=11, markeredgewidth=2.6),
        mark("implementation", "implementation", marker="D", markersize=5),
        mark("its limit", "implementation", marker="|", markersize=11, markeredgewidth=2.6),
        mark("total", "total", marker="o", markersize=5, markerfacecolor="none"),
        mark("yardstick", "yardstick", marker="|", markersize=9, markeredgewidth=1.6),
        mark("beyond a limit", "fail", marker="o", markersize=10, markerfacecolor="none", markeredgewidth=1.5),
        Line2D([], [], color=COLOURS["muted"], linewidth=1.5, label="typical to worst prompt"),
    ]
