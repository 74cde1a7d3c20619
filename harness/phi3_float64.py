"""Phi-3's forward pass in NumPy and float64: an oracle for the golden that shares no code with transformers.

Written from the architecture: RMSNorm before attention and before the MLP, fused query/key/value and
gate/up projections, rotary embedding in the half-split layout (plain, partial or LongRoPE), grouped-query
attention with a causal, optionally sliding, window, SwiGLU, final RMSNorm and LM head. A sequence is computed at
once, or a part of it first and then token by token, which differs under LongRoPE (`harness.longrope`). Half a layer's
weights are held at a time, with the activations of all sequences carried along, and the attention scores of some heads
at a time, so memory stays bounded by one MLP in float64 whatever the size of the model.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.checkpoint import Checkpoint
from harness.errors import CheckpointError
from harness.longrope import fed_lengths, switch_of
from harness.tensor_files import TensorFiles
from harness.weights import Statement

Array = NDArray[np.float64]
# Rows of the LM head that are held at once: it may be larger than many layers.
_HEAD_ROWS = 8192
MOST_SCORES = 1 << 24
"""Attention scores that are held at once, 128 MiB; those of one key/value head in any case."""
# Frequencies that lie nearer than this, relatively, differ by the rounding of FP32 and not of FP16.
_SAME = 2.0**-20


class Weights:
    """The tensors of a checkpoint by name, read from its safetensors files into float64 one at a time."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = TensorFiles(checkpoint.weight_files)

    def __contains__(self, name: str) -> bool:
        return name in self._files

    def __getitem__(self, name: str) -> Array:
        return self.rows(name, slice(None))

    def rows(self, name: str, index: NDArray[np.intp] | slice) -> Array:
        """Some rows of a tensor: an embedding is looked up without widening the whole vocabulary."""
        return np.asarray(self._files.values(name, index), dtype=np.float64)


def forward(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], prefills: Sequence[int] | None = None
) -> list[Array]:
    """Logits `[n_i, V]` float64 of each token sequence, from the checkpoint's weights widened to float64.

    `prefills`: how many tokens of each are fed at once, the others following one by one; all of them by default.
    """
    config, weights = checkpoint.config, Weights(checkpoint)
    embedding = "model.embed_tokens.weight"
    states = [weights.rows(embedding, np.asarray(tokens, dtype=np.intp)) for tokens in sequences]
    at_once = [len(tokens) for tokens in sequences] if prefills is None else prefills
    rotations = [_rotation(config, len(tokens), n) for tokens, n in zip(sequences, at_once, strict=True)]
    for layer in range(int(config["num_hidden_layers"])):
        prefix = f"model.layers.{layer}."
        states = _fed(config, weights, prefix, _attended(config, weights, prefix, states, rotations))
    tied = bool(config.get("tie_word_embeddings")) and "lm_head.weight" not in weights
    norm, vocabulary = weights["model.norm.weight"], int(config["vocab_size"])
    states = [_rms_norm(state, norm, config) for state in states]
    logits = [np.empty((state.shape[0], vocabulary)) for state in states]
    for start in range(0, vocabulary, _HEAD_ROWS):
        rows = slice(start, start + _HEAD_ROWS)
        head = weights.rows(embedding if tied else "lm_head.weight", rows)
        for state, out in zip(states, logits, strict=True):
            out[:, rows] = state @ head.T
    return logits


def _attended(
    config: dict[str, Any],
    weights: Weights,
    prefix: str,
    states: list[Array],
    rotations: list[tuple[Array, Array]],
) -> list[Array]:
    """The first half of a layer: `[n_i, H]` with what attention adds."""
    before, qkv = weights[f"{prefix}input_layernorm.weight"], weights[f"{prefix}self_attn.qkv_proj.weight"]
    out = weights[f"{prefix}self_attn.o_proj.weight"]
    return [
        x + _attention(config, _rms_norm(x, before, config) @ qkv.T, rotation) @ out.T
        for x, rotation in zip(states, rotations, strict=True)
    ]


def _fed(config: dict[str, Any], weights: Weights, prefix: str, states: list[Array]) -> list[Array]:
    """The second half of a layer: with what the MLP adds."""
    after, up = weights[f"{prefix}post_attention_layernorm.weight"], weights[f"{prefix}mlp.gate_up_proj.weight"]
    down = weights[f"{prefix}mlp.down_proj.weight"]
    return [x + _swiglu(_rms_norm(x, after, config) @ up.T) @ down.T for x in states]


def _rms_norm(x: Array, weight: Array, config: dict[str, Any]) -> Array:
    epsilon = float(config.get("rms_norm_eps", 1e-5))
    normalised: Array = x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + epsilon) * weight
    return normalised


def _swiglu(gate_up: Array) -> Array:
    gate, up = np.split(gate_up, 2, axis=-1)
    with np.errstate(over="ignore"):  # e^x overflows to Inf, whose quotient is the 0 that it ought to be
        product: Array = gate / (1.0 + np.exp(-gate)) * up
    return product


def _attention(config: dict[str, Any], qkv: Array, rotation: tuple[Array, Array]) -> Array:
    n = qkv.shape[0]
    heads = int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = _head_size(config)
    q, k, v = np.split(qkv, [heads * size, (heads + kv_heads) * size], axis=-1)
    query = _rotate(q.reshape(n, heads, size), rotation)
    key, value = _rotate(k.reshape(n, kv_heads, size), rotation), v.reshape(n, kv_heads, size)
    visible, shared = _visible(n, config.get("sliding_window")), heads // kv_heads
    some = max(1, MOST_SCORES // (n * n * shared))
    mixed = [
        _attend(query[:, at * shared : (at + some) * shared], key[:, at : at + some], value[:, at : at + some], visible)
        for at in range(0, kv_heads, some)
    ]
    return np.concatenate(mixed, axis=1).reshape(n, heads * size)


def _attend(query: Array, key: Array, value: Array, visible: NDArray[np.bool_]) -> Array:
    """`[n, heads, size]` of some query heads, each group of them on a key/value head `[n, size]` of its own."""
    shared = query.shape[1] // key.shape[1]
    key, value = np.repeat(key, shared, axis=1), np.repeat(value, shared, axis=1)
    scores = np.einsum("qhd,khd->hqk", query, key, optimize=True) / math.sqrt(query.shape[2])
    scores[:, ~visible] = -np.inf
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    mixed: Array = np.einsum("hqk,khd->qhd", scores, value, optimize=True)
    return mixed


def _visible(n: int, window: int | None) -> NDArray[np.bool_]:
    """`[n, n]`: whether position i sees position j: not a later one, nor one `window` or more back."""
    distance = np.arange(n)[:, None] - np.arange(n)[None, :]
    visible: NDArray[np.bool_] = distance >= 0
    return visible if not window else visible & (distance < window)


def _head_size(config: Mapping[str, Any]) -> int:
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def _rotate(x: Array, rotation: tuple[Array, Array]) -> Array:
    """Rotate the first `2 r` components of `[n, heads, size]` by angles whose cosines and sines are `[n, 1, r]`."""
    cosine, sine = rotation
    r = cosine.shape[-1]
    first, second, rest = x[..., :r], x[..., r : 2 * r], x[..., 2 * r :]
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine, rest], axis=-1)


def _rotation(config: dict[str, Any], n: int, prefill: int) -> tuple[Array, Array]:
    """Cosines and sines, each `[n, 1, r]`, scaled by LongRoPE's attention factor where there is one."""
    chosen, factor = row_frequencies(config, n, prefill)
    angles = np.arange(n, dtype=np.float64)[:, None] * chosen
    return np.cos(angles)[:, None, :] * factor, np.sin(angles)[:, None, :] * factor


class Halved(enum.Enum):
    """What of the rotary embedding an artifact holds in FP16.

    OpenVINO's FP16 exports do: plain frequencies as such; of LongRoPE the factors, and the powers of the base that they
    are multiplied with where these fit. Frequencies are up to 0.1 % wrong then, by the artifact and by no kernel.
    """

    NOTHING = ()
    FREQUENCIES = ("frequencies",)
    FACTORS = ("factors",)
    FACTORS_AND_POWERS = ("factors", "powers")


def row_frequencies(
    config: Mapping[str, Any], n: int, prefill: int, halved: Halved = Halved.NOTHING
) -> tuple[Array, float]:
    """Rotary frequencies of each of n tokens, the first `prefill` fed at once, and the factor; see `frequencies`.

    `[n, r]`, or `[1, r]` where they are the same for all.
    """
    lengths = fed_lengths(n, prefill)
    switch = switch_of(config) or n
    first, factor = frequencies(config, int(lengths.min(initial=n)), halved)
    last, _ = frequencies(config, n, halved)
    rows = np.where(lengths[:, None] > switch, last, first) if lengths.min(initial=n) <= switch < n else last[None]
    return rows, factor


def frequencies(config: Mapping[str, Any], n: int, halved: Halved = Halved.NOTHING) -> tuple[Array, float]:
    """Rotary frequencies `[r]` for a sequence of n tokens, in radians a position, and the factor on cosines and sines.

    `halved`: as an artifact has them that holds so much of them in FP16. Raises CheckpointError for a kind of rotary
    embedding that Phi-3 does not have.
    """
    # transformers 5 writes rope_parameters; 4 wrote rope_theta and rope_scaling.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0)
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    size = int(_head_size(config) * float(partial))
    powers: Array = theta ** (np.arange(0, size, 2, dtype=np.float64) / size)
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind in ("longrope", "su"):
        return _longrope(config, rope, powers, n, halved)
    if kind != "default":
        raise CheckpointError(f"rotary embeddings of type {kind!r} are not known to Phi-3", "restore config.json")
    return _held(1.0 / powers, "frequencies", halved), 1.0


def _held(values: Array, part: str, halved: Halved) -> Array:
    """A part of the rotary embedding as it is held: in FP16, out of FP32, or exactly."""
    return values.astype(np.float32).astype(np.float16).astype(np.float64) if part in halved.value else values


def _longrope(
    config: Mapping[str, Any], rope: Mapping[str, Any], powers: Array, n: int, halved: Halved
) -> tuple[Array, float]:
    """Frequencies for a sequence of n tokens, and the factor on cosines and sines (LongRoPE, arXiv 2402.13753)."""
    original = switch_of(config)
    if original is None:
        raise CheckpointError("config.json lacks original_max_position_embeddings", "restore config.json")
    stretch = np.asarray(rope["long_factor" if n > original else "short_factor"], dtype=np.float64)
    ratio = int(config["max_position_embeddings"]) / original
    factor = rope.get("attention_factor")
    if factor is None:
        factor = 1.0 if ratio <= 1.0 else math.sqrt(1.0 + math.log(ratio) / math.log(original))
    return 1.0 / (_held(stretch, "factors", halved) * _held(powers, "powers", halved)), float(factor)


def halved_rotary(statements: Sequence[Statement], config: Mapping[str, Any]) -> Halved:
    """What an artifact holds in FP16 of the checkpoint's own rotary embedding, by the frequencies that it states.

    Any other frequencies are for the audit to find.
    """
    lengths = {"rotary_inv_freq": 1, "rotary_inv_freq_long": int(config["max_position_embeddings"])}
    stated = [(found.value, lengths[found.what]) for found in statements if found.what in lengths]
    for halved in Halved:
        expected = [(value, frequencies(config, length, halved)[0]) for value, length in stated]
        if expected and all(a.shape == b.shape and np.allclose(a, b, _SAME, 0.0) for a, b in expected):
            return halved
    return Halved.NOTHING
