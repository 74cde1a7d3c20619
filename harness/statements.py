"""What the checkpoint says of everything that an artifact may state beside its weights.

`layer` is the layer that something is stated for. Shapes: L layers, H query heads, r rotary frequencies.

| `what` | the right value |
| --- | --- |
| `num_hidden_layers`, `hidden_size`, `vocabulary`, `num_attention_heads`, `num_key_value_heads`, `head_size` | counts |
| `context_length` | the most positions |
| `end_tokens` | the tokens that end an answer, in any order |
| `rms_norm_eps` | what is added to the mean of squares |
| `attention_scale` | what products of queries and keys are multiplied with |
| `softcap` | 0: Phi-3 limits no scores |
| `sliding_window` | how many positions a token sees, itself included; -1 for all |
| `lookahead` | 0: how many positions ahead a token sees |
| `qkv_begin` `[3]` | the rows of the fused product at which queries, keys and values begin |
| `kv_head` `[H]` | which key and value head each query head reads |
| `gate_first` | 1: the first half of the fused gate and up goes through the activation |
| `layer_order`, `mlp_order` `[L]` | the layers whose attention, and whose MLP, the residual stream meets, in order |
| `rotary_inv_freq`, `rotary_inv_freq_long` `[r]` | radians a position; `_long` past LongRoPE's original length |
| `rotary_cos`, `rotary_sin`, and both with `_long` `[positions, r]` | tables, LongRoPE's factor included |
| `rotary_factor` | what cosines and sines are multiplied with |
| `rotary_interleaved` | 0: the halves of a head are rotated against each other, not neighbours |
| `rotary_switch` | the length past which LongRoPE's long frequencies hold |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import msgspec
import numpy as np

from harness.checkpoint import Checkpoint
from harness.layout import Layout
from harness.longrope import switch_of
from harness.phi3_float64 import Halved, frequencies
from harness.weights import Array, Statement


class Expected(msgspec.Struct, frozen=True):
    """The right value, or several where more than one comes to the same; `slack` is allowed besides rounding."""

    values: tuple[Array, ...]
    slack: float | Array = 0.0


def expected(what: str, layer: int | None, checkpoint: Checkpoint, size: int = 1) -> Expected | None:
    """What should be stated; None for a name that is not known here.

    `size` is the number of positions in a rotary table, and matters to nothing else. Raises CheckpointError where the
    checkpoint's configuration is not Phi-3's.
    """
    if layer is not None and layer >= Layout.of(checkpoint.config).layers:
        return Expected(())  # nothing can be right of a layer that there is not
    if what.startswith(("rotary_cos", "rotary_sin")):
        return _table(what, checkpoint, size)
    rule = _RULES.get(what)
    return None if rule is None else rule(checkpoint)


def agrees(statement: Statement, checkpoint: Checkpoint) -> bool | None:
    """Whether a statement is right to within the rounding of the dtype that it was stored in; None if not known."""
    found = np.asarray(statement.value, dtype=np.float64)
    wanted = expected(statement.what, statement.layer, checkpoint, found.shape[0] if found.ndim else 1)
    if wanted is None:
        return None
    if statement.what == "end_tokens":
        found = np.unique(found)
    return any(_close(found, value, wanted.slack) for value in wanted.values)


def _close(found: Array, value: Array, slack: float | Array) -> bool:
    if found.size == 1 and value.size == 1:
        found, value = found.reshape(()), value.reshape(())
    if found.shape != value.shape:
        return False
    rounding = np.abs(value) * _unit(found)
    if _unit(found) == _FLOAT16:
        rounding = np.maximum(rounding, 2.0**-25)  # half of its least number
    return bool(np.all(np.abs(found - value) <= np.where(value == np.rint(value), 0.0, rounding) + slack))


_FLOAT16, _BFLOAT16, _FLOAT32 = 2.0**-11, 2.0**-8, 2.0**-22


def _unit(found: Array) -> float:
    """How far values may be rounded, relatively, judged by the coarsest dtype that can hold all of them."""
    single = found.astype(np.float32)
    if np.array_equal(found, single.astype(np.float64)) and not np.any(single.view(np.uint32) & 0xFFFF):
        return _BFLOAT16
    with np.errstate(over="ignore"):
        half = np.array_equal(found, found.astype(np.float16).astype(np.float64))
    return _FLOAT16 if half else _FLOAT32


def _count(number: float) -> Expected:
    return Expected((np.asarray(float(number)),))


def _of_layout(name: str) -> Callable[[Checkpoint], Expected]:
    return lambda checkpoint: _count(getattr(Layout.of(checkpoint.config), name))


def _window(checkpoint: Checkpoint) -> Expected:
    window = int(checkpoint.config.get("sliding_window") or 0)
    values = [float(window)] if window else []
    if not window or window >= checkpoint.max_tokens:  # one as long as the context hides nothing
        values.append(-1.0)
    return Expected(tuple(np.asarray(value) for value in values))


def _end_tokens(checkpoint: Checkpoint) -> Expected:
    return Expected((np.unique(np.asarray(checkpoint.end_tokens, dtype=np.float64)),))


def _begins(checkpoint: Checkpoint) -> Expected:
    layout = Layout.of(checkpoint.config)
    rows = [layout.place(part).row for part in ("q_proj", "k_proj", "v_proj")]
    return Expected((np.asarray(rows, dtype=np.float64),))


def _kv_head(checkpoint: Checkpoint) -> Expected:
    layout = Layout.of(checkpoint.config)
    heads = np.repeat(np.arange(layout.kv_heads, dtype=np.float64), layout.heads // layout.kv_heads)
    return Expected((heads,))


def _order(checkpoint: Checkpoint) -> Expected:
    return Expected((np.arange(Layout.of(checkpoint.config).layers, dtype=np.float64),))


def _scale(checkpoint: Checkpoint) -> Expected:
    return _count(1 / math.sqrt(Layout.of(checkpoint.config).head_size))


def _epsilon(checkpoint: Checkpoint) -> Expected:
    return _count(float(checkpoint.config.get("rms_norm_eps", 1e-5)))


def _length(checkpoint: Checkpoint, *, long: bool) -> int:
    return checkpoint.max_tokens if long else 1


def _frequencies(checkpoint: Checkpoint, *, long: bool) -> Expected:
    length = _length(checkpoint, long=long)
    chosen, _ = frequencies(checkpoint.config, length)
    if switch_of(checkpoint.config) is None:
        return Expected((chosen,))
    # With two sets the graph computes 1 / (factor x base^(i / size)) itself, in float32: four roundings, and that of
    # the exponent, which the power makes ln(base^(i / size)) times as large. Its constants may be in FP16.
    every = tuple(frequencies(checkpoint.config, length, halved)[0] for halved in Halved)
    return Expected(every, slack=chosen * (4.0 + np.abs(np.log(chosen))) * 2.0**-24)


def _factor(checkpoint: Checkpoint) -> Expected:
    return _count(frequencies(checkpoint.config, 1)[1])


def _switch(checkpoint: Checkpoint) -> Expected:
    rope = checkpoint.config.get("rope_parameters") or checkpoint.config.get("rope_scaling") or {}
    original = rope.get("original_max_position_embeddings") or checkpoint.config.get("original_max_position_embeddings")
    return _count(float(original or checkpoint.max_tokens))


def _table(what: str, checkpoint: Checkpoint, positions: int) -> Expected | None:
    name, _, which = what.partition("_long")
    if which or name not in ("rotary_cos", "rotary_sin"):
        return None
    chosen, factor = frequencies(checkpoint.config, _length(checkpoint, long=what.endswith("_long")))
    at = np.arange(positions, dtype=np.float64)[:, None]
    function = np.cos if name == "rotary_cos" else np.sin
    # Exporters multiply positions by frequencies in float32, which is off by the more the later the position.
    return Expected((function(at * chosen) * factor,), slack=2e-6 + at * 2.0**-22)


_RULES: dict[str, Callable[[Checkpoint], Expected]] = {
    "num_hidden_layers": _of_layout("layers"),
    "hidden_size": _of_layout("hidden"),
    "vocabulary": _of_layout("vocabulary"),
    "num_attention_heads": _of_layout("heads"),
    "num_key_value_heads": _of_layout("kv_heads"),
    "head_size": _of_layout("head_size"),
    "context_length": lambda checkpoint: _count(checkpoint.max_tokens),
    "end_tokens": _end_tokens,
    "rms_norm_eps": _epsilon,
    "attention_scale": _scale,
    "softcap": lambda _: _count(0.0),
    "sliding_window": _window,
    "lookahead": lambda _: _count(0.0),
    "qkv_begin": _begins,
    "kv_head": _kv_head,
    "gate_first": lambda _: _count(1.0),
    "layer_order": _order,
    "mlp_order": _order,
    "rotary_inv_freq": lambda checkpoint: _frequencies(checkpoint, long=False),
    "rotary_inv_freq_long": lambda checkpoint: _frequencies(checkpoint, long=True),
    "rotary_factor": _factor,
    "rotary_interleaved": lambda _: _count(0.0),
    "rotary_switch": _switch,
}

ALWAYS = (
    ("rms_norm_eps",),
    ("num_attention_heads",),
    ("num_key_value_heads",),
    ("attention_scale",),
    ("sliding_window",),
    ("end_tokens",),
    ("rotary_inv_freq", "rotary_cos"),
)
"""What every exporter known here states, one or other: where it is missing, the artifact is of another make."""
