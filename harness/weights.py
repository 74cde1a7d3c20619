"""What an artifact stores: weights as codes, scales and zero points, and what it states beside them.

Shapes: n rows (output channels), K columns (input channels), G groups of K / G neighbouring columns that share a
scale. The weight that a stored tensor stands for is (code - zero point) x scale in float64; a runtime's own
folding rounds it to FP16, which is more than its kernels are off by.

Everything is named by the checkpoint's own tensor names. An artifact may split a fused tensor (query, key and value)
into several stored ones, each of which says at which row of the checkpoint's tensor it begins.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class Quantised(msgspec.Struct, frozen=True):
    """Integer codes with their grid.

    `codes`: `[n, K]` integers as stored, unpacked. `scales`: `[n, G]` float16 or float32 as stored, or float64 products
    of two FP16 numbers; may be negative. `zero_points`: `[n, G]` integers, or `[1, 1]` where one serves all. `low` and
    `high`: the least and the greatest code that the storage can hold. `multiplier`: `[K]`, what the graph multiplies
    the activations with before this product (AWQ), None where it does not. `levels`: what each of the `2^bits` codes
    stands for before scaling, where that is not the code itself (NF4 and the small floats); there are no zero points
    then.
    """

    codes: NDArray[Any]
    scales: NDArray[Any]
    zero_points: NDArray[Any]
    bits: int
    low: int
    high: int
    multiplier: NDArray[Any] | None = None
    levels: NDArray[np.float64] | None = None

    @property
    def group(self) -> int:
        """Columns that share a scale."""
        return int(self.codes.shape[1] // self.scales.shape[1])

    def of_rows(self, rows: slice | NDArray[np.int64]) -> Quantised:
        """The same of some rows."""
        zero_points = self.zero_points
        if zero_points.shape[0] == self.codes.shape[0]:
            zero_points = zero_points[rows]
        codes, scales = self.codes[rows], self.scales[rows]
        return msgspec.structs.replace(self, codes=codes, scales=scales, zero_points=zero_points)

    def product(self) -> Array:
        """The weight `[n, K]` that codes, zero points and scales stand for, the multiplier folded in."""
        n, width = self.codes.shape
        groups = self.scales.shape[1]
        held = self.codes if self.levels is None else self.levels[self.codes]
        codes = held.reshape(n, groups, width // groups).astype(np.float64)
        found = (codes - self.zero_points.astype(np.float64)[..., None]) * self.scales.astype(np.float64)[..., None]
        weight: Array = found.reshape(n, width)
        return weight if self.multiplier is None else weight * self.multiplier.astype(np.float64)


class Plain(msgspec.Struct, frozen=True):
    """Float values `[n, K]` or `[n]`. `dtype` is the stored one: float32, float16 or bfloat16 (widened to float32)."""

    values: NDArray[Any]
    dtype: str
    multiplier: NDArray[Any] | None = None

    def of_rows(self, rows: slice | NDArray[np.int64]) -> Plain:
        """The same of some rows."""
        return msgspec.structs.replace(self, values=self.values[rows])

    def product(self) -> Array:
        """The values in float64, the multiplier folded in."""
        weight: Array = self.values.astype(np.float64)
        return weight if self.multiplier is None else weight * self.multiplier.astype(np.float64)


class Stored(msgspec.Struct, frozen=True):
    """A tensor of an artifact: which rows of which checkpoint tensor it stands for, and what it is called there."""

    name: str
    row: int
    source: str
    content: Quantised | Plain

    @property
    def rows(self) -> int:
        """How many rows it has."""
        held = self.content.codes if isinstance(self.content, Quantised) else self.content.values
        return int(held.shape[0])


class Part(NamedTuple):
    """A tensor of an artifact that can be read when it is needed: its rows of the checkpoint's tensor `name`.

    `read` reads it; it raises ArtifactError where that cannot be done.
    """

    name: str
    row: int
    rows: int
    read: Callable[[], Stored]


class Statement(msgspec.Struct, frozen=True):
    """Something that an artifact states beside its weights, to be held against the checkpoint.

    `what` is one of the names that `harness.statements` can tell the right value of; `layer` the layer it is
    stated for, None where for all; `source` the node, attribute or file that states it.
    """

    what: str
    value: NDArray[np.float64]
    source: str
    layer: int | None = None


class ArtifactWeights(Protocol):
    """The weights of one artifact, read from its files without a runtime."""

    @property
    def scheme(self) -> Mapping[str, str]:
        """What the artifact says of how it was quantised, in the exporter's words; empty where it says nothing."""
        ...

    def tensors(self) -> Iterator[Stored]:
        """Every tensor, one at a time. Raises ArtifactError naming one that cannot be mapped or read."""
        ...

    def statements(self) -> list[Statement]:
        """What the artifact states beside its weights."""
        ...


@runtime_checkable
class InParts(Protocol):
    """Weights of which each tensor can be read by itself, so that no more need be in memory than are computed with."""

    def parts(self) -> list[Part]:
        """Every tensor in the order of `ArtifactWeights.tensors`, none of them read."""
        ...


@runtime_checkable
class ReadsWeights(Protocol):
    """A backend whose artifacts can be read without its runtime: what the three errors are told apart by."""

    def dequantized_weights(self, artifact: Path, config: Mapping[str, Any]) -> ArtifactWeights:
        """Open an artifact; `config` is the checkpoint's config.json. Raises ArtifactError, see `ArtifactWeights`."""
        ...
