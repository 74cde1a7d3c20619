"""A stored tensor taken apart so that a fault can change it, and its bytes put together again."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray


class Tensor(msgspec.Struct):
    """A quantised tensor: `codes` `[n, K]` int16, `scales` `[n, G]` as stored, `zeros` `[n, G]` int16 or None.

    `bits`, and whether codes are `signed`. Faults change the arrays in place.
    """

    name: str
    bits: int
    signed: bool
    codes: NDArray[Any]
    scales: NDArray[Any]
    zeros: NDArray[Any] | None = None

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    @property
    def range(self) -> tuple[int, int]:
        """The least and the greatest code."""
        half = 1 << (self.bits - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


def pack(codes: NDArray[Any], bits: int) -> bytes:
    """Codes `[..., k]` as they lie in bytes, low half first."""
    unsigned = (codes.astype(np.int64) & ((1 << bits) - 1)).astype(np.uint8)
    if bits == 8:
        return unsigned.tobytes()
    flat = unsigned.reshape(-1, 2)
    return np.asarray(flat[:, 0] | (flat[:, 1] << 4), dtype=np.uint8).tobytes()
