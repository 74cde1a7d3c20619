"""The configurations of the published checkpoints are understood, and checkpoints of their shapes can be made."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

import published_shapes
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.layout import HEAD, Layout
from harness.longrope import switch_of
from harness.phi3_float64 import Weights, frequencies
from harness.streaming.room import least_memory
from published_shapes import NAMES, PUBLISHED, configuration, to_bfloat16

# Weights as the publishers count them; window as this harness tests it, switch, end tokens, rotated pairs of a head.
EXPECTED = {
    "phi-3-mini-4k": (3_821_079_552, 2047, None, (32000, 32001, 32007), 48),
    "phi-3-mini-128k": (3_821_079_552, 4096, 4096, (32000, 32001, 32007), 48),
    "phi-3.5-mini": (3_821_079_552, 4096, 4096, (32000, 32001, 32007), 48),
    "phi-3-medium-4k": (13_960_238_080, 2047, None, (32000, 32001, 32007), 64),
    "phi-4": (14_659_507_200, 8192, None, (100257, 100265), 64),
    "phi-4-mini": (3_836_021_760, 4096, 4096, (200020, 199999), 48),
}


def test_every_model_has_its_expectations() -> None:
    assert sorted(EXPECTED) == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_published_configuration_is_understood(name: str) -> None:
    config = configuration(name)
    checkpoint, layout = Checkpoint(name, PUBLISHED / name, config, ()), Layout.of(config)
    shapes = {tensor: shape for tensor, shape in layout.shapes().items() if tensor != HEAD or not layout.tied}
    weights, window, switch, ends, pairs = EXPECTED[name]
    assert sum(map(math.prod, shapes.values())) == weights
    assert (checkpoint.window, switch_of(config), checkpoint.end_tokens) == (window, switch, ends)
    assert max(ends) < checkpoint.vocabulary
    for length in (1, checkpoint.max_tokens):
        found, factor = frequencies(config, length)
        assert found.shape == (pairs,)
        assert (np.diff(found) < 0).all()
        assert (factor > 1) == (switch is not None)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_of_a_published_model_streams_in_six_gigabytes(name: str) -> None:
    """The smallest: of two prompts. That of 40 is what `tests/benchmarks/full_size.py` measures."""
    layout = Layout.of(configuration(name))
    needed = least_memory(layout, 2, 64, 128)
    a_layer = 4 * layout.hidden * (3 * layout.intermediate + 2 * (layout.heads + layout.kv_heads) * layout.head_size)
    assert 2 * a_layer < needed < 6e9


def _shrunk(name: str) -> dict[str, object]:
    """A configuration with all its extents a sixteenth and less, for tensors of a moment."""
    small = {"hidden_size": 96, "intermediate_size": 128, "vocab_size": 512, "num_hidden_layers": 3}
    return configuration(name) | small


@pytest.mark.parametrize("name", ["phi-3-medium-4k", "phi-4-mini"])
@pytest.mark.parametrize("halves", [True, False])
def test_a_made_checkpoint_is_whole(name: str, halves: bool, tmp_path: Path) -> None:
    config = _shrunk(name) | {"num_attention_heads": 4, "num_key_value_heads": 2}
    published_shapes.write_tokenizer(tmp_path, {"<|endoftext|>": 500})
    total = published_shapes.write_weights(tmp_path, config, halves=halves)
    found = open_checkpoint(tmp_path)
    assert found.parameters() == total
    assert len(found.weight_files) == (2 if halves else 1)
    weights, layout = Weights(found), Layout.of(config)
    assert (HEAD in weights) is not layout.tied
    for tensor, shape in layout.shapes().items():
        if tensor in weights:
            values = weights[tensor]
            assert values.shape == shape
            assert np.std(values) == pytest.approx(0.02, rel=0.3)
            assert np.mean(values) == pytest.approx(float(len(shape) == 1), abs=0.01)


def test_a_cut_checkpoint_is_the_beginning_of_the_whole_one(tmp_path: Path) -> None:
    config = _shrunk("phi-4") | {"num_attention_heads": 4, "num_key_value_heads": 2}
    for layers in (1, 3):
        folder = tmp_path / str(layers)
        folder.mkdir()
        published_shapes.write_tokenizer(folder, {"<|endoftext|>": 500})
        published_shapes.write_weights(folder, config | {"num_hidden_layers": layers}, halves=True)
    cut, whole = (Weights(open_checkpoint(tmp_path / str(layers))) for layers in (1, 3))
    for tensor in Layout.of(config | {"num_hidden_layers": 1}).shapes():
        np.testing.assert_array_equal(cut[tensor], whole[tensor])


@given(arrays.arrays(np.float32, 8, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_rounding_to_bfloat16_is_to_the_nearest(values: NDArray[np.float32]) -> None:
    """No neighbour among the numbers of BF16 lies nearer, and of two as near the one that ends in 0 is taken."""
    bits = to_bfloat16(values)
    found = _widened(bits.astype(np.int64))
    for step in (-1, 1):
        beside = _widened((bits.astype(np.int64) + step) & 0xFFFF)
        near, far = abs(found - values.astype(np.float64)), abs(beside - values.astype(np.float64))
        assert ((near < far) | ((near == far) & (bits % 2 == 0)) | ~np.isfinite(beside)).all()


def _widened(bits: NDArray[np.int64]) -> NDArray[np.float64]:
    return (bits.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
