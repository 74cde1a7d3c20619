"""Does a process hold more and more? A robust slope of what it holds, with an interval, against a limit.

The slope is the median of the slopes between all pairs of points (Theil), which a few jumps do not move: an allocator
takes and gives back memory in large pieces. Its interval follows from the distribution of Kendall's tau (Sen,
"Estimates of the Regression Coefficient Based on Kendall's Tau", JASA 63, 1968). A leak is shown where the whole
interval lies above the limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.compare import Outcome, Verdict
from harness.policy import Limit

Floats = NDArray[np.float64]

WARM_UP = 3
"""Rounds that are left out: runtimes fill caches and pools in the first ones."""
FEWEST = 10
"""Rounds after these from which a slope is told."""
_STEPS = 3
"""Rounds in a row in which a count must rise to be called growing where there are too few for a slope."""
_Z95 = 1.959964
# Points of which all pairs are looked at; of more a part is taken, evenly.
_MOST = 400


class Slope(NamedTuple):
    """Growth a round, and the ends of its 95 % interval."""

    value: float
    lower: float
    upper: float


class Series(NamedTuple):
    """One thing that a process holds: its name, its unit (empty for a count), values by round, the limit a round."""

    name: str
    unit: str
    values: Sequence[float]
    limit: Limit


def theil_sen(values: Sequence[float]) -> Slope:
    """The slope of `[n]` values a step. Raises ValueError for fewer than two."""
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no slope")
    places = np.unique(np.linspace(0, len(values) - 1, min(len(values), _MOST)).round().astype(int))
    chosen = np.asarray(values, dtype=np.float64)[places]
    first, second = np.triu_indices(places.size, 1)
    slopes = np.sort((chosen[second] - chosen[first]) / (places[second] - places[first]))
    n, pairs = places.size, slopes.size
    half = _Z95 * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    lower, upper = math.floor((pairs - half) / 2), math.ceil((pairs + half) / 2)
    ends = slopes[max(lower, 0)], slopes[min(upper, pairs - 1)]
    if lower < 0 or upper > pairs - 1:  # so few that any slope is possible
        ends = (-math.inf, math.inf)
    return Slope(float(np.median(slopes)), float(ends[0]), float(ends[1]))


def judge_growth(series: Sequence[Series], what: str) -> Verdict:
    """Hold the growth of everything that a process holds against its limit; `what` a round is, such as `load`.

    From few rounds, as in a short run, only a count that rises in each of the last three is called growing.
    """
    numbers: dict[str, float] = {}
    limits: dict[str, float] = {}
    lines: list[str] = []
    for one in series:
        numbers[f"{one.name}_first"], numbers[f"{one.name}_last"] = one.values[0], one.values[-1]
        limits[f"{one.name}_growth"] = one.limit.limit
        if len(one.values) >= WARM_UP + FEWEST:
            slope = theil_sen(one.values[WARM_UP:])
            numbers[f"{one.name}_growth"] = slope.value
            numbers[f"{one.name}_growth_lower"], numbers[f"{one.name}_growth_upper"] = slope.lower, slope.upper
            if not slope.lower <= one.limit.limit:
                lines.append(_slope_line(one, slope, what))
        elif not one.unit and _rises(one.values):
            steps = ", ".join(f"{value:g}" for value in one.values[-_STEPS - 1 :])
            lines.append(f"{one.name} grow with every {what}: {steps}")
    numbers["rounds"] = float(min((len(one.values) for one in series), default=0))
    if numbers["rounds"] < _STEPS + 1:
        return Verdict(Outcome.FAIL, numbers, limits, f"{numbers['rounds']:g} rounds tell of no growth")
    return Verdict(Outcome.FAIL if lines else Outcome.PASS, numbers, limits, "\n".join(lines))


def _rises(values: Sequence[float]) -> bool:
    steps = np.diff(np.asarray(values[-_STEPS - 1 :]))
    return bool(steps.size == _STEPS and (steps > 0).all())


def _slope_line(one: Series, slope: Slope, what: str) -> str:
    unit = f" {one.unit}" if one.unit else ""
    verb = "grows" if one.unit else "grow"
    interval = f"95 % interval {slope.lower:.3g} to {slope.upper:.3g}"
    return (
        f"{one.name} {verb} by {slope.value:.3g}{unit} a {what} ({interval}), "
        f"from {one.values[0]:.4g} to {one.values[-1]:.4g} in {len(one.values)}; allowed: {one.limit.limit:.3g}{unit} "
        f"({one.limit.origin})"
    )
