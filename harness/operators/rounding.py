"""The float formats that operators compute in: their unit roundoff, their range, and rounding to them.

The unit roundoff u of a format with p significant bits is 2^-p when rounding to nearest (Higham, Accuracy and Stability
of Numerical Algorithms, 2nd ed., section 2.1): fl(x) = x (1 + d) + e with |d| <= u, |e| <= half the least subnormal.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.target import Precision

Array = NDArray[np.float64]


class Format(msgspec.Struct, frozen=True):
    """A binary float format. `bits`: of the significand, the hidden one included. `low`: the exponent of the least
    normal number. `greatest`: the largest finite number.
    """

    name: str
    bits: int
    low: int
    greatest: float

    @property
    def unit(self) -> float:
        """The unit roundoff, relative."""
        return 2.0**-self.bits

    @property
    def least_normal(self) -> float:
        """The least normal number."""
        return 2.0**self.low

    @property
    def least(self) -> float:
        """The least subnormal number."""
        return 2.0 ** (self.low - self.bits + 1)

    def spacing(self, x: Array) -> Array:
        """The distance between the numbers of the format around x: one unit in its last place."""
        size = np.maximum(np.abs(x), self.least_normal)
        return np.asarray(2.0 ** (np.floor(np.log2(size)) - self.bits + 1))


# IEEE 754-2019, table 3.5; bfloat16 is binary32 cut to 16 bits.
FORMATS = {
    Precision.FP32: Format("fp32", 24, -126, (2.0 - 2.0**-23) * 2.0**127),
    Precision.FP16: Format("fp16", 11, -14, 65504.0),
    Precision.BF16: Format("bf16", 8, -126, (2.0 - 2.0**-7) * 2.0**127),
}


def round_to(x: NDArray[np.floating], precision: Precision) -> NDArray[np.float32]:
    """Round to nearest, ties to even, by way of FP32; what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        single = np.asarray(x, dtype=np.float32)
        if precision is Precision.FP16:
            return single.astype(np.float16).astype(np.float32)
    if precision is not Precision.BF16:
        return single
    words = single.view(np.uint32)
    # Add just under half of the last place that is kept, and one more where that place is odd; infinities stay.
    rounded = (words + (np.uint32(0x7FFF) + ((words >> np.uint32(16)) & np.uint32(1)))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(single), rounded.view(np.float32), single)
