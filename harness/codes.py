"""Codes of a few bits as they lie in bytes: the first in the lowest bits, in every format known here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def unpack(packed: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unsigned codes of 2, 4 or 8 bits out of bytes `[..., b]`: `[..., 8 b / bits]`."""
    if bits == 8:
        return packed
    per = 8 // bits
    codes = np.empty((*packed.shape, per), dtype=np.uint8)
    for i in range(per):
        codes[..., i] = (packed >> (i * bits)) & ((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], packed.shape[-1] * per)


def signed(codes: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """The two's complement of unsigned codes of up to 8 bits, as int8."""
    half = 1 << (bits - 1)
    return ((codes.astype(np.int16) ^ half) - half).astype(np.int8)
