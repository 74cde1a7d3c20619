"""Plots of two runs: errors by position of both, and speed as after over before, with its noise."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from harness.diff.speed import FIRST_TOKEN, TOKEN, SpeedChange
from harness.report.canvas import COLOURS, NARROW, WIDE, Plot, logarithmic, place, plot
from harness.report.diff_positions import Both, Line
from harness.report.figures import number
from harness.report.panels import Frame, Panel, apart, draw_panels, span

_BEFORE: dict[str, Any] = {"color": COLOURS["quantisation"], "linewidth": 1.4}
_AFTER: dict[str, Any] = {"color": COLOURS["fail"], "linewidth": 1.6}
_YARDSTICK: dict[str, Any] = {"color": COLOURS["yardstick"], "linewidth": 1, "linestyle": (0, (1, 1.5))}
_BOUND: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 0.9, "linestyle": (0, (2, 2))}
_RATIO: dict[str, Any] = {"color": COLOURS["quantisation"], "linewidth": 1.2}
_NOISE: dict[str, Any] = {"color": COLOURS["muted"], "alpha": 0.22, "linewidth": 0}
# Where a ratio spans more than this, a linear scale would press the others flat.
_FAR = 4.0
_FLOOR = 1e-9


def plot_both(found: Both) -> Plot:
    """The errors by position of one case, before and after, on a log scale."""
    lines = (found.before, found.after, found.yardstick)
    last = max((x for positions, _ in lines for x in positions), default=1)
    ends = [(found.prefill - 0.5, "answer")] if 0 < found.prefill <= last else []
    ends += [(float(found.window), "window")] if found.window and found.window <= last else []
    legend = [Line2D([], [], label="before", **_BEFORE), Line2D([], [], label="after", **_AFTER)]
    legend += [Line2D([], [], label="yardstick", **_YARDSTICK)] if found.yardstick[0] else []
    label = f"{found.what} by position on {found.prompt}, {found.target}, before and after"

    def draw(figure: Figure, narrow: bool) -> None:
        width = (NARROW if narrow else WIDE) - 66
        axes = place(figure, 58, 44, width, 190)
        errors = [error for _, values in lines for error in values]
        axes.set(yscale="log", xlim=(-0.5, last + 0.5), ylim=span(errors))
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 12, integer=True))
        axes.grid(axis="y")
        axes.set_xlabel("position", fontsize=8.5)
        axes.set_ylabel(f"{found.what.lower().replace('kl', 'KL')}, {found.unit}", fontsize=8.5)
        for at, what in ends:
            axes.axvline(at, **_BOUND)
            style: dict[str, Any] = {"ha": "left" if at == max(ends)[0] else "right", "fontsize": 8.5}
            style |= {"transform": axes.get_xaxis_transform(), "color": COLOURS["muted"]}
            axes.text(at, 1.02, f" {what} ", **style)
        for line, style in zip(lines, (_BEFORE, _AFTER, _YARDSTICK), strict=True):
            axes.plot(*_drawn(line), **style)
        wild = [x for x, y in zip(*found.after, strict=True) if not math.isfinite(y)]
        crosses: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "color": COLOURS["fail"], "markersize": 4}
        axes.plot(wild, [0.97] * len(wild), "x", **crosses)
        logarithmic(axes, "y", 6)
        figure.legend(
            handles=legend, loc="upper left", ncols=3, fontsize=9, bbox_to_anchor=(0, 1),
            borderaxespad=0, borderpad=0.1, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip

    return plot("both", label, draw, (276, 276))


def _drawn(line: Line) -> tuple[list[int], list[float]]:
    return line[0], [max(y, _FLOOR) if math.isfinite(y) else math.nan for y in line[1]]


def plot_ratios(changes: Sequence[SpeedChange], slow: Sequence[SpeedChange], *, first_token: bool) -> Plot | None:
    """After over before by length of prompt, a panel to a target, the noise as a band; marked are those in `slow`."""
    what = FIRST_TOKEN if first_token else TOKEN
    found: dict[str, list[SpeedChange]] = defaultdict(list)
    for change in changes:
        if change.what == what:
            found[change.target].append(change)
    if not found:
        return None
    bounds = [bound for ones in found.values() for one in ones for bound in _bounds(one)]
    low, high = min(0.9, *bounds), max(1.1, *bounds)
    room = 0.06 * (high - low)
    lengths = apart([one.prompt_tokens for ones in found.values() for one in ones])
    frame = Frame(
        "tokens of the prompt",
        "after / before",
        (lengths[0] / 1.4, lengths[-1] * 1.4),
        (low / 1.1, high * 1.1) if high / low > _FAR else (max(low - room, 0), high + room),
        logarithmic_x=True,
        logarithmic_y=high / low > _FAR,
    )
    panels = [
        Panel(target, partial(_draw_ratios, ones, lengths), "fail" if any(one in slow for one in ones) else "")
        for target, ones in found.items()
    ]
    label = f"{what.capitalize()}, after over before by length of prompt, for {len(found)} targets"
    return draw_panels("ratio-first" if first_token else "ratio-token", label, frame, panels, _legend())


def _bounds(change: SpeedChange) -> tuple[float, ...]:
    return (change.ratio, change.noise, 1 / change.noise) if change.noise is not None else (change.ratio,)


def _draw_ratios(ones: Sequence[SpeedChange], lengths: Sequence[int], axes: Axes) -> None:
    known = [one for one in ones if one.noise is not None]
    xs = [float(one.prompt_tokens) for one in known]
    noise = [one.noise for one in known if one.noise is not None]
    if len(known) == 1:
        xs, noise = [xs[0] / 1.2, xs[0] * 1.2], noise * 2
    axes.fill_between(xs, [1 / one for one in noise], noise, **_NOISE)
    axes.axhline(1, color=COLOURS["muted"], linewidth=0.9)
    axes.plot([one.prompt_tokens for one in ones], [one.ratio for one in ones], **_RATIO)
    for one in ones:
        colour = COLOURS["implementation" if one.beyond and one.ratio > 1 else "quantisation"]
        fill = colour if one.beyond else COLOURS["surface"]
        axes.plot([one.prompt_tokens], [one.ratio], "o", markersize=5, color=colour, markerfacecolor=fill)
    axes.set_xticks(lengths, [str(length) for length in lengths])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def _legend() -> list[Any]:
    dot: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 5}
    return [
        Patch(label="noise", **_NOISE),
        Line2D([], [], label="within it", color=COLOURS["quantisation"], markerfacecolor=COLOURS["surface"], **dot),
        Line2D([], [], label="faster, beyond it", color=COLOURS["quantisation"], **dot),
        Line2D([], [], label="slower, beyond it", color=COLOURS["implementation"], **dot),
    ]
