"""The operators that the reference computes with: one class of rounding, one order of summation.

Everything is computed in FP32; a coarser precision is had by rounding at the operators' borders, which is within
1.3 x of what real half-precision kernels give and five times as fast on a CPU. What an honest runtime may do
otherwise (sum in another order, fuse operators, attend by another kernel) is a `Variant`.
"""

from __future__ import annotations

import math

import msgspec
import torch
from torch import Tensor

from harness.arithmetic import Arithmetic, CachePrecision
from harness.target import Precision

_DTYPES = {Precision.FP32: torch.float32, Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
_CACHES = {CachePrecision.F16: torch.float16, CachePrecision.BF16: torch.bfloat16}


class Variant(msgspec.Struct, frozen=True):
    """An honest way of computing the same.

    `split`: the columns of a product are summed in so many parts. `attention`: `eager`, or `online`, which walks
    over the keys in blocks as flash attention does. `fused`: only operands of products are rounded, and what lies
    between them is not. `jitter`: relative noise of this size on the results of products and of norms, seeded.
    `single`: rows are computed as they are in decoding, one by one in the product of attention.
    """

    name: str = "plain"
    split: int = 1
    attention: str = "eager"
    fused: bool = False
    jitter: float = 0.0


PLAIN = Variant()
# What honest runtimes differ in. The jitter is half a unit in the last place of FP32: where rounding is chaotic (int8
# activations, half precision) the answer to it is as large as the answer to any other order of summation.
VARIANTS = (
    Variant("split", split=4),
    Variant("online", attention="online"),
    Variant("fused", fused=True, jitter=6e-8),
    Variant("jitter", jitter=6e-8),
)


class Kernels:
    """The operators for one arithmetic and one variant."""

    def __init__(self, arithmetic: Arithmetic, variant: Variant = PLAIN) -> None:
        self.arithmetic = arithmetic
        self.variant = variant
        self._dtype = _DTYPES[arithmetic.operators]
        self._generator = torch.Generator().manual_seed(20261125)
        self._of_norms = torch.Generator().manual_seed(20261126)

    def between(self, x: Tensor) -> Tensor:
        """Round the result of an operator that feeds another one; not where operators are fused."""
        return x if self.variant.fused else self.round(x)

    def round(self, x: Tensor) -> Tensor:
        """Round to the operators' precision, staying in FP32."""
        return x if self._dtype is torch.float32 else x.to(self._dtype).to(torch.float32)

    def enter(self, name: str) -> None:
        """Called with the name of the weight that the next product or norm takes, for those who look on."""

    def product(self, x: Tensor, weight: Tensor, *, quantised: bool) -> Tensor:
        """`[n, K]` by `[N, K]` to `[n, N]`; a quantised weight meets int8 activations where they are in effect."""
        return self.finished(self.sums(x, weight, quantised=quantised))

    def sums(self, x: Tensor, weight: Tensor, *, quantised: bool) -> Tensor:
        """A product before it is `finished`: by some rows of a weight it is those columns of the one by all."""
        x = self.round(x)
        if quantised and self.arithmetic.block:
            x = int8_blocks(x, self.arithmetic.block)
        return self._sum(x, weight)

    def finished(self, sums: Tensor) -> Tensor:
        """A whole product as it is handed on."""
        return self.round(self._jittered(sums, self._generator))

    def _sum(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.variant.split == 1:
            return x @ weight.T
        step = math.ceil(x.shape[-1] / self.variant.split)
        parts = [x[:, at : at + step] @ weight[:, at : at + step].T for at in range(0, x.shape[-1], step)]
        total = parts[-1]
        for part in reversed(parts[:-1]):
            total = total + part
        return total

    def _jittered(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if not self.variant.jitter:
            return x
        noise = torch.rand(x.shape, generator=generator) * 2.0 - 1.0
        return x * (1.0 + self.variant.jitter * noise)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm over the last axis.

        Its result is jittered too: the rows of an embedding in 4 bits have few values, whose norms lie on the borders
        between two codes of int8 activations, and there is no product before the first norm.
        """
        scaled = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)
        return self.between(self._jittered(weight * self.between(scaled), self._of_norms))

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """`[n, 2 I]`, gate first, to `[n, I]`."""
        gate, up = gate_up.chunk(2, dim=-1)
        return self.between(up * self.between(torch.nn.functional.silu(gate)))

    def cached(self, x: Tensor) -> Tensor:
        """What the cache gives back of keys or values `[heads, n, size]`."""
        if self.arithmetic.cache is CachePrecision.U8:
            return u8_rows(x)
        dtype = _CACHES.get(self.arithmetic.cache)
        return x if dtype is None else x.to(dtype).to(torch.float32)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """`[heads, m, size]` queries over `[heads, n, size]` keys and values; `visible` is `[m, n]`."""
        query, key, value = self.round(query), self.round(key), self.round(value)
        scale = 1.0 / math.sqrt(query.shape[-1])
        if self.variant.attention == "online":
            return self.round(_online(query * scale, key, value, visible))
        scores = self.between(query @ key.transpose(-1, -2)) * scale
        scores = scores.masked_fill(~visible, -torch.inf)
        return self.round(self.between(torch.softmax(scores, dim=-1)) @ value)


def _online(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, step: int = 48) -> Tensor:
    """Attention that walks over blocks of keys with a running maximum and sum."""
    best = torch.full((*query.shape[:-1], 1), -torch.inf)
    total, mixed = torch.zeros_like(best), torch.zeros_like(query)
    for at in range(0, key.shape[1], step):
        scores = query @ key[:, at : at + step].transpose(-1, -2)
        scores = scores.masked_fill(~visible[:, at : at + step], -torch.inf)
        higher = torch.maximum(best, scores.amax(-1, keepdim=True))
        safe = torch.where(higher == -torch.inf, torch.zeros_like(higher), higher)
        share, weights = torch.exp(best - safe), torch.exp(scores - safe)
        total = total * share + weights.sum(-1, keepdim=True)
        mixed = mixed * share + weights @ value[:, at : at + step]
        best = higher
    return mixed / total


def int8_blocks(x: Tensor, block: int) -> Tensor:
    """Activations `[n, K]` as int8 gives them back: symmetric, a scale for each block of columns, absmax / 127.

    Source: ONNX Runtime's MLAS (accuracy_level 4 of MatMulNBits); rounds half to even.
    """
    n, width = x.shape
    padded = torch.nn.functional.pad(x, (0, -width % block)).reshape(n, -1, block)
    scale = padded.abs().amax(-1, keepdim=True) / 127.0
    inverse = torch.where(scale > 0, 1.0 / scale, torch.zeros_like(scale))
    return (torch.round(padded * inverse) * scale).reshape(n, -1)[:, :width]


def u8_rows(x: Tensor) -> Tensor:
    """Keys or values as a u8 cache gives them back: each row of `[..., size]` in 255 steps from least to greatest.

    Source: OpenVINO's CPU plugin (attn_quant.cpp): scale = (max - min) / 255, zero point -min / scale, a float.
    """
    least, most = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = (most - least) / 255.0
    scale = torch.where(scale == 0, torch.full_like(scale, 1e-4), scale)
    zero = -least / scale
    codes = torch.round(x / scale + zero).clamp(0, 255)
    return (codes - zero) * scale
