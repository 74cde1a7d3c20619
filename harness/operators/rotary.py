"""Rotary embedding, plain and LongRoPE with either set of factors.

Shapes: `x` `[rows, heads, d]`, of whose d components the first r are rotated, the half-split way: component i with i +
r / 2. Sizes: `heads`, `d`, `r` and `first`, the position of the first row. Frequencies `[r / 2]` are given as float32,
as models keep them; LongRoPE (arXiv 2402.13753) divides them by its factors and multiplies cosines and sines by
sqrt(1 + ln s / ln L) for a context s times the original L.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.operators.case import Case
from harness.operators.draw import Stream, drawn
from harness.operators.estimate import Array, Estimate, exact
from harness.operators.numerics import SIN_COS, Numerics
from harness.operators.rounding import FORMATS

BASE = 10000.0
"""Phi-3's rope_theta."""
# Of Phi-3-mini-128k: a context of 131072 over an original one of 4096.
FACTOR = math.sqrt(1.0 + math.log(131072 / 4096) / math.log(4096))


def draw(case: Case) -> dict[str, NDArray[Any]]:
    """`x` float32, `positions` `[rows]` int64, `frequencies` `[r / 2]` float32 and `factor` `[]` float32."""
    heads, size = case["heads"], case["d"]
    large = 0.25 * min(FORMATS[case.grid].greatest, 2.0**60)
    x = drawn(Stream(case.seed), case.values, case.grid, case.count, heads * size, large=large)
    plain = BASE ** (-np.arange(0, case["r"], 2, dtype=np.float64) / case["r"])
    positions = np.arange(case["first"], case["first"] + case.count, dtype=np.int64)
    factor = 1.0 if case.operator == "rotary" else FACTOR
    return {
        "x": x.reshape(case.count, heads, size),
        "positions": positions,
        "frequencies": (plain / _stretch(case.operator, plain.size)).astype(np.float32),
        "factor": np.asarray(factor, dtype=np.float32),
    }


def _stretch(operator: str, count: int) -> Array:
    """Factors `[r / 2]` like those of Phi-3-mini-128k: the short ones grow to 2.8, the long ones to 64."""
    most = {"rotary": 1.0, "longrope-short": 2.8, "longrope-long": 64.0}[operator]
    return np.asarray(most ** (np.arange(count) / max(1, count - 1)))


def truth(case: Case, inputs: Mapping[str, NDArray[Any]], numerics: Numerics, arithmetic: Arithmetic) -> Estimate:  # noqa: ARG001
    """x cos + rotate_half(x) sin, every product and the sum rounded."""
    angles = exact(inputs["positions"][:, None, None] * inputs["frequencies"].astype(np.float64)).relative(
        numerics.unit
    )
    cosine, sine = (_function(angles, function, inputs["factor"], numerics) for function in (np.cos, np.sin))
    half = case["r"] // 2
    x = inputs["x"].astype(np.float64)
    parts = (x[..., :half], x[..., half : 2 * half], x[..., 2 * half :])
    first, second, rest = map(numerics.entered, parts)
    rounded = numerics.rounded
    left = rounded(rounded(first * cosine) - rounded(second * sine))
    right = rounded(rounded(second * cosine) + rounded(first * sine))
    return _joined(left, right, rest)


def _function(angles: Estimate, function: Any, factor: NDArray[np.float32], numerics: Numerics) -> Estimate:
    """Cosine or sine of angles, in single precision, by the factor, then rounded."""
    found = angles.mapped(function, 1.0).relative(numerics.ulps(SIN_COS)).off(numerics.least)
    return numerics.rounded(found.times(float(factor)).relative(numerics.unit))


def _joined(*parts: Estimate) -> Estimate:
    value, worst, square = (
        np.concatenate([getattr(part, name) for part in parts], axis=-1) for name in ("value", "worst", "square")
    )
    return Estimate(value, worst, square)
