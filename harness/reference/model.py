"""Phi-3's forward pass in PyTorch, FP32, on any weights: what the artifact reference is computed with.

One layer is worked through for all sequences before the next one, so that weights are needed one layer at a time: of
one model, or of several that differ in what they do with the same weights (see `together`).
A sequence is a prompt of `prefill` tokens fed at once and then further tokens one by one: rows of the prompt
attend to keys and values as they were computed, rows after it to what the cache gives back of them. Under LongRoPE
keys keep the factors that they were rotated with when they were fed.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
import torch
from torch import Tensor

from harness import phi3_float64
from harness.arithmetic import Arithmetic
from harness.layout import HEAD, NORM
from harness.phi3_float64 import Halved
from harness.reference.kernels import PLAIN, Kernels, Variant
from harness.reference.weights import Resident, Store, Weight

T = TypeVar("T")

# Scores of attention that are held at once, in values: 256 MiB.
MOST_SCORES = 1 << 26


class TokenSequence(msgspec.Struct, frozen=True):
    """Token ids, of which the first `prefill` are fed at once."""

    tokens: tuple[int, ...]
    prefill: int


Tap = Callable[[int, str, Tensor], Tensor | None]
"""Called with a sequence's index, a place and the residual stream `[n, H]` there; what it returns replaces that."""


class Phi3:
    """The model of one configuration on one set of weights."""

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, Weight] | Store, *, halved: Halved = Halved.NOTHING
    ) -> None:
        """`halved`: what of the rotary embedding the artifact holds in FP16."""
        self._config = dict(config)
        self.halved = halved
        plain = type(weights) is dict
        self.weights = Resident(cast(dict[str, Weight], weights)) if plain else cast(Store, weights)
        self.layers = int(config["num_hidden_layers"])
        self._heads = int(config["num_attention_heads"])
        self._kv_heads = int(config.get("num_key_value_heads") or self._heads)
        self._size = int(config.get("head_dim") or config["hidden_size"] // self._heads)
        self._epsilon = float(config.get("rms_norm_eps", 1e-5))
        self._window = config.get("sliding_window")

    def logits(
        self,
        sequences: Sequence[TokenSequence],
        arithmetic: Arithmetic,
        variant: Variant = PLAIN,
        tap: Tap | None = None,
        kernels: Kernels | None = None,
    ) -> list[Tensor]:
        """Logits `[n_i, V]` FP32 of every sequence; `kernels` in place of those of an arithmetic and a variant."""
        with torch.inference_mode():
            return self._logits(sequences, kernels or Kernels(arithmetic, variant), tap or (lambda *_: None))

    def _logits(self, sequences: Sequence[TokenSequence], kernels: Kernels, tap: Tap) -> list[Tensor]:
        found: list[Tensor] = []
        forwards = [
            Forward(self, sequence, kernels, found.append, partial(tap, i)) for i, sequence in enumerate(sequences)
        ]
        completed(together(forwards))
        return found

    def _layer(
        self,
        layer: int,
        sequences: Sequence[TokenSequence],
        states: list[Tensor],
        rotations: list[tuple[Tensor, Tensor]],
        kernels: Kernels,
        tap: Tap,
    ) -> list[Tensor]:
        found = []
        for i, (sequence, x) in enumerate(zip(sequences, states, strict=True)):
            attention = partial(self._attention, kernels, rotation=rotations[i], prefill=sequence.prefill)
            found.append(self._sublayers(layer, x, kernels, attention, partial(_tapped, tap, i)))
        return found

    def _sublayers(
        self,
        layer: int,
        x: Tensor,
        kernels: Kernels,
        attention: Callable[[Tensor], Tensor],
        seen: Callable[[str, Tensor], Tensor],
    ) -> Tensor:
        """What a layer makes of `[n, H]`; `attention` takes query, key and value to what is attended to, `[n, H]`.

        `seen` is called with a place and the residual stream there, and gives what to go on from.
        """
        prefix = f"model.layers.{layer}."
        normed = self._norm(kernels, x, f"{prefix}input_layernorm.weight")
        mixed = attention(self._product(kernels, normed, f"{prefix}self_attn.qkv_proj.weight"))
        x = kernels.between(x + self._product(kernels, mixed, f"{prefix}self_attn.o_proj.weight"))
        x = seen(f"{prefix}self_attn", x)
        normed = self._norm(kernels, x, f"{prefix}post_attention_layernorm.weight")
        gated = kernels.swiglu(self._product(kernels, normed, f"{prefix}mlp.gate_up_proj.weight"))
        x = kernels.between(x + self._product(kernels, gated, f"{prefix}mlp.down_proj.weight"))
        return seen(f"{prefix}mlp", x)

    def _norm(self, kernels: Kernels, x: Tensor, name: str) -> Tensor:
        kernels.enter(name)
        return kernels.rms_norm(x, self.weights[name].values, self._epsilon)

    def _product(self, kernels: Kernels, x: Tensor, name: str) -> Tensor:
        kernels.enter(name)
        weight = self.weights[name]
        return kernels.product(_multiplied(kernels, x, weight), weight.values, quantised=weight.quantised)

    def close(self, kernels: Kernels, x: Tensor, norm: Weight) -> Tensor:
        """What the LM head takes: the residual stream `[n, H]` after the final norm."""
        kernels.enter(NORM)
        return kernels.rms_norm(x, norm.values, self._epsilon)

    def _attention(self, kernels: Kernels, qkv: Tensor, rotation: tuple[Tensor, Tensor], prefill: int) -> Tensor:
        n, size = qkv.shape[0], self._size
        query, key, value = self._rotated(kernels, qkv, rotation)
        visible = self._visible(n)
        fresh = key[:, :prefill], value[:, :prefill]
        rows = [self._attend(kernels, query[:, :prefill], *fresh, visible[:prefill, :prefill])]
        if prefill < n:
            kept = kernels.cached(key), kernels.cached(value)
            rows.append(self._attend(kernels, query[:, prefill:], *kept, visible[prefill:]))
        return torch.cat(rows, dim=1).transpose(0, 1).reshape(n, self._heads * size)

    def _rotated(self, kernels: Kernels, qkv: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Query `[heads, n, size]`, key and value `[kv heads, n, size]`, the first two rotated."""
        size = self._size
        q, k, v = qkv.split([self._heads * size, self._kv_heads * size, self._kv_heads * size], dim=-1)
        query, key = (kernels.between(_rotate(_by_head(x, size), rotation)) for x in (q, k))
        return query, key, _by_head(v, size)

    def _attend(self, kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Some heads at a time where the scores of all would be large."""
        repeats = self._heads // self._kv_heads
        some = max(1, MOST_SCORES // max(1, visible.numel() * repeats))
        rows = [
            kernels.attend(part, k.repeat_interleave(repeats, 0), v.repeat_interleave(repeats, 0), visible)
            for part, k, v in zip(query.split(some * repeats), key.split(some), value.split(some), strict=True)
        ]
        return rows[0] if len(rows) == 1 else torch.cat(rows)

    def _visible(self, n: int) -> Tensor:
        distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        visible = distance >= 0
        return visible & (distance < self._window) if self._window else visible

    def _rotation(self, n: int, prefill: int) -> tuple[Tensor, Tensor]:
        """Cosines and sines `[n, r]`, from angles in FP32 as the models compute them; see `harness.longrope`."""
        exact, factor = phi3_float64.row_frequencies(self._config, n, prefill, self.halved)
        frequencies = torch.from_numpy(exact).to(torch.float32)
        angles = self._angles(n, frequencies)
        return angles.cos() * factor, angles.sin() * factor

    def _angles(self, n: int, frequencies: Tensor) -> Tensor:
        return torch.arange(n, dtype=torch.float32)[:, None] * frequencies


class Forward:
    """One sequence on its way through a model.

    `keep` is given its logits `[n, V]` in the end; `tap` is called as `Tap` is, without an index.
    """

    def __init__(
        self,
        model: Phi3,
        sequence: TokenSequence,
        kernels: Kernels,
        keep: Callable[[Tensor], object],
        tap: Callable[[str, Tensor], Tensor | None] | None = None,
    ) -> None:
        self.model = model
        self.sequence = sequence
        self.kernels = kernels
        self.keep = keep
        look = tap or (lambda *_: None)
        self._tap: Tap = lambda _, place, x: look(place, x)
        self._rotation: list[tuple[Tensor, Tensor]] = []
        self._x = torch.empty(0)
        self._logits = torch.empty(0)

    def begin(self, embedded: Tensor) -> None:
        """Take the embedding's rows `[n, H]`."""
        sequence = self.sequence
        self._rotation = [self.model._rotation(len(sequence.tokens), sequence.prefill)]
        self._x = _tapped(self._tap, 0, "model.embed_tokens", self.kernels.round(embedded))

    def go_through(self, layer: int) -> None:
        """Compute a layer."""
        given = [self.sequence], [self._x], self._rotation, self.kernels, self._tap
        self._x = self.model._layer(layer, *given)[0]

    def conclude(self, block: int) -> None:
        """Compute a block of the LM head, and after the last hand the logits on."""
        weights, kernels = self.model.weights, self.kernels
        norm, head = weights.head(block)
        if block == 0:
            self._x = _tapped(self._tap, 0, "model.norm", self.model.close(kernels, self._x, norm))
        kernels.enter(HEAD)
        x, blocks = _multiplied(kernels, self._x, head), weights.blocks
        if len(blocks) == 1:
            self.keep(kernels.product(x, head.values, quantised=head.quantised))
            return
        if block == 0:
            self._logits = torch.empty(x.shape[0], blocks[-1].stop)
        self._logits[:, blocks[block]] = kernels.sums(x, head.values, quantised=head.quantised)
        if block == len(blocks) - 1:
            self.keep(kernels.finished(self._logits))
            self._logits = torch.empty(0)


Steps = Generator[int, None, T]
"""What is computed step by step: yields the number of the layer that is done, gives its result in the end."""


def together(forwards: Sequence[Forward]) -> Steps[None]:
    """Take several sequences, each by its own model and operators, through one pass over weights that all share.

    Yields the number of each layer that is done, then, for each block of the LM head, the number of layers. What one of
    them is given hangs on no other; logits are handed on in the order of `forwards`.
    """
    if not forwards:
        return
    with torch.inference_mode():
        for some in _by_store(forwards):
            lengths = [len(one.sequence.tokens) for one in some]
            rows = some[0].model.weights.embedded([token for one in some for token in one.sequence.tokens])
            for one, embedded in zip(some, rows.split(lengths), strict=True):
                one.begin(embedded)
    for layer in range(forwards[0].model.layers):
        with torch.inference_mode():
            for one in forwards:
                one.go_through(layer)
        yield layer
    for block in range(len(forwards[0].model.weights.blocks)):
        with torch.inference_mode():
            for one in forwards:
                one.conclude(block)
        yield forwards[0].model.layers


def completed(steps: Steps[T]) -> T:
    """The result, all steps taken at once."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found: T = end.value
            return found


def _by_store(forwards: Sequence[Forward]) -> list[list[Forward]]:
    """Those together whose rows of the embedding come from the same place."""
    found: dict[int, list[Forward]] = {}
    for one in forwards:
        found.setdefault(id(one.model.weights), []).append(one)
    return list(found.values())


def _multiplied(kernels: Kernels, x: Tensor, weight: Weight) -> Tensor:
    return x if weight.multiplier is None else kernels.between(x * weight.multiplier)


def _tapped(tap: Tap, index: int, place: str, x: Tensor) -> Tensor:
    changed = tap(index, place, x)
    return x if changed is None else changed


def _by_head(x: Tensor, size: int) -> Tensor:
    return x.reshape(x.shape[0], -1, size).transpose(0, 1)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate the first `2 r` components of `[heads, n, size]`, the half-split way."""
    cosine, sine = rotation
    r = cosine.shape[-1]
    first, second, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], dim=-1)
