"""What is said of large activations: where FP16 ends, which place is named, and what never passes."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harness import overflow
from harness.checkpoint import open_checkpoint
from harness.compare import Outcome
from harness.numbers import judge_inner, special_tokens
from harness.overflow import FP16_MAX, Peak
from harness.states import States, places
from support import Tiny

PLACES = places(2)
MLP = "model.layers.1.mlp"


def states(rows: int = 4, width: int = 8) -> States:
    rng = np.random.default_rng(0)
    return {place: rng.normal(0, 10, (rows, width)).astype(np.float32) for place in PLACES}


def peaks(**magnitudes: float) -> overflow.Peaks:
    """Peaks of layer 1 in the order of computing, 1 but for those named, with `__` for a full stop."""
    parts = [
        "input_layernorm.squares",
        "input_layernorm",
        "self_attn.qkv_proj",
        "self_attn.scores",
        "self_attn.o_proj",
        "self_attn",
        "post_attention_layernorm.squares",
        "post_attention_layernorm",
        "mlp.gate_up_proj",
        "mlp.swiglu",
        "mlp.down_proj",
        "mlp",
    ]
    given = {name.replace("__", "."): value for name, value in magnitudes.items()}
    assert set(given) <= set(parts)
    return {f"model.layers.1.{part}": Peak(given.get(part, 1.0), 3) for part in parts}


def test_the_first_place_beyond_fp16_is_the_one_that_is_computed_first() -> None:
    found = peaks(mlp__gate_up_proj=7e4, mlp__swiglu=9e9, mlp=8e4)
    assert overflow.first_beyond(found) == "model.layers.1.mlp.gate_up_proj"
    assert overflow.greatest(found)[0] == "model.layers.1.mlp.swiglu"


def test_scores_count_before_they_are_scaled() -> None:
    assert overflow.first_beyond(peaks(self_attn__scores=7e4)) == "model.layers.1.self_attn.scores"


def test_the_squares_of_a_norm_count_only_where_no_result_is_beyond() -> None:
    squares = {"input_layernorm__squares": 1e6}
    assert overflow.first_beyond(peaks(**squares)) == "model.layers.1.input_layernorm.squares"
    assert overflow.first_beyond(peaks(**squares, mlp=7e4)) == MLP
    assert overflow.greatest(peaks(**squares, mlp=5.0))[0] == MLP
    assert "unless they are summed in FP32" in overflow.cause(peaks(**squares))


def test_nothing_is_beyond_at_the_very_end_of_fp16() -> None:
    assert overflow.first_beyond(peaks(mlp=FP16_MAX)) is None
    assert overflow.first_beyond(peaks(mlp=float("nan"))) == MLP
    assert "FP16 could hold all values" in overflow.cause(peaks(mlp=FP16_MAX))


def test_the_cause_in_a_place_is_looked_for_on_the_way_to_it() -> None:
    found = peaks(self_attn__o_proj=1e5, mlp__down_proj=2e5)
    assert "those of model.layers.1.mlp.down_proj, 2e+05 at position 3" in overflow.cause(found, MLP)
    assert "those of model.layers.1.self_attn.o_proj" in overflow.cause(found, "model.layers.1.self_attn")
    assert "those of model.layers.1.self_attn.o_proj" in overflow.cause(found)


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("model.embed_tokens", overflow.STREAM),
        ("model.layers.0.mlp", overflow.STREAM),
        ("model.layers.0.self_attn.scores", overflow.ATTENTION),
        ("model.layers.0.mlp.swiglu", overflow.MLP),
        ("model.layers.0.input_layernorm", ""),
        ("lm_head", ""),
    ],
)
def test_places_have_the_kinds_that_prompts_are_ranked_by(place: str, kind: str) -> None:
    assert overflow.kind_of(place) == kind


def test_finite_values_pass_and_tell_their_headroom() -> None:
    given = states()
    given[MLP][2, 5] = -655.04
    verdict = judge_inner(given, PLACES, {}, {})
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["device_headroom"] == pytest.approx(100.0, rel=1e-4)
    assert verdict.message == f"greatest: 655 at {MLP}, position 2 (device)"


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_value_that_is_not_finite_fails_with_the_first_place(value: float) -> None:
    given = states()
    given[MLP][2, 5] = value
    given["lm_head"][:] = np.nan
    verdict = judge_inner(given, PLACES, peaks(mlp__gate_up_proj=7e4), {"largest": 1.0})
    assert verdict.outcome is Outcome.FAIL
    assert f"{value:g} at {MLP}, position 2, channel 5" in verdict.message
    assert "those of model.layers.1.mlp.gate_up_proj" in verdict.message
    assert verdict.numbers["broken"] == 1.0


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_value_at_the_end_of_fp16_was_clamped(sign: float) -> None:
    given = states()
    given["model.layers.0.self_attn"][1, 1] = sign * FP16_MAX
    verdict = judge_inner(given, PLACES, {}, {})
    assert verdict.outcome is Outcome.FAIL
    assert f"{sign * FP16_MAX:g} at model.layers.0.self_attn, position 1, channel 1" in verdict.message


def test_a_value_beyond_fp16_was_not_clamped() -> None:
    given = states()
    given[MLP][0, 0] = 1e6
    assert judge_inner(given, PLACES, {}, {}).outcome is Outcome.PASS


def test_no_values_never_pass() -> None:
    assert judge_inner({}, [], {}, {}).outcome is Outcome.FAIL
    assert judge_inner({"lm_head": np.empty((0, 8), np.float32)}, ["lm_head"], {}, {}).outcome is Outcome.FAIL


def test_special_tokens_are_those_of_the_configuration_and_those_that_the_tokenizer_adds(tiny: Tiny) -> None:
    checkpoint = open_checkpoint(tiny.checkpoint)
    assert special_tokens(checkpoint) == [63, 0]


def test_what_a_tokenizer_adds_may_lie_outside_the_vocabulary_or_be_no_json(tiny: Tiny, tmp_path: Path) -> None:
    checkpoint = msgspec.structs.replace(open_checkpoint(tiny.checkpoint), path=tmp_path)
    assert special_tokens(checkpoint) == [63, 0]
    added = {"added_tokens": [{"id": 5}, {"id": 63}, {"id": 64}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(added), encoding="utf-8")
    assert special_tokens(checkpoint) == [63, 0, 5]
    (tmp_path / "tokenizer.json").write_text("[1", encoding="utf-8")
    assert special_tokens(checkpoint) == [63, 0]
