"""What the codes of OpenVINO's small floats stand for, and how its scales are stored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The quantiles of a normal distribution that QLoRA (arXiv 2305.14314, appendix E) gives for NF4.
_NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


NAMES = ("nf4", "f4e2m1", "f8e4m3")
"""The element types that `levels_of` knows."""


def levels_of(kind: str) -> NDArray[np.float64] | None:
    """What each code of an element type stands for, `[2^bits]`; None for the types whose codes are numbers."""
    if kind == "nf4":
        return np.asarray(_NF4, dtype=np.float64)
    if kind == "f4e2m1":
        return _small_float(exponent_bits=2, mantissa_bits=1)
    if kind == "f8e4m3":
        levels = _small_float(exponent_bits=4, mantissa_bits=3)
        levels[[0x7F, 0xFF]] = np.nan  # no infinities; one code of each sign is no number
        return levels
    return None


def _small_float(exponent_bits: int, mantissa_bits: int) -> NDArray[np.float64]:
    """The values of a float format: sign, exponent and mantissa from the highest bit down, subnormals included."""
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = (codes & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    bias = (1 << (exponent_bits - 1)) - 1
    magnitude = np.where(
        exponent == 0, mantissa * 2.0 ** (1 - bias), (1 + mantissa) * 2.0 ** (exponent - bias).astype(np.float64)
    )
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    return np.asarray(sign * magnitude, dtype=np.float64)


def _powers(codes: NDArray[Any]) -> NDArray[np.float32]:
    """f8e8m0: an exponent and nothing else; 255 is no number."""
    exponents = codes.astype(np.float64) - 127
    return np.where(codes == 255, np.nan, 2.0**exponents).astype(np.float32)


# How the scales of each element type are read: as stored where NumPy has the type.
SCALES: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "f16": lambda values: values,
    "bf16": lambda values: values,
    "f32": lambda values: values,
    "f8e8m0": _powers,
}
