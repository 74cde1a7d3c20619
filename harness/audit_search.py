"""How k-quant chooses a scale: a search among twenty candidates, repeated here so that its outcome can be compared.

As ONNX Runtime's exporter does it (`quant_tensor_k_quant_cpu` in neural_compressor/weight_only.py), in float32, step
by step: a grid over the group's range to begin with; then grids that are finer by a tenth of a code each, to whose
codes a scale and a least value are fitted by least squares, weighted by |w| + rms(w). A fit is kept where its squared
error is smaller, and its least value is where the next grid begins: the outcome hangs on every decision before it.

On official exports of the bundled checkpoint (in FP32 and FP16, by groups of 32 and of 128) this gives every scale and
every zero point of half a million groups as stored, to the last bit. Where sums are taken in another order, as an
exporter that runs on a GPU may, near ties fall otherwise: seven orders gave another outcome for 1.4 to 3.4 groups of 32
in 1000, and for 7 to 15 of 128. The scales were then up to 10 % apart at four bits and 0.6 % at eight, the zero points
one. Where the choices were the same, the scales were within 1.6e-5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Single = NDArray[np.float32]

_STEPS = 20
# What fits into a processor's cache, in weights.
_BLOCK = 1 << 15


def search(weight: Single, bits: int) -> tuple[Single, Single]:
    """The scale and the least value, `[m]` each, that k-quant chooses for groups of weights `[m, g]`.

    The zero point is -least / scale, rounded and cut off. A group of equal weights gets the scale 1.
    """
    m, size = weight.shape
    rows = max(1, _BLOCK // size)
    scale, least = np.empty(m, np.float32), np.empty(m, np.float32)
    for begin in range(0, m, rows):
        block = slice(begin, begin + rows)
        scale[block], least[block] = _search(np.ascontiguousarray(weight[block]), bits)
    return scale, least


def _search(weight: Single, bits: int) -> tuple[Single, Single]:
    top = 2**bits - 1
    importance = np.sqrt(_sum(weight**2) / weight.shape[1]) + np.abs(weight)
    least, most = weight.min(axis=1, keepdims=True), weight.max(axis=1, keepdims=True)
    total, moment = _sum(importance), _sum(importance * weight)
    with np.errstate(all="ignore"):  # where weights are equal there is nothing to fit, and NaN is kept nowhere
        inverse = _inverse(np.float32(top), least, most)
        scale = np.float32(1) / inverse
        codes = np.clip(np.round(inverse * (weight - least)), 0, top)
        best = _sum(importance * (scale * codes + least - weight) ** 2)
        for step in range(_STEPS):
            inverse = _inverse(np.float32(-1 + 0.1 * step + top), least, most)
            codes = np.clip(np.round(inverse * (weight - least)), 0, top)
            product = importance * codes
            first, second, cross = _sum(product), _sum(product * codes), _sum(product * weight)
            spread = total * second - first**2
            fitted = (total * cross - moment * first) / spread
            lower = (second * moment - first * cross) / spread
            error = _sum(importance * (fitted * codes + lower - weight) ** 2)
            better = error < best
            best = np.where(better, error, best)
            scale, least = np.where(better, fitted, scale), np.where(better, lower, least)
    return scale[:, 0], least[:, 0]


def _sum(values: Single) -> Single:
    return np.asarray(np.sum(values, axis=1, keepdims=True), dtype=np.float32)


def _inverse(codes: np.float32, least: Single, most: Single) -> Single:
    """Codes in a unit of weight."""
    return np.asarray(np.where(least != most, codes / (most - least), np.float32(1)), dtype=np.float32)
