"""Where the parts of fused tensors lie, and what makes an artifact complete."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from harness.checkpoint import open_checkpoint
from harness.codes import signed, unpack
from harness.errors import ArtifactError, CheckpointError
from harness.layout import Layout, Place
from harness.tensor_files import TensorFiles

MINI = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
}


def test_the_shapes_are_those_of_a_checkpoint(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    found = {name: values.shape for name, values in load_file(folder / "model.safetensors").items()}
    assert Layout.of(open_checkpoint(folder).config).shapes() == found


def test_query_key_and_value_follow_each_other() -> None:
    layout = Layout.of(MINI)
    name = "model.layers.5.self_attn.qkv_proj.weight"
    assert layout.place("q_proj", 5) == Place(name, 0, (3072, 3072))
    assert layout.place("k_proj", 5) == Place(name, 3072, (1024, 3072))
    assert layout.place("v_proj", 5) == Place(name, 4096, (1024, 3072))
    assert layout.place("up_proj", 5) == Place("model.layers.5.mlp.gate_up_proj.weight", 8192, (8192, 3072))


def test_heads_may_have_a_size_of_their_own() -> None:
    assert Layout.of({**MINI, "head_dim": 64}).place("o_proj").shape == (3072, 24 * 64)


@pytest.mark.parametrize("change", [{"hidden_size": None}, {"num_attention_heads": 0}, {"vocab_size": "many"}])
def test_a_configuration_without_a_number_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointError, match="lacks a number"):
        Layout.of({**MINI, **change})


def whole(layout: Layout) -> list[Place]:
    return [Place(name, 0, shape) for name, shape in layout.shapes().items()]


def test_all_rows_of_all_tensors_are_complete() -> None:
    layout = Layout.of(MINI)
    apart = [layout.place(part, 0) for part in ("v_proj", "q_proj", "k_proj")]
    layout.check_complete([p for p in whole(layout) if p.name != apart[0].name] + apart)


def test_a_tied_head_may_be_missing() -> None:
    layout = Layout.of({**MINI, "tie_word_embeddings": True})
    layout.check_complete(whole(layout)[:-1])
    with pytest.raises(ArtifactError, match=r"no lm_head\.weight"):
        Layout.of(MINI).check_complete(whole(layout)[:-1])


def test_a_missing_norm_is_named() -> None:
    layout = Layout.of(MINI)
    with pytest.raises(ArtifactError, match=r"no model\.norm\.weight"):
        layout.check_complete([place for place in whole(layout) if place.name != "model.norm.weight"])


def test_half_a_fused_tensor_is_named() -> None:
    layout = Layout.of(MINI)
    name = "model.layers.0.mlp.gate_up_proj.weight"
    without = [place for place in whole(layout) if place.name != name]
    with pytest.raises(ArtifactError, match=r"gate_up_proj\.weight: the artifact lacks rows 0 to 8191"):
        layout.check_complete([*without, layout.place("up_proj")])
    with pytest.raises(ArtifactError, match=r"gate_up_proj\.weight: the artifact has 8192 rows for 16384"):
        layout.check_complete([*without, layout.place("gate_proj")])


def test_the_first_code_is_in_the_lowest_bits() -> None:
    packed = np.array([[0b11_10_01_00, 0xF8]], dtype=np.uint8)
    assert unpack(packed, 2).tolist() == [[0, 1, 2, 3, 0, 2, 3, 3]]
    assert unpack(packed, 4).tolist() == [[4, 14, 8, 15]]
    assert signed(unpack(packed, 4), 4).tolist() == [[4, -2, -8, -1]]
    assert signed(unpack(packed, 8), 8).tolist() == [[-28, -8]]


def test_integers_are_read_only_where_they_are_meant_to_be(tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    save_file({"codes": np.arange(4, dtype=np.int8), "none": np.zeros((0, 3), np.float16)}, path)
    assert TensorFiles([path], integers=True).values("codes").tolist() == [0, 1, 2, 3]
    assert TensorFiles([path]).values("none").shape == (0, 3)
    with pytest.raises(CheckpointError, match="codes is of dtype I8"):
        TensorFiles([path]).values("codes")
    with pytest.raises(CheckpointError, match="no tensor other"):
        TensorFiles([path]).values("other")
