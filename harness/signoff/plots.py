"""Plots of a sign-off: size against KL with its front, and each figure's interval beside the policy's limit.

They are part of a sealed package and are drawn again to be compared, so that nothing here depends on how wide a
machine's fonts are: names are put where estimates of their width say that there is room.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from harness.intervals import Interval
from harness.policy import SignoffLimits
from harness.report.canvas import COLOURS, NARROW, WIDE, Plot, logarithmic, place, plot, shorten
from harness.report.figures import number
from harness.signoff.conclude import PASS, Conclusion, Judged

_MEGABYTE = 1e6
# Below the first two sets of logits are equal in FP32; above the other nothing is a figure of a model.
_FLOOR, _CEILING = 1e-9, 1e6
# CSS pixels to a letter and to a line of small monospace text.
_LETTER, _LINE = 6.1, 14.0
_LIMIT: dict[str, Any] = {"color": COLOURS["fail"], "linewidth": 1.1}
_RED: dict[str, Any] = {"color": COLOURS["fail"]}
_SMALL: dict[str, Any] = {"fontsize": 8.5, "color": COLOURS["muted"]}

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in CSS pixels."""


class _Point(msgspec.Struct, frozen=True):
    """A candidate in the plot of the front: megabytes, KL with its interval, in nat."""

    name: str
    size: float
    kl: Interval
    good: bool


def plot_front(found: Conclusion, limits: SignoffLimits) -> Plot | None:
    """Size against mean KL with whiskers of 95 %, the limit, and the front as steps; None without two figures."""
    points = [
        _Point(one.name, one.bytes / _MEGABYTE, one.kl, one.outcome == PASS)
        for one in found.candidates
        if one.kl is not None and one.bytes is not None
    ]
    if not points:
        return None
    front = sorted((point.size, point.kl.estimate) for point in points if point.name in found.front)
    label = (
        f"Size and mean KL of {len(points)} candidates, with the limit of {limits.kl_mean.limit:g} nat and the front"
    )

    key = math.ceil(len(points) / 2)

    def draw(figure: Figure, narrow: bool) -> None:
        left, top, width, height = 62.0, 26.0, (NARROW if narrow else WIDE) - 82.0, 330.0
        axes = place(figure, left, top, width, height)
        across, up = _room([point.size for point in points]), _decades(points, limits.kl_mean.limit)
        axes.set(yscale="log", xlim=across, ylim=up)
        axes.xaxis.set_major_locator(MaxNLocator(5 if narrow else 10))
        axes.grid(axis="both")
        axes.set_axisbelow(True)
        axes.set_xlabel("size, MB (smaller is better)", fontsize=9)
        axes.set_ylabel("mean KL from the golden, nat", fontsize=9)
        axes.axhline(limits.kl_mean.limit, **_LIMIT)
        words: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", **_SMALL, **_RED}
        axes.text(1, limits.kl_mean.limit * 1.04, f"limit {number(limits.kl_mean.limit)}", **words)
        _steps(axes, front)
        for point in points:
            _dot(axes, point)
        logarithmic(axes, "y", 8)
        field = _Field(across, up, width, height)
        _name(axes, points, [(size, kl) for size, kl in front], field, narrow)
        if narrow:
            for at, point in enumerate(points):
                x, y = (0.0 if at < key else 0.56) * width - 50, height + 64 + 15 * (at % key)
                _key(axes, f"{at + 1:>2} {shorten(point.name, 18)}", (x / width, 1 - y / height), point.good)

    return plot("front", label, draw, (412, 420 + 15 * key))


def _key(axes: Axes, text: str, at: tuple[float, float], good: bool) -> None:
    colour = COLOURS["ink" if good else "fail"]
    axes.text(*at, text, transform=axes.transAxes, va="center", family="monospace", fontsize=8.25, color=colour)


def _room(sizes: Sequence[float]) -> tuple[float, float]:
    low, high = min(sizes), max(sizes)
    room = 0.09 * (high - low) or 0.1 * high or 1.0
    return low - room, high + room


def _decades(points: Sequence[_Point], limit: float) -> tuple[float, float]:
    ends = [_drawn(end) for point in points for end in (point.kl.low, point.kl.high)] + [_drawn(limit)]
    return min(ends) / 2, max(ends) * 2


def _drawn(value: float) -> float:
    return min(max(value, _FLOOR), _CEILING)


def _steps(axes: Axes, front: Sequence[tuple[float, float]]) -> None:
    """The front: at each size the nearest to the golden that is no larger."""
    if front:
        sizes, kls = zip(*front, strict=True)
        values = [_drawn(kl) for kl in kls]
        style: dict[str, Any] = {"color": COLOURS["muted"], "linewidth": 1, "linestyle": (0, (4, 2))}
        axes.step(sizes, values, where="post", **style)


def _dot(axes: Axes, point: _Point) -> None:
    colour = COLOURS["pass" if point.good else "fail"]
    axes.vlines([point.size], [_drawn(point.kl.low)], [_drawn(point.kl.high)], color=colour, linewidth=1.4)
    marker = {"marker": "o", "markersize": 6.5} if point.good else {"marker": "X", "markersize": 6}
    axes.plot([point.size], [_drawn(point.kl.estimate)], linestyle="none", color=colour, **marker)  # type: ignore[arg-type]


class _Field(msgspec.Struct, frozen=True):
    """The field of the plot of the front: its limits, that of KL on a log scale, and its size in CSS pixels."""

    across: tuple[float, float]
    up: tuple[float, float]
    width: float
    height: float

    def spot(self, size: float, kl: float) -> tuple[float, float]:
        """Where a point lies, in CSS pixels from the upper left corner."""
        low, high = math.log(self.up[0]), math.log(self.up[1])
        x = (size - self.across[0]) / (self.across[1] - self.across[0]) * self.width
        return x, (high - math.log(_drawn(kl))) / (high - low) * self.height


def _name(
    axes: Axes, points: Sequence[_Point], front: Sequence[tuple[float, float]], field: _Field, numbered: bool
) -> None:
    """Each name, or number, beside its point, where it covers no other name, no point and not the front."""
    spots = [field.spot(point.size, point.kl.estimate) for point in points]
    taken: list[Box] = [(x - 5, y - 5, x + 5, y + 5) for x, y in spots]
    corners = [field.spot(*corner) for corner in front]
    for (x, y), (further, lower) in itertools.pairwise(corners):
        taken += [(x, y - 1, further, y + 1), (further - 1, y, further + 1, lower)]
    for at in sorted(range(len(points)), key=lambda at: spots[at][1]):
        text = str(at + 1) if numbered else shorten(points[at].name, 28)
        box, dx, dy, align = _free(spots[at], _LETTER * len(text), taken, field)
        taken.append(box)
        if abs(dy) > _LINE + 2:
            _lead(axes, points[at], (dx, dy))
        axes.annotate(
            text, (points[at].size, _drawn(points[at].kl.estimate)), (0.75 * dx, -0.75 * dy),
            textcoords="offset points", ha=align, va="center", family="monospace", fontsize=8.25,
        )  # fmt: skip


def _lead(axes: Axes, point: _Point, offset: tuple[float, float]) -> None:
    """A thin line from a point to its name, where that had to go farther off."""
    style: dict[str, Any] = {"arrowstyle": "-", "color": COLOURS["muted"], "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
    end = (0.75 * offset[0], -0.75 * offset[1])
    axes.annotate("", (point.size, _drawn(point.kl.estimate)), end, textcoords="offset points", arrowprops=style)


def _free(
    spot: tuple[float, float], width: float, taken: Sequence[Box], field: _Field
) -> tuple[Box, float, float, str]:
    """A place for a name: its box, its offset from the point in CSS pixels, and how it is aligned there."""
    x, y = spot
    found = []
    for dx, dy, align in _offsets():
        left = {"left": x + dx, "right": x + dx - width, "center": x + dx - width / 2}[align]
        box = (left, y + dy - _LINE / 2, left + width, y + dy + _LINE / 2)
        found.append((box, dx, dy, align))
        inside = box[0] >= 2 and box[2] <= field.width + 16 and box[1] >= -8 and box[3] <= field.height
        if inside and not any(_overlap(box, other) for other in taken):
            return found[-1]
    return found[0]


def _offsets() -> Iterator[tuple[float, float, str]]:
    """Right, left, above, below, then ever farther up and down on both sides."""
    yield from ((9, 0, "left"), (8, -10, "left"), (-9, 0, "right"), (0, -14, "center"), (-8, 10, "right"))
    yield from ((0, 14, "center"), (8, 10, "left"), (-8, -10, "right"))
    for step in range(1, 12):
        for dy in (-12.0 * step, 12.0 * step):
            yield from ((14, dy, "left"), (-14, dy, "right"))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


class _Figure(msgspec.Struct, frozen=True):
    """A figure that the policy limits: its title, its interval of a candidate, the limit, and which side is allowed."""

    title: str
    of: Callable[[Judged], Interval | None]
    limit: float
    least: bool = False
    logarithmic: bool = False
    shown: Callable[[float], str] = number


def plot_limits(found: Conclusion, limits: SignoffLimits) -> Plot | None:
    """KL, perplexity and top-1 of every candidate with intervals of 95 %, and the limits; what is shaded fails."""
    rows = [one for one in found.candidates if one.kl is not None]
    if not rows:
        return None
    figures = (
        _Figure("mean KL, nat", lambda one: one.kl, limits.kl_mean.limit, logarithmic=True),
        _Figure("perplexity", lambda one: one.perplexity_change, limits.perplexity_change.limit, shown=_signed),
        _Figure("top-1 agreement", lambda one: one.top1, limits.top1_min.limit, least=True, shown=_share),
    )
    wide, narrow_one = 26.0 * len(rows), 34.0 * len(rows)
    heights = (wide + 72, (narrow_one + 72) * len(figures))
    label = f"KL, perplexity and top-1 agreement of {len(rows)} candidates with intervals of 95 %, beside their limits"

    def draw(figure: Figure, narrow: bool) -> None:
        for at, one in enumerate(figures):
            if narrow:
                axes = place(figure, 10, 30 + at * (narrow_one + 72), NARROW - 24, narrow_one)
            else:
                width = (WIDE - 176 - 3 * 22) / 3
                axes = place(figure, 176 + at * (width + 22), 30, width, wide)
            _draw_figure(axes, one, rows, names=narrow or at == 0, above=narrow)

    return plot("limits", label, draw, heights)


def _signed(value: float) -> str:
    return f"{100 * value:+.3g} %" if value else "0"


def _share(value: float) -> str:
    return f"{100 * value:.4g} %"


def _draw_figure(axes: Axes, figure: _Figure, rows: Sequence[Judged], *, names: bool, above: bool) -> None:
    found = [(line, one, figure.of(one)) for line, one in enumerate(rows)]
    known = [interval for _, _, interval in found if interval is not None]
    low, high = _limits_of(figure, known)
    axes.set(
        xlim=(low, high), ylim=(len(rows) - 0.5, -0.5), yticks=[], xscale="log" if figure.logarithmic else "linear"
    )
    axes.grid(axis="x")
    axes.set_axisbelow(True)
    axes.set_title(figure.title, loc="left", fontsize=9.5, pad=6)
    beyond = (low, figure.limit) if figure.least else (figure.limit, high)
    axes.axvspan(*beyond, color=COLOURS["fail"], alpha=0.09, linewidth=0)
    axes.axvline(figure.limit, **_LIMIT)
    for line, one, interval in found:
        if line:
            axes.axhline(line - 0.5, color=COLOURS["line"], linewidth=0.5)
        if interval is not None:
            _draw_interval(axes, figure, line + (0.2 if above else 0), interval)
        if names:
            transform = axes.get_yaxis_transform()
            x, y, align = (0, line - 0.22, "left") if above else (-0.03, line, "right")
            axes.text(
                x, y, shorten(one.name, 40 if above else 24), transform=transform, ha=align, va="center",
                family="monospace", fontsize=8.75,
            )  # fmt: skip
    if figure.logarithmic:
        logarithmic(axes, "x", 6)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: figure.shown(value)))
    text = f"limit {figure.shown(figure.limit)}"
    axes.text(1, 1.025, text, transform=axes.transAxes, ha="right", va="bottom", **{**_SMALL, **_RED})


def _draw_interval(axes: Axes, figure: _Figure, line: float, found: Interval) -> None:
    """The interval, its estimate, and a bar at the end that is judged."""
    judged = found.low if figure.least else found.high
    good = judged >= figure.limit if figure.least else judged <= figure.limit
    colour = COLOURS["pass" if good else "fail"]
    low, middle, high, end = (
        _drawn(value) if figure.logarithmic else _tamed(value)
        for value in (found.low, found.estimate, found.high, judged)
    )
    axes.plot([low, high], [line, line], color=colour, linewidth=1.6)
    axes.plot([middle], [line], "o" if good else "X", color=colour, markersize=5.5)
    axes.plot([end], [line], "|", color=colour, markersize=10, markeredgewidth=1.8)


def _limits_of(figure: _Figure, known: Sequence[Interval]) -> tuple[float, float]:
    ends = [end for interval in known for end in (interval.low, interval.high)] + [figure.limit]
    if figure.logarithmic:
        return min(map(_drawn, ends)) / 2, max(map(_drawn, ends)) * 2
    ends = [_tamed(end) for end in ends]
    room = 0.08 * (max(ends) - min(ends)) or 0.01
    return min(ends) - room, max(ends) + room


def _tamed(value: float) -> float:
    return min(max(value, -_CEILING), _CEILING)
