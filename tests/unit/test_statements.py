"""What the checkpoint says of everything that artifacts state, and how much rounding is allowed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.checkpoint import Checkpoint, open_checkpoint
from harness.phi3_float64 import Halved, frequencies
from harness.statements import ALWAYS, agrees, expected
from harness.weights import Statement

LONG = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.5, 2.0, 3.0, 4.0]},
}


@pytest.fixture
def grouped(make_folder: Callable[..., Path]) -> Checkpoint:
    """Four query heads to two of keys and values, a window and LongRoPE."""
    return open_checkpoint(
        make_folder("grouped", hidden_size=32, num_attention_heads=4, num_key_value_heads=2, sliding_window=24, **LONG)
    )


def right(checkpoint: Checkpoint, what: str, value: Any, layer: int | None = None) -> bool | None:
    return agrees(Statement(what, np.asarray(value, dtype=np.float64), "a test", layer), checkpoint)


@pytest.mark.parametrize(
    ("what", "value", "wrong"),
    [
        ("num_hidden_layers", 2, 1),
        ("hidden_size", 32, 33),
        ("vocabulary", 24, 25),
        ("num_attention_heads", 4, 8),
        ("num_key_value_heads", 2, 4),
        ("head_size", 8, 16),
        ("context_length", 256, 64),
        ("end_tokens", 2, 3),
        ("end_tokens", [2, 2], [2, 3]),
        ("rms_norm_eps", 1e-5, 1.001e-5),
        ("attention_scale", 8**-0.5, 8**-0.5 * 1.001),
        ("softcap", 0, 30),
        ("sliding_window", 24, 23),
        ("sliding_window", 24, -1),
        ("lookahead", 0, 1),
        ("qkv_begin", [0, 32, 48], [0, 48, 32]),
        ("kv_head", [0, 0, 1, 1], [0, 1, 0, 1]),
        ("gate_first", 1, 0),
        ("layer_order", [0, 1], [0, 0, 1]),
        ("mlp_order", [0, 1], [1, 0]),
        ("rotary_interleaved", 0, 1),
        ("rotary_switch", 64, 128),
    ],
)
def test_the_right_value_agrees_and_a_wrong_one_does_not(
    what: str, value: Any, wrong: Any, grouped: Checkpoint
) -> None:
    assert right(grouped, what, value) is True
    assert right(grouped, what, wrong) is False


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16])
@pytest.mark.parametrize("what", ["rotary_inv_freq", "rotary_inv_freq_long", "rotary_cos", "rotary_sin_long"])
def test_rotary_tables_may_be_rounded_but_not_of_another_base(what: str, dtype: Any, grouped: Checkpoint) -> None:
    long = what.endswith("_long")
    chosen, factor = frequencies(grouped.config, 256 if long else 1)
    for base, verdict in ((1.0, True), (1.01, False), (0.99, False)):
        changed = chosen * base ** (-np.arange(4) / 4)
        if "freq" not in what:
            angles = np.arange(40)[:, None] * changed
            changed = (np.cos(angles) if "cos" in what else np.sin(angles)) * factor
        assert right(grouped, what, changed.astype(dtype)) is verdict, base


@pytest.mark.parametrize("halved", Halved, ids=lambda halved: halved.name.lower())
def test_longropes_factors_may_be_held_in_half_precision_and_nothing_else_is_right(
    halved: Halved, make_folder: Callable[..., Path]
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [1.003, 1.7, 3.1, 4.703]}
    rope = {"type": "longrope", **factors}
    checkpoint = open_checkpoint(make_folder("rounded", **{**LONG, "rope_scaling": rope}))
    held = frequencies(checkpoint.config, 256, halved)[0].astype(np.float32)
    assert right(checkpoint, "rotary_inv_freq_long", held) is True
    assert right(checkpoint, "rotary_inv_freq_long", held * np.float32(1.0 + 2e-6)) is False


def test_rotary_factor_and_plain_frequencies(grouped: Checkpoint, checkpoint: Checkpoint) -> None:
    factor = frequencies(grouped.config, 1)[1]
    assert factor > 1.1
    assert right(grouped, "rotary_factor", factor) is True
    assert right(grouped, "rotary_factor", 1.0) is False
    assert right(checkpoint, "rotary_factor", 1.0) is True


def test_rounding_to_16_bits_is_allowed_for_what_16_bits_can_hold(grouped: Checkpoint) -> None:
    assert right(grouped, "rms_norm_eps", np.float16(1e-5)) is True
    assert right(grouped, "rms_norm_eps", 1.1e-5) is False
    assert right(grouped, "attention_scale", np.float16(8**-0.5)) is True


def test_a_window_as_long_as_the_context_may_be_left_out(make_folder: Callable[..., Path]) -> None:
    wide = open_checkpoint(make_folder(sliding_window=64))
    assert right(wide, "sliding_window", 64) is True
    assert right(wide, "sliding_window", -1) is True
    assert right(wide, "sliding_window", 63) is False


def test_no_window_is_minus_one(checkpoint: Checkpoint) -> None:
    assert right(checkpoint, "sliding_window", -1) is True
    assert right(checkpoint, "sliding_window", 64) is False


def test_shapes_must_agree(grouped: Checkpoint) -> None:
    assert right(grouped, "kv_head", [0, 0, 1]) is False
    assert right(grouped, "num_hidden_layers", [2]) is True
    assert right(grouped, "rotary_cos", np.zeros((4, 3))) is False


def test_nothing_is_right_of_a_layer_that_there_is_not(grouped: Checkpoint) -> None:
    assert right(grouped, "gate_first", 1, layer=1) is True
    assert right(grouped, "gate_first", 1, layer=2) is False


def test_not_a_number_is_wrong(grouped: Checkpoint) -> None:
    assert right(grouped, "rms_norm_eps", np.nan) is False
    assert right(grouped, "attention_scale", np.inf) is False


def test_what_nobody_knows_is_neither_right_nor_wrong(grouped: Checkpoint) -> None:
    assert right(grouped, "colour", 1) is None
    assert right(grouped, "rotary_cosine", 1) is None
    assert expected("rotary_cos_longer", None, grouped) is None


def test_what_is_always_stated_is_known(grouped: Checkpoint) -> None:
    assert all(expected(what, None, grouped) is not None for names in ALWAYS for what in names)
