"""Drawing with matplotlib into SVG that belongs to a page: its text is text, its colours are the page's.

matplotlib knows no CSS, so a plot is drawn in stand-in colours that no plot would use, which are then replaced by CSS
variables: one SVG serves light, dark and print. Every plot is drawn twice, wide and narrow, and the page shows the one
that fits: an SVG that is scaled down for a phone has letters that nobody can read.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import msgspec
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from harness.report.figures import number

WIDE = 1030
NARROW = 340
"""Widths in CSS pixels."""

_ROLES = (
    "ink", "muted", "line", "waived", "quantisation", "implementation", "yardstick", "total", "fail",
    "series-1", "series-2", "series-3", "series-4", "series-5", "surface", "pass",
)  # fmt: skip
COLOURS = {role: f"#0a0b{number:02x}" for number, role in enumerate(_ROLES, 1)}
"""The stand-in for each of the page's colours; `var(--role)` takes its place."""

SERIES = tuple(COLOURS[f"series-{number}"] for number in range(1, 6))

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,  # points: 12 CSS pixels
    "axes.edgecolor": COLOURS["line"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.facecolor": "none",
    "axes.linewidth": 0.75,
    "axes.grid": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.facecolor": "none",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "text.color": COLOURS["ink"],
    "xtick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.color": COLOURS["line"],
    "ytick.labelcolor": COLOURS["muted"],
    "axes.unicode_minus": True,
}


class Plot(msgspec.Struct, frozen=True):
    """A plot as two SVG elements for the page; both are hidden from screen readers in favour of `label` and a table."""

    label: str
    wide: Markup
    narrow: Markup


Draw = Callable[[Figure, bool], None]
"""Draws into an empty figure; the flag is true where it is the narrow one."""


def plot(name: str, label: str, draw: Draw, heights: tuple[float, float]) -> Plot:
    """Draw twice: `name` makes ids of the SVG unique in the page, `heights` are of wide and narrow in CSS pixels."""
    wide, narrow = (
        _svg(f"{name}-{kind}", label, draw, (width, height), narrow=kind == "narrow")
        for kind, width, height in (("wide", WIDE, heights[0]), ("narrow", NARROW, heights[1]))
    )
    return Plot(label, wide, narrow)


def place(figure: Figure, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in CSS pixels from the figure's upper left corner."""
    whole_width, whole_height = (size * 96 for size in figure.get_size_inches())
    bottom = whole_height - top - height
    rectangle = (left / whole_width, bottom / whole_height, width / whole_width, height / whole_height)
    axes = figure.add_axes(rectangle)
    axes.tick_params(length=3, pad=3)
    return axes


def shorten(text: str, most: int) -> str:
    """A text of at most so many letters, its middle left out; matplotlib's own mark-up is disarmed."""
    if len(text) > most:
        text = f"{text[: most // 2]}…{text[len(text) - most + most // 2 + 1 :]}"
    return text.replace("$", r"\$")


def logarithmic(axes: Axes, which: str, most: int) -> None:
    """Ticks at decades, of which `most` at the most, in plain numbers, where the axis `x` or `y` is logarithmic."""
    scale = axes.get_xscale() if which == "x" else axes.get_yscale()
    axis: Axis = axes.xaxis if which == "x" else axes.yaxis
    if scale == "log":
        low, high = sorted(axes.get_xlim() if which == "x" else axes.get_ylim())
        finer = low > 0 and high < 200 * low  # a decade or two alone would have one tick or two
        axis.set_major_locator(LogLocator(subs=(1.0, 3.0) if finer else (1.0,), numticks=most))
        axis.set_minor_locator(NullLocator())  # a tick costs milliseconds, and nobody looks at these
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 1)))


def _svg(name: str, label: str, draw: Draw, size: tuple[float, float], *, narrow: bool) -> Markup:
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(size[0] / 96, size[1] / 96), dpi=96)
        FigureCanvasSVG(figure)
        draw(figure, narrow)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return _for_page(stream.getvalue(), name, label, narrow=narrow)


def _for_page(text: str, name: str, label: str, *, narrow: bool) -> Markup:
    """The SVG as an element of a page: no prolog, no style that would reach outside it, ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="([^"]*)"', text)
    assert view is not None
    kind = "narrow" if narrow else "wide"
    head = f'<svg class="plot-{kind}" viewBox="{view[1]}" role="img" aria-label="{escape(label)}" focusable="false">'
    text = head + text[text.index(">") + 1 :]
    for role, stand_in in COLOURS.items():
        text = text.replace(stand_in, f"var(--{role})")
    text = re.sub(r"font-family: [^;\"]*Mono[^;\"]*", "font-family: var(--mono)", text)
    text = re.sub(r"font-family: (?!var)[^;\"]*; ?", "", text)
    text = re.sub(r' transform="rotate\(-0 [^"]*"', "", text)
    text = re.sub(r'(?<= d)="[^"]*"|(?<= [xy])="[^"]*"', lambda m: re.sub(r"(\.\d)\d+", r"\1", m[0]), text)
    referenced = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', text))
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in referenced else "", text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return Markup(re.sub(r">\s+<", "><", text))
