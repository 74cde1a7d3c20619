"""Values drawn from a seed: the same bytes on every machine and with every NumPy.

Everything is made from the raw words of PCG64, whose stream NumPy keeps for ever (NEP 19); the methods of Generator
may change between releases, and a worker's NumPy is not the controller's.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.operators.case import Values
from harness.operators.rounding import FORMATS, round_to
from harness.target import Precision

Floats = NDArray[np.float32]

# Columns of outliers: one of so many, and how many times as large they are.
_EVERY, _TIMES = 64, 64.0


class Stream:
    """A stream of drawn values."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def words(self, count: int) -> NDArray[np.uint64]:
        """Raw words of 64 bits."""
        return np.asarray(self._bits.random_raw(count), dtype=np.uint64)

    def octets(self, *shape: int) -> NDArray[np.uint8]:
        """Bytes in a shape."""
        count = int(np.prod(shape))
        return self.words(-(-count // 8)).astype("<u8").view(np.uint8)[:count].reshape(shape)

    def uniform(self, *shape: int) -> NDArray[np.float64]:
        """From -1 to 1, neither included, in steps of 2^-15."""
        count = int(np.prod(shape))
        halves = self.words(-(-count // 4)).astype("<u8").view("<u2")[:count]
        return (halves.astype(np.float64) * 2.0 + 1.0).reshape(shape) * 2.0**-16 - 1.0

    def bell(self, *shape: int) -> NDArray[np.float64]:
        """From -1 to 1, bell-shaped: the mean of four uniform values, with a standard deviation of 0.29.

        It has 17 bits, so a value is not exact in half precision before it is rounded to it.
        """
        return sum((self.uniform(*shape) for _ in range(3)), self.uniform(*shape)) / 4.0

    def below(self, limit: int, *shape: int) -> NDArray[np.int64]:
        """Whole numbers from 0 up to a limit."""
        words = self.words(int(np.prod(shape))) % np.uint64(limit)
        return words.astype(np.int64).reshape(shape)


def drawn(
    stream: Stream, values: Values, grid: Precision, rows: int, width: int, *, scale: float = 1.0, large: float = 1.0
) -> Floats:
    """Values `[rows, width]` of a kind, rounded to the grid of a precision.

    `scale`: the size of plain values. `large`: what large ones may reach.
    """
    form = FORMATS[grid]
    found = stream.bell(rows, width) * scale
    if values is Values.OUTLIERS:
        column = int(stream.below(min(_EVERY, width), 1)[0])
        found[:, column::_EVERY] *= _TIMES
    elif values is Values.WIDE:
        found *= 2.0 ** np.floor(stream.uniform(rows, width) * 4.0)
    elif values is Values.LARGE:
        found *= large / scale
    elif values is Values.TINY:
        found *= 16.0 * form.least_normal / scale
    elif values is Values.SUBNORMAL:
        found *= form.least_normal / scale
    elif values is Values.EQUAL:
        found[:] = 0.75 * scale
    elif values is Values.ALTERNATING:
        found[:] = 0.75 * scale * (1.0 - 2.0 * (np.arange(width) % 2))
    elif values is Values.ZEROS:
        found[0] = 0.0
        found[:, ::2] = 0.0
    rounded = round_to(found, grid)
    if values is Values.MASKED:
        hidden = stream.uniform(rows, width) > 0.0
        hidden[np.arange(rows), stream.below(width, rows)] = False
        rounded[hidden] = -np.inf
    return rounded


def digest(arrays: Mapping[str, NDArray[Any]]) -> int:
    """A checksum of drawn values, which shows that controller and worker have drawn the same."""
    found = 0
    for name in sorted(arrays):
        found = zlib.crc32(np.ascontiguousarray(arrays[name]).view(np.uint8).data, zlib.crc32(name.encode(), found))
    return found
