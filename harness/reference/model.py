"""Phi-3's forward pass in PyTorch, FP32, on any weights: what the artifact reference is computed with.

One layer is worked through for all sequences before the next one, so that weights are needed one layer at a time.
A sequence is a prompt of `prefill` tokens fed at once and then further tokens one by one: rows of the prompt
attend to keys and values as they were computed, rows after it to what the cache gives back of them. Under LongRoPE
keys keep the factors that they were rotated with when they were fed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from harness import phi3_float64
from harness.arithmetic import Arithmetic
from harness.layout import EMBEDDING, HEAD, NORM
from harness.phi3_float64 import Halved
from harness.reference.kernels import PLAIN, Kernels, Variant


class Weight(NamedTuple):
    """A tensor in FP32, and whether its artifact holds it as integer codes."""

    values: Tensor
    quantised: bool = False
    multiplier: Tensor | None = None
    """`[K]`: what the activations are multiplied with before the product (AWQ), and before they are quantised."""


class TokenSequence(msgspec.Struct, frozen=True):
    """Token ids, of which the first `prefill` are fed at once."""

    tokens: tuple[int, ...]
    prefill: int


Tap = Callable[[int, str, Tensor], Tensor | None]
"""Called with a sequence's index, a place and the residual stream `[n, H]` there; what it returns replaces that."""


class Phi3:
    """The model of one configuration on one set of weights."""

    def __init__(
        self, config: Mapping[str, Any], weights: Mapping[str, Weight], *, halved: Halved = Halved.NOTHING
    ) -> None:
        """`halved`: what of the rotary embedding the artifact holds in FP16."""
        self._config = dict(config)
        self.halved = halved
        self.weights = weights
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
        embedding = self.weights[EMBEDDING].values
        states = [kernels.round(embedding[torch.tensor(s.tokens)]) for s in sequences]
        states = [_tapped(tap, i, "model.embed_tokens", x) for i, x in enumerate(states)]
        rotations = [self._rotation(len(s.tokens), s.prefill) for s in sequences]
        for layer in range(self.layers):
            states = self._layer(layer, sequences, states, rotations, kernels, tap)
        head = self.weights[HEAD if HEAD in self.weights else EMBEDDING]
        norm = self.weights[NORM].values
        found = []
        for i, x in enumerate(states):
            normed = _tapped(tap, i, "model.norm", kernels.rms_norm(x, norm, self._epsilon))
            found.append(kernels.product(normed, head.values, quantised=head.quantised))
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
        normed = kernels.rms_norm(x, self.weights[f"{prefix}input_layernorm.weight"].values, self._epsilon)
        mixed = attention(self._product(kernels, normed, f"{prefix}self_attn.qkv_proj.weight"))
        x = kernels.between(x + self._product(kernels, mixed, f"{prefix}self_attn.o_proj.weight"))
        x = seen(f"{prefix}self_attn", x)
        normed = kernels.rms_norm(x, self.weights[f"{prefix}post_attention_layernorm.weight"].values, self._epsilon)
        gated = kernels.swiglu(self._product(kernels, normed, f"{prefix}mlp.gate_up_proj.weight"))
        x = kernels.between(x + self._product(kernels, gated, f"{prefix}mlp.down_proj.weight"))
        return seen(f"{prefix}mlp", x)

    def _product(self, kernels: Kernels, x: Tensor, name: str) -> Tensor:
        weight = self.weights[name]
        if weight.multiplier is not None:
            x = kernels.between(x * weight.multiplier)
        return kernels.product(x, weight.values, quantised=weight.quantised)

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
        repeats = self._heads // self._kv_heads
        return kernels.attend(query, key.repeat_interleave(repeats, 0), value.repeat_interleave(repeats, 0), visible)

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
