"""Confidence intervals of a suite's figures by resampling its prompts, and what the suite could have detected.

A figure is a ratio of sums over prompts: mean KL is the KL of all positions over their number. The positions of one
prompt are alike, so that prompts are what is drawn: a cluster is drawn whole. Figures of several candidates are taken
on the same draws, and so is the difference of two of them.

Shapes: n prompts, k figures. Intervals are BCa (Efron, "Better bootstrap confidence intervals", JASA 82, 1987): they
have the right coverage to second order for skewed figures such as KL, and are the same on any scale that the figure is
read on.
"""

from __future__ import annotations

from statistics import NormalDist

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CONFIDENCE = 0.95
POWER = 0.80
RESAMPLES = 10_000
SEED = 20261125

# Draws that are held at a time.
_CHUNK = 1 << 20
_NORMAL = NormalDist()


class Interval(msgspec.Struct, frozen=True):
    """A figure with its 95 % interval and its standard error between prompts, all in the figure's unit."""

    estimate: float
    low: float
    high: float
    error: float

    @property
    def detectable(self) -> float:
        """The smallest change that a two-sided test at 95 % finds in 80 of 100 samples like this one."""
        return (_NORMAL.inv_cdf((1 + CONFIDENCE) / 2) + _NORMAL.inv_cdf(POWER)) * self.error


def intervals(sums: Floats, sizes: Floats, resamples: int = RESAMPLES, seed: int = SEED) -> list[Interval]:
    """An interval for each of k figures.

    `sums`: `[n, k]`, a figure's sum over each prompt; `sizes`: `[n]`, over how many positions. Equal input gives equal
    output on every machine, to rounding. Raises ValueError for fewer than two prompts, a prompt without positions, or a
    sum that is not finite.
    """
    if sums.ndim != 2 or sums.shape[0] != sizes.shape[0] or sums.shape[0] < 2:
        raise ValueError(f"no intervals for sums of shape {sums.shape} over sizes of shape {sizes.shape}")
    if not np.isfinite(sums).all() or not (sizes > 0).all():
        raise ValueError("a sum is not finite, or a prompt has no positions")
    drawn = _resampled(sums, sizes, resamples, seed)
    return [_bca(sums[:, i], sizes, drawn[:, i]) for i in range(sums.shape[1])]


def share_interval(found: Interval, prompts: int) -> Interval:
    """The interval of a share, widened where it is 1 on all prompts.

    Resampling shows no variation there. The lower end is then that of no failure in n prompts, each of which might have
    failed as a whole (Clopper and Pearson, 1934).
    """
    if found.estimate < 1:
        return found
    tail = (1 - CONFIDENCE) / 2
    return msgspec.structs.replace(found, low=min(found.low, tail ** (1 / prompts)))


def _resampled(sums: Floats, sizes: Floats, resamples: int, seed: int) -> Floats:
    """The figures `[resamples, k]` of samples drawn with replacement, the same samples for all.

    Drawn from the raw bits of PCG64, which NumPy keeps as they are from version to version, unlike its distributions:
    another machine must draw the same.
    """
    n = sizes.shape[0]
    bits = np.random.PCG64(seed)
    columns = np.column_stack([sums, sizes])
    found = []
    step = max(1, _CHUNK // n)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        raw = np.asarray(bits.random_raw(rows * n)) >> np.uint64(32)
        drawn = ((raw * np.uint64(n)) >> np.uint64(32)).astype(np.int64).reshape(rows, n)
        counts = np.zeros((rows, n))
        np.add.at(counts, (np.arange(rows)[:, None], drawn), 1.0)
        totals = counts @ columns
        found.append(totals[:, :-1] / totals[:, -1:])
    return np.concatenate(found)


def _bca(values: Floats, sizes: Floats, drawn: Floats) -> Interval:
    total, size, n = float(values.sum()), float(sizes.sum()), sizes.shape[0]
    estimate = total / size
    residuals = values - estimate * sizes
    error = float(np.sqrt(n / (n - 1) * np.square(residuals).sum())) / size
    spread = float(drawn.max() - drawn.min())
    if not spread > 1e-12 * abs(estimate):
        return Interval(estimate, estimate, estimate, error)
    below = float((drawn < estimate).mean() + (drawn == estimate).mean() / 2)
    bias = _NORMAL.inv_cdf(min(max(below, 1 / drawn.size), 1 - 1 / drawn.size))
    left_out = (total - values) / (size - sizes)
    skew = left_out.mean() - left_out
    acceleration = float((skew**3).sum() / (6 * np.square(skew).sum() ** 1.5))
    low, high = (_level(bias, acceleration, tail) for tail in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(estimate, float(np.quantile(drawn, low)), float(np.quantile(drawn, high)), error)


def _level(bias: float, acceleration: float, tail: float) -> float:
    """The quantile of the resampled figures that is the end of a BCa interval."""
    shifted = bias + _NORMAL.inv_cdf(tail)
    return _NORMAL.cdf(bias + shifted / (1 - acceleration * shifted))
