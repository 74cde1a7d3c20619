"""A value in float64 with what rounding may have made of it: running error analysis.

Each operation of an operator is repeated in float64, and bounds of the roundings that an honest implementation makes
are carried along (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.3). Two are kept:

- `worst`: the sum of all bounds. No implementation that rounds as stated can be further off.
- `square`: the sum of their squares. Where roundings are independent and of mean zero, the model of Higham and Mary
  (SIAM J. Sci. Comput. 41(5), 2019), an error is beyond t times the root of this with a probability of at most
  2 exp(-t^2 / 2) (Hoeffding), and the mean square of many errors is not above it. For a product of thousands of terms
  in half precision `worst` says nothing, and this still does.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from harness.operators.rounding import FORMATS, Format
from harness.target import Precision

Array = NDArray[np.float64]


class Estimate:
    """Values with their bounds, arrays of one shape (or of shapes that broadcast)."""

    def __init__(self, value: Array, worst: Array | float = 0.0, square: Array | float = 0.0) -> None:
        self.value = np.asarray(value, dtype=np.float64)
        self.worst = np.broadcast_to(worst, self.value.shape)
        self.square = np.broadcast_to(square, self.value.shape)

    @property
    def deviation(self) -> Array:
        """The root of the sum of squares."""
        return np.asarray(np.sqrt(self.square))

    def off(self, bound: Array | float) -> Estimate:
        """With one more rounding of at most so much."""
        return Estimate(self.value, self.worst + bound, self.square + np.square(bound))

    def relative(self, bound: float) -> Estimate:
        """With one more rounding, relative to the value."""
        size = np.abs(self.value)
        return Estimate(self.value, self.worst + bound * (size + self.worst), self.square + np.square(bound * size))

    def rounded(self, form: Format, *, flushes: bool = False) -> Estimate:
        """Rounded to a format: by its unit roundoff, or below its normal numbers by half its least.

        `flushes`: what lies below the normal numbers may be lost as well.
        """
        small = np.abs(self.value) <= 2.0 * form.least_normal
        return self.relative(form.unit).off(np.where(small & flushes, form.least_normal, form.least / 2.0))

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(self.value + other.value, self.worst + other.worst, self.square + other.square)

    def __sub__(self, other: Estimate) -> Estimate:
        return Estimate(self.value - other.value, self.worst + other.worst, self.square + other.square)

    def __mul__(self, other: Estimate) -> Estimate:
        x, y = np.abs(self.value), np.abs(other.value)
        worst = x * other.worst + y * self.worst + self.worst * other.worst
        return Estimate(self.value * other.value, worst, x**2 * other.square + y**2 * self.square)

    def times(self, factor: Array | float) -> Estimate:
        """Multiplied by what is known exactly."""
        return Estimate(self.value * factor, self.worst * np.abs(factor), self.square * np.square(factor))

    def mapped(self, function: Callable[[Array], Array], slope: Array | float) -> Estimate:
        """A function of it that is nowhere, between what it may be, steeper than `slope`."""
        return Estimate(function(self.value), self.worst * slope, self.square * np.square(slope))


def exact(value: NDArray[np.floating]) -> Estimate:
    """Values that are known exactly."""
    return Estimate(np.asarray(value, dtype=np.float64))


def growth(terms: int, precision: Precision) -> float:
    """What a sum of n terms is off by at most, over the sum of their magnitudes: Higham's gamma_n, any order."""
    product = terms * FORMATS[precision].unit
    return product / (1.0 - product) if product < 0.5 else np.inf
