"""Plots of small panels with both axes in common: errors by position and by layer, times by length of prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator

from harness.localise import Localisation, Sublayer
from harness.report.canvas import COLOURS, NARROW, SERIES, WIDE, Plot, logarithmic, place, plot, shorten
from harness.report.series import ByPosition, Pace

# Errors below this are equal in FP32; a log scale that went on down would show nothing else.
_FLOOR = 1e-9
_MARKS = ("o", "s", "D", "^", "v")


def plot_positions(found: Sequence[ByPosition], window: int | None) -> Plot | None:
    """The error by position, a panel to a target with axes in common; the window's end is marked where it is known."""
    if not found:
        return None
    apart = found[0].apart
    values = [y for one in found for _, errors in one.lines.values() for y in errors if y > 0]
    last = max((x for one in found for positions, _ in one.lines.values() for x in positions), default=1)
    names = ("prefill", "decode", "yardstick") if apart else ("kl",)
    styles: dict[str, dict[str, Any]] = {
        "yardstick": {"color": COLOURS["yardstick"], "linewidth": 1, "linestyle": (0, (1, 1.5))},
        "prefill": {"color": COLOURS["quantisation"], "linewidth": 1.4},
        "decode": {"color": COLOURS["implementation"], "linewidth": 1.4, "linestyle": (0, (4, 1.2))},
        "kl": {"color": COLOURS["quantisation"], "linewidth": 1.4},
    }

    def panel(axes: Axes, one: ByPosition) -> None:
        axes.set(yscale="log", xlim=(0, last + 1))
        if values:
            axes.set_ylim(max(_FLOOR, min(values)) / 1.6, max(values) * 1.6)
        axes.set_title(shorten(one.target, 28), loc="left", fontsize=8.25, family="monospace", pad=4)
        axes.grid(axis="y")
        if window is not None and window < last:
            axes.axvline(window, color=COLOURS["muted"], linewidth=0.9, linestyle=(0, (2, 2)))
        for name in names:
            positions, errors = one.lines.get(name, ([], []))
            axes.plot(positions, errors, marker="." if len(positions) == 1 else "", **styles[name])

    legend = [Line2D([], [], label="KL" if name == "kl" else name, **styles[name]) for name in names]
    if window is not None and window < last:
        style: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 0.9, "linestyle": (0, (2, 2))}
        legend.append(Line2D([], [], label=f"window of {window}", **style))
    unit = "implementation error, logits" if apart else "KL from the golden, nat"
    label = f"{unit} by position for {len(found)} targets"
    return _panels("positions" if apart else "positions-kl", label, list(found), panel, legend, ("position", unit))


def plot_layers(found: Localisation, name: str) -> Plot:
    """The error of each sublayer on the device's own input, in yardsticks, prefill and decode apart."""
    phases = [phase for phase in ("prefill", "decode") if any(one.phase == phase for one in found.sublayers)]
    first = found.bad[0].place if found.bad else ""

    def panel(axes: Axes, phase: str) -> None:
        ones = [one for one in found.sublayers if one.phase == phase]
        axes.set_yscale("log")
        axes.set_title(phase, loc="left", fontsize=9, pad=4)
        axes.grid(axis="y")
        for limit, style in ((found.typical_limit, (0, (4, 1.2))), (found.worst_limit, "-")):
            axes.axhline(limit, color=COLOURS["fail"], linewidth=0.9, linestyle=style)
        steps = range(len(ones))
        axes.vlines(
            list(steps), [_ratio(one.ratio_typical) for one in ones], [_ratio(one.ratio_worst) for one in ones],
            color=COLOURS["line"], linewidth=1.5,
        )  # fmt: skip
        axes.plot(
            steps, [_ratio(one.ratio_typical) for one in ones], "o", markersize=3.5, color=COLOURS["quantisation"]
        )
        axes.plot(
            steps, [_ratio(one.ratio_worst) for one in ones], "^", markersize=3.5, color=COLOURS["implementation"]
        )
        _name_layers(axes, ones)
        for step, one in enumerate(ones):
            if one.place == first and one.first is not None:
                axes.plot(
                    [step], [_ratio(one.ratio_worst)], "o", markersize=12, markerfacecolor="none", color=COLOURS["fail"]
                )

    def mark(label: str, marker: str, role: str) -> Line2D:
        return Line2D([], [], marker=marker, markersize=4, linestyle="none", color=COLOURS[role], label=label)

    legend = [
        mark("median position", "o", "quantisation"),
        mark("worst position", "^", "implementation"),
        Line2D([], [], color=COLOURS["fail"], linewidth=0.9, linestyle=(0, (4, 1.2)), label="limit, median"),
        Line2D([], [], color=COLOURS["fail"], linewidth=0.9, label="limit, worst"),
    ]
    label = f"Error by sublayer of {found.target}: {found.sentence}"
    return _panels(name, label, phases, panel, legend, ("layer", "error, yardsticks"), columns=2, height=150)


def _ratio(value: float) -> float:
    return value if math.isfinite(value) and value > 0 else math.nan


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
    precisions = sorted({pace.precision for paces in found.values() for pace in paces}, key=_coarseness)
    styles: dict[str, dict[str, Any]] = {
        precision: {"color": SERIES[at % 5], "marker": _MARKS[at % 5], "markersize": 4, "linewidth": 1.2}
        for at, precision in enumerate(precisions)
    }

    def panel(axes: Axes, item: tuple[str, list[Pace]]) -> None:
        axes.set(xscale="log", yscale="log")
        axes.set_title(shorten(item[0], 28), loc="left", fontsize=8.25, family="monospace", pad=4)
        axes.grid(axis="y")
        for pace in item[1]:
            times = pace.first_token if first_token else pace.token
            middle = [time[0] for time in times]
            axes.vlines(
                pace.lengths,
                [t[1] for t in times],
                [t[2] for t in times],
                color=styles[pace.precision]["color"],
                linewidth=1,
            )
            axes.plot(pace.lengths, middle, **styles[pace.precision])
        lengths = sorted({length for pace in item[1] for length in pace.lengths})
        axes.set_xticks(lengths, [str(length) for length in lengths])
        axes.xaxis.set_minor_locator(NullLocator())

    what = "time to the first token" if first_token else "time for each further token"
    legend = [Line2D([], [], label=precision, **style) for precision, style in styles.items()]
    name = "speed-first" if first_token else "speed-token"
    label = f"{what.capitalize()} by length of prompt for {len(found)} devices"
    return _panels(name, label, list(found.items()), panel, legend, ("prompt, tokens", "ms"))


def _coarseness(precision: str) -> int:
    known = ("fp32", "bf16", "fp16", "int8", "int4")
    return known.index(precision) if precision in known else len(known)


def _panels(
    name: str, label: str, items: list[Any], panel: Any, legend: list[Line2D], axes_labels: tuple[str, str],
    columns: int = 3, height: float = 116,
) -> Plot:  # fmt: skip
    """Small panels with both axes in common, some to a row where there is room, one below the other where not."""
    across = (min(columns, len(items)), 1)
    tops = (34, 34 if len(legend) < 4 else 54)
    pitch = height + 58
    heights = [top + math.ceil(len(items) / n) * pitch + 6 for top, n in zip(tops, across, strict=True)]

    def draw(figure: Figure, narrow: bool) -> None:
        n, left, gap = across[narrow], 52, 22
        whole = NARROW if narrow else WIDE
        width = min((whole - left - 8 - gap * (n - 1)) / n, 520)
        shared: Axes | None = None
        for at, item in enumerate(items):
            row, column = divmod(at, n)
            axes = place(figure, left + column * (width + gap), tops[narrow] + 20 + row * pitch, width, height, shared)
            shared = shared or axes
            panel(axes, item)
            logarithmic(axes, "y", 5)
            if axes.get_xscale() == "linear" and axes.get_xticklabels() and axes_labels[0] == "position":
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.tick_params(labelsize=8)
            if column:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(axes_labels[1], fontsize=8)
            if at + n >= len(items):
                axes.set_xlabel(axes_labels[0], fontsize=8)
        figure.legend(
            handles=legend, loc="upper left", ncols=3 if narrow and len(legend) != 4 else 2 if narrow else 6,
            fontsize=8.5, bbox_to_anchor=(0, 1), borderaxespad=0, columnspacing=1.4, handletextpad=0.5,
        )  # fmt: skip

    return plot(name, label, draw, (heights[0], heights[1]))
