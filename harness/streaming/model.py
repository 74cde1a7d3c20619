"""Phi-3's forward pass over staged weights: all texts through one layer, then through the next.

The operators and their order are those of `harness.reference.model`, in FP32. A pass over whole texts computes every
text's products by themselves, so that what a text is given hangs on no other; a pass of decoding puts the tokens of all
texts into one product.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harness import phi3_float64
from harness.arithmetic import Arithmetic
from harness.reference.kernels import Kernels
from harness.reference.model import Phi3
from harness.streaming.caches import Caches
from harness.streaming.feed import Step, Whole
from harness.streaming.weights import StagedWeights

# Rows of one product in decoding: as fast as more, and what lies between the products stays small.
_MOST_ROWS = 1024

Attention = Callable[[int, Tensor], Tensor]
"""Takes the number of a layer and queries, keys and values of some texts to what they attend to."""


class _Group(NamedTuple):
    """Texts whose tokens go through the products together."""

    tokens: tuple[int, ...]
    attention: Attention


class StreamedPhi3(Phi3):
    """The model of one configuration on weights that are read as a pass goes on.

    Iterators yield once a layer, and are gone on with in `torch.inference_mode`.
    """

    def __init__(self, config: Mapping[str, Any], weights: StagedWeights) -> None:
        super().__init__(config, weights)
        self._staged = weights
        self._plain = Kernels(Arithmetic())

    def whole(self, texts: Sequence[Whole], logits: Sequence[Tensor], states: Sequence[Tensor] = ()) -> Iterator[int]:
        """Write the logits `[n_i, V]` of texts; and, where asked for, their states `[L + 1, n_i, H]`.

        States are the embedding, then those after each layer, the last after the final norm.
        """
        groups = [_Group((*text.tokens, *[0] * text.padding), self._of_whole(text)) for text in texts]

        def see(layer: int, found: list[Tensor]) -> None:
            for text, x, kept in zip(texts, found, states, strict=bool(states)):
                kept[layer] = x[: len(text.tokens)]

        yield from self._through(groups, see if states else None, list(logits))

    def step(self, steps: Sequence[Step], caches: Caches, best: list[list[int]]) -> Iterator[int]:
        """Feed steps and append, for each, the tokens with the highest logits after its last `wanted` tokens."""
        joined = list(_joined(steps))
        groups = [
            _Group(tuple(t for step in some for t in step.tokens), self._of_steps(some, caches)) for some in joined
        ]
        last = [torch.cat([_wanted(step, at) for step, at in _places(some)]) for some in joined]
        logits = [torch.empty(rows.numel(), int(self._config["vocab_size"])) for rows in last]
        yield from self._through(groups, None, logits, last)
        for some, rows in zip(joined, logits, strict=True):
            best += [part.argmax(-1).tolist() for part in rows.split([step.wanted for step in some])]

    def _through(
        self,
        groups: Sequence[_Group],
        see: Callable[[int, list[Tensor]], None] | None,
        logits: list[Tensor],
        last: Sequence[Tensor] = (),
    ) -> Iterator[int]:
        """All groups through all layers, then their rows, or the `last` ones only, through the LM head.

        Rows that `logits` have no room for are computed and thrown away.
        """
        states = [self._staged.embedded(group.tokens) for group in groups]
        if see:
            see(0, states)
        for layer in range(self.layers):
            for i, group in enumerate(groups):
                attention = partial(group.attention, layer)
                states[i] = self._sublayers(layer, states[i], self._plain, attention, lambda _, x: x)
            if see and layer + 1 < self.layers:
                see(layer + 1, states)
            yield layer
        states = [x[rows] for x, rows in zip(states, last, strict=True)] if last else states
        for block, columns in enumerate(self._staged.blocks):
            norm, head = self._staged.head(block)
            if block == 0:
                states = [self.close(self._plain, x, norm) for x in states]
                if see:
                    see(self.layers, states)
            for x, out in zip(states, logits, strict=True):
                out[:, columns] = self._plain.product(x, head.values, quantised=False)[: out.shape[0]]
        yield self.layers

    def _of_whole(self, text: Whole) -> Attention:
        cosine, sine = self._rotation(len(text.tokens), text.prefill)
        rotation = _padded(cosine, text.padding), _padded(sine, text.padding)

        def attend(_: int, qkv: Tensor) -> Tensor:
            query, key, value = self._rotated(self._plain, qkv, rotation)
            return self._attended(query, key, value, 0)

        return attend

    def _of_steps(self, steps: Sequence[Step], caches: Caches) -> Attention:
        rotations = [self._rotation_at(step) for step in steps]

        def attend(layer: int, qkv: Tensor) -> Tensor:
            found = []
            parts = qkv.split([len(step.tokens) for step in steps])
            for step, rotation, part in zip(steps, rotations, parts, strict=True):
                query, key, value = self._rotated(self._plain, part, rotation)
                key, value = caches.extended(layer, step.slot, step.start, key, value)
                found.append(self._attended(query, key, value, step.start))
            return torch.cat(found)

        return attend

    def _rotation_at(self, step: Step) -> tuple[Tensor, Tensor]:
        exact, factor = phi3_float64.frequencies(self._config, step.length)
        places = torch.arange(step.start, step.start + len(step.tokens), dtype=torch.float32)
        angles = places[:, None] * torch.from_numpy(exact).to(torch.float32)
        return angles.cos() * factor, angles.sin() * factor

    def _attended(self, query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
        """`[n, heads * size]`: queries at the positions from `start` on over all keys."""
        n, total = query.shape[1], key.shape[1]
        distance = torch.arange(start, total)[:, None] - torch.arange(total)[None, :]
        visible = (distance >= 0) & (distance < self._window) if self._window else distance >= 0
        rows = self._attend(self._plain, query, key, value, visible)
        return rows.transpose(0, 1).reshape(n, self._heads * self._size)


def _padded(x: Tensor, padding: int) -> Tensor:
    return torch.cat([x, x[-1:].expand(padding, -1)]) if padding else x


def _joined(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps one after another, in groups of few rows."""
    some: list[Step] = []
    for step in steps:
        if some and sum(len(one.tokens) for one in [*some, step]) > _MOST_ROWS:
            yield some
            some = []
        some.append(step)
    if some:
        yield some


def _places(steps: Sequence[Step]) -> Iterator[tuple[Step, int]]:
    end = 0
    for step in steps:
        end += len(step.tokens)
        yield step, end


def _wanted(step: Step, end: int) -> Tensor:
    return torch.arange(end - step.wanted, end)
