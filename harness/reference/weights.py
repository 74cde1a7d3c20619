"""The weights of a model in FP32, as a forward pass asks for them: all in memory, or read as it goes on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from harness.layout import EMBEDDING, HEAD, NORM

# Values that a cache line holds: blocks begin where one does, as tensors of their own do.
_LINE = 16


class Weight(NamedTuple):
    """A tensor in FP32, and whether its artifact holds it as integer codes."""

    values: Tensor
    quantised: bool = False
    multiplier: Tensor | None = None
    """`[K]`: what the activations are multiplied with before the product (AWQ), and before they are quantised."""


class Store(Protocol):
    """The weights of a model, asked for in the order of a pass: the embedding, layer by layer, then the LM head."""

    def __getitem__(self, name: str, /) -> Weight:
        """A tensor by its name in the checkpoint, valid until one of another layer is asked for."""
        ...

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding, `[n, H]`."""
        ...

    @property
    def quantised(self) -> bool:
        """Whether any of them is."""
        ...

    @property
    def blocks(self) -> Sequence[slice]:
        """The rows of the LM head that are held at once."""
        ...

    def head(self, block: int) -> tuple[Weight, Weight]:
        """The final norm's weight `[H]`, and a block of the LM head `[n, H]`."""
        ...

    def rounded(self, dtype: torch.dtype) -> Store:
        """The same, each value rounded to a precision and back to FP32."""
        ...


class Resident(dict[str, Weight]):
    """All weights in memory; see `Store`."""

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """See `Store`."""
        return self[EMBEDDING].values[torch.tensor(tokens)]

    @property
    def quantised(self) -> bool:
        """See `Store`."""
        return any(weight.quantised for weight in self.values())

    @cached_property
    def blocks(self) -> Sequence[slice]:
        """See `Store`; the last bits of a product hang on its extents, and are the same however weights are held."""
        layer = sum(weight.values.numel() for name, weight in self.items() if name.startswith("model.layers.0."))
        return head_blocks(self._head.values.shape, layer)

    def head(self, block: int) -> tuple[Weight, Weight]:
        """See `Store`."""
        return self[NORM], self._head._replace(values=self._head.values[self.blocks[block]])

    @property
    def _head(self) -> Weight:
        return self[HEAD if HEAD in self else EMBEDDING]

    def rounded(self, dtype: torch.dtype) -> Resident:
        """See `Store`."""
        return Resident({name: rounded(weight, dtype) for name, weight in self.items()})


def head_blocks(head: tuple[int, ...], layer: int) -> tuple[slice, ...]:
    """The rows of an LM head `[V, H]` in blocks, none of more values than a layer has."""
    step = max(1, layer // head[1])
    step = step // _LINE * _LINE or step
    return tuple(slice(start, min(start + step, head[0])) for start in range(0, head[0], step))


def rounded(weight: Weight, dtype: torch.dtype) -> Weight:
    """A weight rounded to a precision and back to FP32."""
    return weight._replace(values=weight.values.to(dtype).to(torch.float32))
