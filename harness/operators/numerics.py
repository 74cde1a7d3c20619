"""How a runtime computes an operator: what the bounds on its error are derived from."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.operators.estimate import Estimate, exact
from harness.operators.rounding import FORMATS, Format
from harness.target import Precision

# Units in the last place by which elementary functions in single precision may be off, as the full profile of OpenCL C
# 3.0 has it (section 7.4, "Relative Error as ULPs"): the one standard that states them for GPUs, NPUs and CPUs alike.
EXP, SIN_COS, ROOT, DIVISION = 3.0, 4.0, 3.0, 2.5


class Numerics(msgspec.Struct, frozen=True):
    """What the runtime reports, or documents, of a device.

    `precision`: what it computes in; results of operators are rounded to it. `inner`: what sums are accumulated and
    functions evaluated in. `flushes`: subnormal numbers are taken for zero. `permitted`: every way of computing that
    its documentation allows, of which blocks of int8 activations and the cache matter here; the nearest is taken.
    """

    precision: Precision
    inner: Precision = Precision.FP32
    flushes: bool = False
    permitted: tuple[Arithmetic, ...] = (Arithmetic(),)
    stored: Precision | None = None
    """What tensors between operators are kept in, where that is another precision: inputs and results are rounded
    twice."""

    @property
    def grid(self) -> Precision:
        """The precision that inputs are given in, and so drawn in."""
        return self.stored or self.precision

    @property
    def coarsened(self) -> float:
        """What an input is rounded by before it is computed with, relative: 0 where it is on the grid already."""
        return 0.0 if self.stored is None else self.form.unit

    @property
    def greatest(self) -> float:
        """The largest result that is not infinite."""
        return min(self.form.greatest, FORMATS[self.grid].greatest)

    def rounded(self, found: Estimate) -> Estimate:
        """The result of an operator, rounded to what is computed in."""
        found = found.rounded(self.form, flushes=self.flushes)
        return found if self.stored is None else found.rounded(FORMATS[self.stored])

    def entered(self, values: NDArray[np.floating]) -> Estimate:
        """Inputs, which are known exactly, but for being rounded first, or taken for zero where they are subnormal."""
        found = exact(values).relative(self.coarsened)
        lost = np.abs(found.value) < self.form.least_normal
        return found.off(np.where(lost, np.abs(found.value), 0.0)) if self.flushes else found

    @property
    def form(self) -> Format:
        """The format of `precision`."""
        return FORMATS[self.precision]

    @property
    def unit(self) -> float:
        """The unit roundoff of `inner`."""
        return FORMATS[self.inner].unit

    def ulps(self, count: float) -> float:
        """So many units in the last place of `inner`, relative: one is at most two unit roundoffs."""
        return 2.0 * count * self.unit

    @property
    def least(self) -> float:
        """What a result that is too small for a normal number of `inner` may lose."""
        return FORMATS[self.inner].least_normal
