"""The checkpoint itself as an artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.backends.pytorch import PyTorchBackend
from harness.checkpoint import open_checkpoint
from harness.errors import ArtifactError
from harness.weights import Plain, ReadsWeights

MakeFolder = Callable[..., Path]


@pytest.mark.parametrize("tied", [False, True])
def test_each_tensor_comes_once_as_it_is_stored(make_folder: MakeFolder, tied: bool) -> None:
    folder = make_folder(tie_word_embeddings=tied)
    backend = PyTorchBackend()
    assert isinstance(backend, ReadsWeights)
    expected = load_file(folder / "model.safetensors")
    weights = backend.dequantized_weights(folder, open_checkpoint(folder).config)
    found = list(weights.tensors())
    assert sorted(stored.name for stored in found) == sorted(expected)
    assert ("lm_head.weight" in expected) is not tied
    for stored in found:
        assert isinstance(stored.content, Plain)
        assert (stored.content.dtype, stored.row) == ("float32", 0)
        np.testing.assert_array_equal(stored.content.values, expected[stored.name])
    assert weights.statements() == []
    assert weights.scheme == {}


def test_half_precision_keeps_its_name(make_folder: MakeFolder) -> None:
    folder = make_folder()
    halves = {name: values.astype(np.float16) for name, values in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors")
    found = PyTorchBackend().dequantized_weights(folder, open_checkpoint(folder).config).tensors()
    assert {stored.content.dtype for stored in found if isinstance(stored.content, Plain)} == {"float16"}


def test_buffers_of_older_releases_are_no_weights(make_folder: MakeFolder) -> None:
    folder = make_folder()
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, dtype=np.float32)
    save_file(tensors, folder / "model.safetensors")
    found = PyTorchBackend().dequantized_weights(folder, open_checkpoint(folder).config).tensors()
    assert not [stored for stored in found if "inv_freq" in stored.name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.layers.1.mlp.down_proj.bias", "no tensor of Phi-3"),
        ("model.layers.2.input_layernorm.weight", "no tensor of Phi-3"),
        ("model.norm.weight", r"model\.norm\.weight \[3\]"),
    ],
)
def test_what_phi_3_does_not_have_is_named(make_folder: MakeFolder, name: str, message: str) -> None:
    folder = make_folder()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, name: np.ones(3, dtype=np.float32)}, folder / "model.safetensors")
    with pytest.raises(ArtifactError, match=message):
        PyTorchBackend().dequantized_weights(folder, open_checkpoint(folder).config)


def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path: Path, make_folder: MakeFolder) -> None:
    config = open_checkpoint(make_folder()).config
    with pytest.raises(ArtifactError, match=r"no config\.json"):
        PyTorchBackend().dequantized_weights(tmp_path, config)
