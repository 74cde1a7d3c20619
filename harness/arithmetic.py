"""How a runtime computes: the documented approximations that belong into the reference and not into a tolerance.

An `Arithmetic` is what a session does by design with an artifact's exact weights: round them to the operators'
precision, quantise activations to int8, keep its cache in fewer bits. The reference repeats all of that, so that
what is left between it and the device is rounding, or a defect. The *compute class* is what that rounding depends on:
the operators' precision and whether activations are int8; limits are keyed by it.
"""

from __future__ import annotations

import enum

import msgspec

from harness.target import Precision


class CachePrecision(str, enum.Enum):
    """In what a KV cache is kept. `u8`: per token and head, 255 steps between least and greatest."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    U8 = "u8"


class Weights(str, enum.Enum):
    """What a runtime makes of the exact weights before it multiplies: nothing, or a rounding to its precision."""

    EXACT = "exact"
    F16 = "f16"
    BF16 = "bf16"


_COARSENESS = (CachePrecision.F32, CachePrecision.F16, CachePrecision.BF16, CachePrecision.U8)


def caches_up_to(stated: CachePrecision) -> tuple[CachePrecision, ...]:
    """The precisions that a cache may be kept in where a runtime states one: that, or a finer one."""
    return _COARSENESS[: _COARSENESS.index(stated) + 1]


class Arithmetic(msgspec.Struct, frozen=True, order=True):
    """One way of computing.

    `operators`: the float precision at whose operators' borders values are rounded. `block`: columns of an
    activation that share a scale where products of quantised weights take int8 activations, 0 where they do not.
    `cache`: what the cache keeps; it matters where a row attends through the cache, which in a prompt fed at once
    no row does. `weights`: what the weights are rounded to.
    """

    operators: Precision = Precision.FP32
    block: int = 0
    cache: CachePrecision = CachePrecision.F32
    weights: Weights = Weights.EXACT

    @property
    def compute_class(self) -> str:
        """The key of the limits: `fp32`, `fp16`, `bf16`, or one of them with `+a8` for int8 activations."""
        return self.operators.value + ("+a8" if self.block else "")

    @property
    def systematic(self) -> Arithmetic:
        """The part that a reference can repeat: rounding at operators' borders is chaotic, and left to yardsticks.

        With it, int8 activations are: what half precision has rounded another way tips other values, so that repeating
        them takes the reference further from the device, not nearer.
        """
        half = self.operators is not Precision.FP32
        return msgspec.structs.replace(self, operators=Precision.FP32, block=0 if half else self.block)

    def __str__(self) -> str:
        parts = [f"{self.operators.value} operators"]
        if self.weights is not Weights.EXACT:
            parts.append(f"weights in {self.weights.value}")
        if self.block:
            parts.append(f"int8 activations by {self.block}")
        if self.cache is not CachePrecision.F32:
            parts.append(f"{self.cache.value} cache")
        return ", ".join(parts)
