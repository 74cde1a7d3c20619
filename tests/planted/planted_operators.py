"""Operators in NumPy as an honest device computes them, in FP32 or rounded to BF16, with faults to plant.

FP32 sums and functions, results rounded to the precision; written apart from the truth that they are held against.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.operators.bench import Offer
from harness.operators.case import Case
from harness.operators.numerics import Numerics
from harness.operators.products import whole
from harness.operators.rounding import round_to
from harness.target import Precision
from planted_cache import fault

Inputs = Mapping[str, NDArray[Any]]
Floats = NDArray[np.float32]

_QUANTISED = {"zero": 0, "root": 0}


class PlantedBench:
    """Every operator; `PLANTED_FAULT` makes one of them wrong."""

    def __init__(self, precision: Precision = Precision.FP32) -> None:
        self._precision = precision
        numerics = Numerics(precision, permitted=(Arithmetic(precision),))
        bits = {"bits": 32 if precision is Precision.FP32 else 16}
        weights = {
            "matmul-float": bits,
            "matmul-int8": {"bits": 8, "group": 0, **_QUANTISED, "zero": 1},
            "matmul-int4": {"bits": 4, "group": 32, **_QUANTISED},
            "embedding": bits,
        }
        lacks = {"swiglu": "this device has no SwiGLU"} if fault("operator-lacking") else {}
        self.offer = Offer(numerics, weights, lacks)

    def run(self, case: Case, inputs: Inputs) -> NDArray[np.floating]:
        if fault("operator-raises") and case.operator == "softmax":
            raise RuntimeError("CL_OUT_OF_RESOURCES")
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            found: Floats = getattr(self, f"_{case.operator.split('-')[0]}")(case, inputs)
        if fault("operator-rows-reversed"):
            return found[::-1]
        return found[:, :-1] if fault("operator-narrow") else found

    def _rounded(self, x: NDArray[np.floating]) -> Floats:
        return round_to(x, self._precision)

    def _matmul(self, case: Case, inputs: Inputs) -> Floats:
        x, weight = inputs["x"], self._rounded(_weight(case, whole(case, inputs)))
        if fault("operator-tiles") and case["n"] > 1024:  # two tiles of 512 output channels are swapped
            weight = np.concatenate([weight[512:1024], weight[:512], weight[1024:]])
        if fault("operator-tail") and case["k"] > 16:  # what no vector of 16 columns holds is forgotten
            kept = case["k"] // 16 * 16
            x, weight = x[:, :kept], weight[:, :kept]
        if fault("operator-half-sums"):
            return _half_sums(x, weight)
        return self._rounded(x @ weight.T)

    def _rms(self, case: Case, inputs: Inputs) -> Floats:
        x = inputs["x"]
        epsilon = np.float32(1e-6 if fault("operator-epsilon") else 1e-5)
        squares = x * x
        if fault("operator-half-squares"):
            squares = squares.astype(np.float16).astype(np.float32)
        root = np.float32(1.0) / np.sqrt(squares.mean(axis=1, keepdims=True) + epsilon)
        return self._rounded(self._rounded(x * root) * inputs["weight"])

    def _swiglu(self, case: Case, inputs: Inputs) -> Floats:
        gate, up = np.split(inputs["x"], 2, axis=1)
        if fault("operator-gate-up"):
            gate, up = up, gate
        if fault("operator-naive-sigmoid"):  # e^x / (1 + e^x) is Inf / Inf for large x
            sigmoid = np.exp(gate) / (np.float32(1.0) + np.exp(gate))
        else:
            sigmoid = np.float32(1.0) / (np.float32(1.0) + np.exp(-gate))
        return self._rounded(self._rounded(gate * self._rounded(sigmoid)) * up)

    def _softmax(self, case: Case, inputs: Inputs) -> Floats:
        x = inputs["x"]
        if fault("operator-mask"):  # what is hidden is only made unlikely
            x = np.maximum(x, np.float32(-10.0))
        return self._rounded(_softmax(x))

    def _embedding(self, case: Case, inputs: Inputs) -> Floats:
        ids = inputs["ids"]
        if fault("operator-embedding"):
            ids = np.minimum(ids + 1, case["v"] - 1)
        return self._rounded(inputs["w"][ids])

    def _rotary(self, case: Case, inputs: Inputs) -> Floats:
        half = case["r"] // 2
        frequencies, positions = inputs["frequencies"], inputs["positions"].astype(np.float32)
        if fault("operator-rotary-base"):  # 1 % more
            frequencies = frequencies * np.float32(1.01) ** (-np.arange(half, dtype=np.float32) / half)
        angles = positions[:, None, None] * frequencies
        if fault("operator-half-angles"):
            angles = angles.astype(np.float16).astype(np.float32)
        factor = np.float32(1.0) if fault("operator-longrope-factor") else inputs["factor"]
        cosine, sine = (self._rounded(f(angles) * factor) for f in (np.cos, np.sin))
        x = inputs["x"]
        first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        if fault("operator-interleaved"):
            first, second = x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
        left = self._rounded(first * cosine) - self._rounded(second * sine)
        right = self._rounded(second * cosine) + self._rounded(first * sine)
        return self._rounded(np.concatenate([left, right, rest], axis=-1))

    _longrope = _rotary

    def _attention(self, case: Case, inputs: Inputs) -> Floats:
        heads, kv = case["heads"], case["kv"]
        of = np.arange(heads) % kv if fault("operator-kv-heads") else np.arange(heads) // (heads // kv)
        key, value = inputs["key"][:, of], inputs["value"][:, of]
        if fault("operator-stale-cache") and len(case.rows) > 1:  # the last row of the first call is lost
            key = key.copy()
            key[case.rows[0] - 1] = 0.0
        distance = np.arange(case.count)[:, None] - np.arange(case.count)[None, :]
        window = case["window"] + (1 if fault("operator-window") else 0)
        seen = (distance >= (-1 if fault("operator-later") else 0)) & (distance < (window if case["window"] else 2**30))
        off = 1.01 if fault("operator-scale") else 1.05 if fault("operator-scale-far") else 1.0
        scale = np.float32(off / math.sqrt(case["d"]))
        scores = np.einsum("qhd,khd->hqk", inputs["query"], key) * scale
        shares = _softmax(np.where(seen, self._rounded(scores), np.float32(-np.inf)))
        return self._rounded(np.einsum("hqk,khd->qhd", self._rounded(shares), value))


def _softmax(x: Floats) -> Floats:
    if not fault("operator-softmax-overflow"):
        x = x - x.max(axis=-1, keepdims=True)
    powers = np.exp(x)
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


def _half_sums(x: Floats, weight: Floats) -> Floats:
    """Sums that are kept in FP16 between blocks of 16 columns."""
    total = np.zeros((x.shape[0], weight.shape[0]), dtype=np.float16)
    for at in range(0, x.shape[1], 16):
        total = (total + x[:, at : at + 16] @ weight[:, at : at + 16].T).astype(np.float16)
    return total.astype(np.float32)


def _weight(case: Case, inputs: Inputs) -> Floats:
    if "w" in inputs:
        return np.asarray(inputs["w"], dtype=np.float32)
    codes, scales = inputs["codes"], inputs["scales"].copy()
    width, group = codes.shape[1], case["group"] or codes.shape[1]
    if fault("operator-nibbles") and case["bits"] == 4:
        codes = codes.reshape(codes.shape[0], -1, 2)[:, :, ::-1].reshape(codes.shape)
    if fault("operator-channel"):  # the scale of one output channel is 5 % off
        scales[0] *= np.float32(1.05)
    if fault("operator-weights"):  # all of them are 1 % off
        scales *= np.float32(1.01)
    zeros = inputs["zeros"].astype(np.float32)
    if fault("operator-zero-points"):
        zeros = np.full_like(zeros, 2.0 ** (case["bits"] - 1))
    columns = np.arange(width) // group
    found: Floats = (codes - zeros[:, columns]) * scales[:, columns]
    return found
