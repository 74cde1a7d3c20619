"""Overflow in FP16, planted in a checkpoint: the suite for large activations finds it, and the layer, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.checkpoint import open_checkpoint
from harness.prompts import read_suite
from support import INTER, Result, Tiny, golden_of, write_checkpoint

LAYER, SCALE = 1, 2e4


@pytest.fixture(scope="session")
def scaled(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The same function, but for rounding: a row of an `up` projection times 2e4, and its column of `down` over 2e4.

    No weight is beyond FP16; what the row gives is, on some prompts.
    """
    root = tmp_path_factory.mktemp("scaled")
    made = Tiny(root / "scaled", tiny.prompts, root / "golden")
    write_checkpoint(made.checkpoint)
    path = made.checkpoint / "model.safetensors"
    tensors = load_file(path)
    prefix = f"model.layers.{LAYER}.mlp."
    tensors[f"{prefix}gate_up_proj.weight"][INTER + 7] *= np.float32(SCALE)
    tensors[f"{prefix}down_proj.weight"][:, 7] /= np.float32(SCALE)
    save_file(tensors, path)
    golden_of(open_checkpoint(made.checkpoint), read_suite(made.prompts), made.golden / "few")
    return made


@pytest.fixture
def judged(conform: Any, scaled: Tiny) -> Callable[..., Result]:
    def run(precision: str, fault: str = "") -> Result:
        chosen = ("-k", "test_numbers_logits or test_numbers_inner")
        planted = {"targets": f"planted-numbers:cpu:{precision}", "fault": fault, "options": scaled.options}
        result: Result = conform(*chosen, suites=("test_numbers",), **planted)
        assert result.record is not None, result.text
        return result

    return run


def _message(result: Result, case: str) -> str:
    return next(found.message for found in result.cases if case in found.id)


def test_an_overflow_in_fp16_is_found_at_its_layer_by_name_and_in_fp32_there_is_none(judged: Any) -> None:
    result = judged("*")
    assert result.outcomes("fp32]") == {"PASS": 2}, result.text
    assert f"at model.layers.{LAYER}.mlp." in _message(result, "test_numbers_logits[planted-numbers:cpu:fp32]")
    numbers = next(case.numbers for case in result.cases if "fp32]" in case.id)
    assert numbers["largest"] > 65504
    assert numbers["largest"] > numbers["ordinary_largest"]
    assert 0 < numbers["headroom"] < 1
    assert result.outcomes("fp16]") == {"FAIL": 2}, result.text
    for test in ("test_numbers_logits", "test_numbers_inner"):
        message = _message(result, f"{test}[planted-numbers:cpu:fp16]")
        assert f"at model.layers.{LAYER}.mlp, position" in message
        assert (
            f"values in model.layers.{LAYER}.mlp beyond it are those of model.layers.{LAYER}.mlp.gate_up_proj"
            in message
        )


def test_a_device_that_clamps_in_silence_is_found_and_a_nan_that_is_put_right_later(judged: Any) -> None:
    result = judged("fp16", "clamps,nan-masked")
    assert result.outcomes() == {"FAIL": 2}, result.text
    message = _message(result, "test_numbers_logits")
    assert "from what it ought to be" in message
    assert "nan at model.norm, position" in message
    assert "nan at model.norm, position" in _message(result, "test_numbers_inner")
