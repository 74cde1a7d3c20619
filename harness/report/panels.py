"""Plots of small panels with both axes in common: errors by position and by layer, times by length of prompt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from harness.localise import Localisation, Sublayer
from harness.report.canvas import COLOURS, NARROW, SERIES, WIDE, Plot, logarithmic, place, plot, shorten
from harness.report.series import ByPosition, Pace

# Errors below this are equal in FP32; a log scale that went on down would show nothing else.
_FLOOR = 1e-9
# Sublayers below this many yardsticks are drawn there: how far below says nothing.
_DULL = 0.1
_MARKS = ("o", "s", "D", "^", "v")
_PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int4")
_WINDOW: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 0.9, "linestyle": (0, (2, 2))}
_LINES: dict[str, dict[str, Any]] = {
    "prefill": {"color": COLOURS["quantisation"], "linewidth": 1.4},
    "decode": {"color": COLOURS["implementation"], "linewidth": 1.4, "linestyle": (0, (4, 1.2))},
    "yardstick": {"color": COLOURS["yardstick"], "linewidth": 1, "linestyle": (0, (1, 1.5))},
    "kl": {"color": COLOURS["quantisation"], "linewidth": 1.4},
}


class Frame(msgspec.Struct, frozen=True):
    """What all panels of a plot have in common: what the axes are called, their limits, the panels' size."""

    x: str
    y: str
    across: tuple[float, float]
    up: tuple[float, float]
    logarithmic_x: bool = False
    logarithmic_y: bool = True
    columns: int = 3
    height: float = 116


class Panel(msgspec.Struct, frozen=True):
    """One panel: its title, what draws into it, its tone (fail, waived or none), whether the title is code."""

    title: str
    draw: Callable[[Axes], None]
    tone: str = ""
    code: bool = True


def plot_positions(found: Sequence[ByPosition], window: int | None, tones: Mapping[str, str]) -> Plot | None:
    """The error by position, a panel to a target, marked where its tone is fail or waived; so is the window's end."""
    if not found:
        return None
    name, what, unit = ("positions", "Implementation error", "logits")
    if not found[0].apart:
        name, what, unit = ("positions-kl", "KL", "nat")
    last = max((x for one in found for positions, _ in one.lines.values() for x in positions), default=1.0)
    marked = window if window is not None and window < last else None

    def draw(one: ByPosition, axes: Axes) -> None:
        if marked is not None:
            axes.axvline(marked, **_WINDOW)
        for line, style in _LINES.items():
            if line in one.lines:
                axes.plot(*_with_gaps(*one.lines[line]), **style)

    lines = [line for line in _LINES if any(line in one.lines for one in found)]
    legend = [Line2D([], [], label="KL" if line == "kl" else line, **_LINES[line]) for line in lines]
    legend += [Line2D([], [], label=f"window of {marked}", **_WINDOW)] if marked is not None else []
    errors = sorted(y for one in found for _, values in one.lines.values() for y in values)
    # A first position without rounding may be exact, and would press all others together.
    frame = Frame("position", unit, (0, last + 1), span(errors[len(errors) // 50 :]))
    panels = [Panel(one.target, partial(draw, one), tones.get(one.target, "")) for one in found]
    return draw_panels(name, f"{what} by position for {len(found)} targets", frame, panels, legend)


def _with_gaps(positions: Sequence[float], errors: Sequence[float]) -> tuple[list[float], list[float]]:
    """A line with holes where no prompt has positions; a position alone becomes a short dash."""
    step = min((b - a for a, b in itertools.pairwise(positions)), default=1.0)
    xs: list[float] = []
    ys: list[float] = []
    for at, (x, y) in enumerate(zip(positions, errors, strict=True)):
        begins = at == 0 or x - positions[at - 1] > 4 * step
        ends = at + 1 == len(positions) or positions[at + 1] - x > 4 * step
        if begins and xs:
            xs.append(math.nan)
            ys.append(math.nan)
        around = [x - step / 3, x + step / 3] if begins and ends else [x]
        xs += around
        ys += [max(y, _FLOOR)] * len(around)
    return xs, ys


def plot_layers(found: Localisation, name: str) -> Plot:
    """The error of each sublayer on the device's own input, in yardsticks, prefill and decode apart."""
    phases = [phase for phase in ("prefill", "decode") if any(one.phase == phase for one in found.sublayers)]
    first = found.bad[0].place if found.bad else ""
    ratios = [ratio for one in found.sublayers for ratio in (one.ratio_typical, one.ratio_worst)]
    low, high = span([max(ratio, _DULL) for ratio in [*ratios, found.typical_limit, found.worst_limit]])

    def draw(phase: str, axes: Axes) -> None:
        ones = [one for one in found.sublayers if one.phase == phase]
        typical, worst = [_drawn(one.ratio_typical) for one in ones], [_drawn(one.ratio_worst) for one in ones]
        axes.axhline(found.typical_limit, color=COLOURS["fail"], linewidth=0.9, linestyle=(0, (4, 1.2)))
        axes.axhline(found.worst_limit, color=COLOURS["fail"], linewidth=0.9)
        axes.vlines(range(len(ones)), typical, worst, color=COLOURS["line"], linewidth=1.5)
        axes.plot(typical, "o", markersize=3.5, color=COLOURS["quantisation"])
        axes.plot(worst, "^", markersize=3.5, color=COLOURS["implementation"])
        bad = [at for at, one in enumerate(ones) if one.place == first and one.first is not None]
        ring: dict[str, Any] = {"markersize": 12, "markerfacecolor": "none", "color": COLOURS["fail"]}
        axes.plot(bad, [worst[at] for at in bad], "o", **ring)
        _name_layers(axes, ones)

    def mark(label: str, marker: str, role: str) -> Line2D:
        return Line2D([], [], marker=marker, markersize=4, linestyle="none", color=COLOURS[role], label=label)

    legend = [
        mark("median position", "o", "quantisation"),
        mark("worst position", "^", "implementation"),
        Line2D([], [], color=COLOURS["fail"], linewidth=0.9, linestyle=(0, (4, 1.2)), label="limit of the median"),
        Line2D([], [], color=COLOURS["fail"], linewidth=0.9, label="limit of the worst"),
    ]
    most = max(sum(one.phase == phase for one in found.sublayers) for phase in phases)
    frame = Frame("layer", "yardsticks", (-0.7, most - 0.3), (low, high * 1.6), columns=2, height=150)
    panels = [Panel(phase, partial(draw, phase), code=False) for phase in phases]
    return draw_panels(name, f"Error by sublayer of {found.target}: {found.sentence}", frame, panels, legend)


def _name_layers(axes: Axes, ones: Sequence[Sublayer]) -> None:
    """Ticks at the first sublayer of each layer, by the layer's number; every few where there are many."""
    starts: dict[str, int] = {}
    for step, one in enumerate(ones):
        parts = one.place.split(".")
        if "layers" in parts[:-1]:
            starts.setdefault(parts[parts.index("layers") + 1], step)
    every = max(1, math.ceil(len(starts) / 12))
    ticks = list(starts.items())[::every]
    axes.set_xticks([step for _, step in ticks], [layer for layer, _ in ticks])


def plot_speed(found: dict[str, list[Pace]], first_token: bool) -> Plot | None:
    """Times by length of prompt, a panel to a device, a line to a precision, whiskers from least to greatest."""
    if not found:
        return None
    paces = [pace for ones in found.values() for pace in ones]
    styles: dict[str, dict[str, Any]] = {
        precision: {"color": SERIES[at], "marker": _MARKS[at], "markersize": 4, "linewidth": 1.2}
        for at, precision in enumerate(_PRECISIONS)
    }

    def times_of(pace: Pace) -> list[tuple[float, float, float]]:
        return pace.first_token if first_token else pace.token

    def draw(ones: Sequence[Pace], axes: Axes) -> None:
        for pace in ones:
            middle, least, greatest = zip(*times_of(pace), strict=True)
            axes.vlines(pace.lengths, least, greatest, color=styles[pace.precision]["color"], linewidth=1)
            axes.plot(pace.lengths, middle, **styles[pace.precision])
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.xaxis.set_minor_locator(NullLocator())

    lengths = apart([length for pace in paces for length in pace.lengths])
    shown = [precision for precision in _PRECISIONS if any(pace.precision == precision for pace in paces)]
    legend = [Line2D([], [], label=precision, **styles[precision]) for precision in shown]
    up = span(time for pace in paces for times in times_of(pace) for time in times)
    frame = Frame("tokens of the prompt", "ms", (lengths[0] / 1.4, lengths[-1] * 1.4), up, logarithmic_x=True)
    panels = [Panel(device, partial(draw, ones)) for device, ones in found.items()]
    what = "Time to the first token" if first_token else "Time for each further token"
    name = "speed-first" if first_token else "speed-token"
    return draw_panels(name, f"{what} by length of prompt for {len(found)} devices", frame, panels, legend)


def apart(lengths: Iterable[int]) -> list[int]:
    """The lengths that are far enough from each other for their labels, the greatest among them."""
    ordered = sorted({max(1, length) for length in lengths})
    kept = [ordered[-1]]
    for length in reversed(ordered[:-1]):
        if kept[-1] / length > 1.7:
            kept.append(length)
    return kept[::-1]


def _drawn(value: float) -> float:
    return max(value, _DULL) if math.isfinite(value) else math.nan


def span(values: Iterable[float]) -> tuple[float, float]:
    """Limits of a log scale around what can be shown on one, with some room."""
    shown = [max(value, _FLOOR) for value in values if math.isfinite(value) and value > 0]
    return (min(shown) / 1.6, max(shown) * 1.6) if shown else (0.1, 10.0)


def draw_panels(name: str, label: str, frame: Frame, panels: Sequence[Panel], legend: list[Any]) -> Plot:
    """Some panels to a row where there is room, one below the other where not."""
    across = (min(frame.columns, len(panels)), 1)
    in_legend = (5, 2)
    tops = [18 * math.ceil(len(legend) / n) + 12 for n in in_legend]
    pitch = frame.height + 58
    heights = [top + math.ceil(len(panels) / n) * pitch for top, n in zip(tops, across, strict=True)]

    def draw(figure: Figure, narrow: bool) -> None:
        n, left, gap = across[narrow], 58, 20
        room = (NARROW if narrow else WIDE) - left - 8
        width = min((room - gap * (n - 1)) / n, 520)
        for at, panel in enumerate(panels):
            row, column = divmod(at, n)
            axes = place(figure, left + column * (width + gap), tops[narrow] + 20 + row * pitch, width, frame.height)
            scales = ["log" if is_log else "linear" for is_log in (frame.logarithmic_x, frame.logarithmic_y)]
            axes.set(xscale=scales[0], yscale=scales[1], xlim=frame.across, ylim=frame.up)
            _fill(axes, panel, frame)
            if column:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(frame.y, fontsize=8.5)
            if at + n >= len(panels):
                axes.set_xlabel(frame.x, fontsize=8.5)
        figure.legend(
            handles=legend, loc="upper left", ncols=in_legend[narrow], fontsize=9, bbox_to_anchor=(0, 1),
            borderaxespad=0, borderpad=0.1, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip

    return plot(name, label, draw, (heights[0], heights[1]))


def _fill(axes: Axes, panel: Panel, frame: Frame) -> None:
    if not frame.logarithmic_x:
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(axis="y")
    panel.draw(axes)
    logarithmic(axes, "y", 5)
    axes.tick_params(labelsize=8.5)
    sign = {"fail": "✗ ", "waived": "~ "}.get(panel.tone, "")
    font: dict[str, Any] = {"family": "monospace"} if panel.code else {}
    colour = COLOURS[panel.tone if sign else "ink"]
    axes.set_title(f"{sign}{shorten(panel.title, 30)}", loc="left", fontsize=8.75, pad=4, color=colour, **font)
