"""A small exporter in NumPy, by the schemes of the real ones, and faults to plant in what it exports.

Schemes: `sym4`, `sym8`, `asym4`, `asym8` round to nearest with scales in FP16 as NNCF does; `block` is `sym4` in blocks
of 32 with scales in FP32, as in ONNX Runtime; `rtn4` and `rtn8` are its `rtn`, `kquant4` and `kquant8` its `k_quant`,
with a search for scales; `channel` is neural-compressor's; `searched` has scales that no rule gives; `awq` a
multiplier; `moved` is GPTQ; `float16`, `bfloat16` and `float32` are not quantised.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.checkpoint import Checkpoint
from harness.phi3_float64 import Weights
from harness.weights import Array, Plain, Quantised, Statement, Stored

BLOCKS = ("block", "rtn4", "rtn8", "kquant4", "kquant8")
SCHEMES = ("sym4", "sym8", "asym4", "asym8", "channel", "searched", "awq", "moved", *BLOCKS)
GROUP = {"sym4": 128, "asym4": 128, "searched": 128, "awq": 128, "moved": 128} | dict.fromkeys(BLOCKS, 32)
SAID = {
    "searched": {"scale_estimation": "True", "gptq": "False"},
    "moved": {"scale_estimation": "False", "gptq": "True"},
} | {scheme: {} for scheme in ("channel", *BLOCKS)}
STATED = {"scale_estimation": "False", "gptq": "False"}


class Artifact:
    """What an audit reads: tensors held in memory, any of which a test may replace."""

    def __init__(self, tensors: list[Stored], scheme: Mapping[str, str], stated: list[Statement] | None = None) -> None:
        self.stored = tensors
        self.scheme = scheme
        self.stated = stated or []

    def tensors(self) -> Iterator[Stored]:
        """Every tensor."""
        return iter(self.stored)

    def statements(self) -> list[Statement]:
        """What it was given to state."""
        return self.stated

    def place(self, name: str) -> int:
        """Where a tensor is in `stored`."""
        return next(i for i, stored in enumerate(self.stored) if stored.name == name)

    def quantised(self, name: str) -> Quantised:
        """A quantised tensor's content."""
        content = self.stored[self.place(name)].content
        assert isinstance(content, Quantised)
        return content

    def replace(self, name: str, content: Quantised | Plain) -> None:
        """Put another content in a tensor's place."""
        where = self.place(name)
        self.stored[where] = msgspec.structs.replace(self.stored[where], content=content)

    def change(self, name: str, **fields: Any) -> None:
        """Replace fields of a tensor's content."""
        self.replace(name, msgspec.structs.replace(self.stored[self.place(name)].content, **fields))


def export(checkpoint: Checkpoint, scheme: str) -> Artifact:
    """An artifact of a checkpoint: its products and tables by the scheme, its norms as they are."""
    weights, generator = Weights(checkpoint), np.random.default_rng(3)
    tensors = []
    for name in sorted(weights_of(checkpoint)):
        weight = weights[name]
        if scheme in ("float32", "float16", "bfloat16"):
            content: Quantised | Plain = as_float(weight, scheme)
        elif weight.ndim == 1:
            content = as_float(weight, "float32")
        else:
            content = quantise(weight, scheme, generator)
        tensors.append(Stored(name, 0, f"stored {name}", content))
    return Artifact(tensors, SAID.get(scheme, STATED))


def weights_of(checkpoint: Checkpoint) -> list[str]:
    """The names of a checkpoint's tensors."""
    from harness.tensor_files import TensorFiles

    return list(TensorFiles(checkpoint.weight_files))


def as_float(weight: Array, dtype: str) -> Plain:
    """Values rounded to a dtype."""
    if dtype == "bfloat16":
        bits = weight.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
        return Plain(rounded.view(np.float32), dtype)
    return Plain(weight.astype(dtype), dtype)


def quantise(weight: Array, scheme: str, generator: np.random.Generator) -> Quantised:
    """One tensor `[n, K]` by a scheme."""
    bits = 8 if scheme.endswith("8") else 4
    single, multiplier = weight.astype(np.float32), None
    if scheme == "awq":
        multiplier = (1 / np.abs(single).mean(axis=0)).astype(np.float32)
        multiplier = (1 / multiplier).astype(np.float32)
        single = single * (1 / multiplier).astype(np.float32)
    groups = grouped(single, GROUP.get(scheme, int(single.shape[1])))
    if scheme == "moved":
        return _moved(weight, generator)
    if scheme.startswith("kquant"):
        return k_quant(groups, bits)
    scales, zeros = grid(groups, bits, asymmetric=scheme.startswith("asym"), channel=scheme == "channel")
    if scheme == "searched":
        scales = (scales * generator.uniform(0.78, 1.1, scales.shape)).astype(np.float32)
    if scheme.startswith("rtn"):
        scales = 2 * np.abs(groups).max(axis=-1).astype(np.float64) / (2**bits - 1)
        zeros = np.full_like(scales, 2 ** (bits - 1))
    low, high = (0, 2**bits - 1) if scheme.startswith(("asym", "rtn")) else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    codes = np.clip(np.rint(groups / scales[..., None] + zeros[..., None]), low, high)
    kept = scales.astype(np.float32 if scheme in BLOCKS else np.float16)
    points = zeros.astype(np.int16) if scheme.startswith("asym") else np.full((1, 1), zeros.flat[0], np.int16)
    return Quantised(codes.reshape(weight.shape).astype(np.int16), kept, points, bits, low, high, multiplier)


def k_quant(groups: NDArray[np.float32], bits: int, dtype: type = np.float32) -> Quantised:
    """ONNX Runtime's k-quant of groups `[n, G, g]`; sums in float64 decide some near ties in another way."""
    n, count, size = groups.shape
    x: NDArray[Any] = groups.reshape(-1, size).astype(dtype)
    top = 2**bits - 1
    w = np.sqrt((x**2).sum(axis=1, keepdims=True) / size) + np.abs(x)
    least, most = x.min(axis=1, keepdims=True), x.max(axis=1, keepdims=True)
    scale, best = np.ones_like(least), np.full_like(least, np.inf)
    with np.errstate(all="ignore"):
        for step in range(-1, 20):
            codes_in_range = dtype(top if step < 0 else -1 + 0.1 * step + top)
            finer = np.where(most > least, codes_in_range / (most - least), dtype(1))
            q = np.clip(np.round(finer * (x - least)), 0, top)
            wq, total, moment = w * q, w.sum(axis=1, keepdims=True), (w * x).sum(axis=1, keepdims=True)
            l1, l2, xl = (part.sum(axis=1, keepdims=True) for part in (wq, wq * q, wq * x))
            fitted = (total * xl - moment * l1) / (total * l2 - l1**2)
            lower = (l2 * moment - l1 * xl) / (total * l2 - l1**2)
            if step < 0:
                fitted, lower = 1 / finer, least
            error = (w * (fitted * q + lower - x) ** 2).sum(axis=1, keepdims=True)
            kept = error < best
            best = np.where(kept, error, best)
            scale, least = np.where(kept, fitted, scale), np.where(kept, lower, least)
    zeros = np.clip(np.round(-least / scale), 0, top)
    codes = np.clip(np.round(x / scale.astype(np.float64) + zeros), 0, top)
    shapes = (codes.reshape(n, -1), scale.reshape(n, count), zeros.reshape(n, count))
    return Quantised(shapes[0].astype(np.int16), shapes[1].astype(np.float32), shapes[2].astype(np.int16), bits, 0, top)


def grouped(weight: NDArray[Any], group: int) -> NDArray[Any]:
    """`[n, G, g]`."""
    return weight.reshape(weight.shape[0], -1, min(group, weight.shape[1]))


def grid(groups: NDArray[np.float32], bits: int, *, asymmetric: bool, channel: bool = False) -> tuple[Any, Any]:
    """Scales and zero points `[n, G]` in float32."""
    most, least = groups.max(axis=-1), groups.min(axis=-1)
    if asymmetric:
        least, most = np.minimum(least, 0), np.maximum(most, 0)
        scales = ((most - least) / (2**bits - 1)).astype(np.float32)
        return scales, np.clip(-np.rint(least / scales), 0, 2**bits - 1)
    if channel:
        return (np.maximum(most, -least) / (2 ** (bits - 1) - 1)).astype(np.float32), np.zeros_like(most)
    return (np.where(-least >= most, -least, -most) / 2 ** (bits - 1)).astype(np.float32), np.zeros_like(most)


def _moved(weight: Array, generator: np.random.Generator) -> Quantised:
    """GPTQ (arXiv 2210.17323) on activations that are correlated, in blocks of a group."""
    width, group = weight.shape[1], min(128, weight.shape[1])
    activations = generator.normal(size=(4 * width, width)) @ (
        np.eye(width) + 0.15 * generator.normal(size=(width, width))
    )
    hessian = activations.T @ activations
    hessian += np.eye(width) * 0.1 * np.diag(hessian).mean()
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    left, codes, scales = weight.copy(), np.empty(weight.shape), []
    for begin in range(0, width, group):
        scale, _ = grid(left[:, None, begin : begin + group].astype(np.float32), 4, asymmetric=False)
        scales.append(scale)
        for column in range(begin, begin + group):
            codes[:, column] = np.clip(np.rint(left[:, column] / scale[:, 0]), -8, 7)
            error = (left[:, column] - codes[:, column] * scale[:, 0]) / upper[column, column]
            left[:, column:] -= np.outer(error, upper[column, column:])
    kept = np.concatenate(scales, axis=1).astype(np.float16)
    return Quantised(codes.astype(np.int16), kept, np.zeros((1, 1), np.int16), 4, -8, 7)
