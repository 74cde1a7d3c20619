from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file, save_file

from harness.checkpoint import Checkpoint, Fingerprint, find_checkpoint, open_checkpoint
from harness.errors import CheckpointError

MakeFolder = Callable[..., Path]
_NEEDS_LINKS = pytest.mark.skipif(sys.platform == "win32", reason="symbolic links need rights on Windows")


def _rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def _write_index(folder: Path, weight_map: object) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), encoding="utf-8")


def _shard(folder: Path) -> dict[str, str]:
    """Split the weights over two files with an index."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        file = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map.update(dict.fromkeys(part, file))
    _write_index(folder, weight_map)
    return weight_map


def test_a_phi3_folder_is_a_checkpoint_named_after_it(make_folder: MakeFolder) -> None:
    folder = make_folder("my-phi")
    checkpoint = find_checkpoint(str(folder))
    assert (checkpoint.name, checkpoint.path) == ("my-phi", folder.resolve())
    assert (checkpoint.vocabulary, checkpoint.max_tokens) == (24, 64)


def test_a_folder_called_checkpoint_is_named_after_its_parent(make_folder: MakeFolder, tmp_path: Path) -> None:
    inner = tmp_path / "outer" / "checkpoint"
    inner.parent.mkdir()
    make_folder().rename(inner)
    assert find_checkpoint(str(inner)).name == "outer"


def test_the_bundled_checkpoint_can_be_opened(tree: Path) -> None:
    checkpoint = find_checkpoint(str(tree / "golden" / "phi-3-tiny" / "checkpoint"))
    assert checkpoint.name == "phi-3-tiny"
    assert checkpoint.end_tokens
    assert checkpoint.window < checkpoint.max_tokens


@pytest.mark.parametrize("architectures", [["LlamaForCausalLM"], [], None])
def test_another_architecture_is_refused(make_folder: MakeFolder, architectures: list[str] | None) -> None:
    with pytest.raises(CheckpointError, match="is not Phi-3") as caught:
        open_checkpoint(make_folder(architectures=architectures))
    assert "Phi3ForCausalLM" in caught.value.problem
    assert all(name in caught.value.problem for name in architectures or [])


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings"])
@pytest.mark.parametrize("value", [0, -1, "32064", 1.5, None])
def test_a_configuration_number_that_is_none_is_named(make_folder: MakeFolder, key: str, value: object) -> None:
    folder = make_folder()
    _rewrite(folder / "config.json", lambda config: config.update({key: value}))
    with pytest.raises(CheckpointError, match=f"{key} is {value!r}"):
        open_checkpoint(folder)


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_the_first_name_of_longrope_is_refused_with_the_edit(make_folder: MakeFolder, key: str) -> None:
    """transformers 5.5.4 says of it that a key is missing, and not which word is wrong."""
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    with pytest.raises(CheckpointError, match=r"config\.json: rope_scaling is of type 'su'") as caught:
        open_checkpoint(make_folder(rope_scaling={key: "su", **factors}))
    assert '"longrope"' in caught.value.remedy
    open_checkpoint(make_folder("newer", rope_scaling={key: "longrope", **factors}))


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 100_000])
def test_a_corrupt_config_is_refused(make_folder: MakeFolder, content: str) -> None:
    folder = make_folder()
    (folder / "config.json").write_text(content, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_a_remedy(make_folder: MakeFolder, name: str) -> None:
    folder = make_folder()
    (folder / name).unlink()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(folder)
    assert name in caught.value.problem
    assert caught.value.remedy


def test_pickled_weights_are_refused_with_the_way_to_convert_them(make_folder: MakeFolder) -> None:
    folder = make_folder()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="safetensors only") as caught:
        open_checkpoint(folder)
    assert "save_pretrained" in caught.value.remedy


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_truncated_weights_are_refused(make_folder: MakeFolder, kept: int) -> None:
    path = make_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=r"truncated"):
        open_checkpoint(path.parent)


def test_weights_with_bytes_to_spare_are_refused(make_folder: MakeFolder) -> None:
    path = make_folder() / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(CheckpointError, match="bytes"):
        open_checkpoint(path.parent)


@pytest.mark.parametrize(
    "header",
    [
        b"garbage!",
        b"\xff\xfe\xfd",
        b"[]",
        b"3",
        b'"text"',
        b'{"a": 1}',
        b'{"a": {}}',
        b'{"a": {"dtype": "F32", "shape": [1]}}',
        b'{"a": {"data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": null}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}}',
        b"[" * 100_000,
    ],
)
def test_a_garbage_header_is_refused(make_folder: MakeFolder, header: bytes) -> None:
    path = make_folder() / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    with pytest.raises(CheckpointError, match=r"header|truncated"):
        open_checkpoint(path.parent)


def test_a_header_length_beyond_the_file_is_refused(make_folder: MakeFolder) -> None:
    path = make_folder() / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])
    with pytest.raises(CheckpointError, match="truncated"):
        open_checkpoint(path.parent)


def test_sharded_weights_count_as_one_checkpoint(make_folder: MakeFolder) -> None:
    folder = make_folder()
    whole = open_checkpoint(folder)
    parameters = whole.parameters()
    _shard(folder)
    sharded = open_checkpoint(folder)
    assert len(sharded.weight_files) == 2
    assert sharded.parameters() == parameters


def test_a_missing_shard_is_named(make_folder: MakeFolder) -> None:
    folder = make_folder()
    _shard(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002\.safetensors"):
        open_checkpoint(folder)


@pytest.mark.parametrize("form", ["relative", "absolute", pytest.param("link", marks=_NEEDS_LINKS)])
def test_an_index_that_points_outside_its_folder_is_refused(make_folder: MakeFolder, form: str) -> None:
    other, folder = make_folder("other"), make_folder()
    path = other / "model.safetensors"
    if form == "link":
        path = other / "link.safetensors"
        path.symlink_to(other / "model.safetensors")
    (folder / "model.safetensors").unlink()
    _write_index(folder, {"a": str(path) if form == "absolute" else f"../other/{path.name}"})
    with pytest.raises(CheckpointError, match="outside its folder"):
        open_checkpoint(folder)


@_NEEDS_LINKS
def test_weights_linked_into_the_folder_are_taken_as_the_hub_cache_has_them(make_folder: MakeFolder) -> None:
    folder = make_folder()
    blob = folder.parent / "blob"
    (folder / "model.safetensors").rename(blob)
    (folder / "model.safetensors").symlink_to(blob)
    assert open_checkpoint(folder).parameters() > 0


@pytest.mark.parametrize("weight_map", [{}, None, [], ["model.safetensors"], {"a": 3}, {"a": None}])
def test_an_index_that_maps_to_no_file_is_refused(make_folder: MakeFolder, weight_map: object) -> None:
    folder = make_folder()
    _write_index(folder, weight_map)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)


def _change_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += np.float32(0.001)
    save_file(tensors, folder / "model.safetensors")


def _change_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"version": "2.0"}', encoding="utf-8")


def _add_chat_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}", encoding="utf-8")


def _change_config(folder: Path) -> None:
    _rewrite(folder / "config.json", lambda config: config.update(rms_norm_eps=1e-6))


def _add_generation_config(folder: Path) -> None:
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}', encoding="utf-8")


def _differing(one: Fingerprint, other: Fingerprint) -> list[str]:
    return [part for part in ("weights", "tokenizer", "config") if getattr(one, part) != getattr(other, part)]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (_change_weights, "weights"),
        (_change_tokenizer, "tokenizer"),
        (_add_chat_template, "tokenizer"),
        (_change_config, "config"),
        (_add_generation_config, "config"),
    ],
)
def test_a_change_shows_in_its_own_part_of_the_fingerprint(
    make_folder: MakeFolder, change: Callable[[Path], None], part: str
) -> None:
    folder = make_folder()
    before = open_checkpoint(folder).fingerprint()
    change(folder)
    after = open_checkpoint(folder).fingerprint()
    assert _differing(before, after) == [part]
    assert before.key != after.key


def test_the_fingerprint_moves_with_the_folder(make_folder: MakeFolder, tmp_path: Path) -> None:
    folder = make_folder()
    before = open_checkpoint(folder).fingerprint()
    shutil.copytree(folder, tmp_path / "copy")
    assert open_checkpoint(tmp_path / "copy").fingerprint() == before


def test_windows_line_ends_do_not_change_the_fingerprint(make_folder: MakeFolder) -> None:
    folder = make_folder()
    before = open_checkpoint(folder).fingerprint()
    for name in ("tokenizer.json", "config.json"):
        path = folder / name
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert b"\r\n" in (folder / "tokenizer.json").read_bytes()
    assert open_checkpoint(folder).fingerprint() == before


def test_parameters_are_counted_over_all_tensors(checkpoint: Checkpoint) -> None:
    embedding, head, norms = 24 * 16, 24 * 16, 5 * 16
    layer = 48 * 16 + 16 * 16 + 40 * 16 + 16 * 20
    assert checkpoint.parameters() == embedding + head + norms + 2 * layer


@pytest.mark.parametrize(("window", "expected"), [(16, 16), (32, 32), (33, 32), (1000, 32), (None, 32), (0, 32)])
def test_a_window_longer_than_half_the_context_counts_as_half(
    make_folder: MakeFolder, window: int | None, expected: int
) -> None:
    assert open_checkpoint(make_folder(sliding_window=window)).window == expected


@pytest.mark.parametrize(
    ("generation", "expected"),
    [
        (None, (2,)),
        ({"eos_token_id": 7}, (7,)),
        ({"eos_token_id": [7, 8]}, (7, 8)),
        ({}, (2,)),
        ({"eos_token_id": None}, (2,)),
    ],
)
def test_end_tokens_come_from_the_generation_config_first(
    make_folder: MakeFolder, generation: dict[str, object] | None, expected: tuple[int, ...]
) -> None:
    folder = make_folder()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")
    assert open_checkpoint(folder).end_tokens == expected


def test_a_checkpoint_that_states_no_end_token_is_refused(make_folder: MakeFolder) -> None:
    with pytest.raises(CheckpointError, match="no end token"):
        _ = open_checkpoint(make_folder(eos_token_id=None)).end_tokens


@pytest.mark.parametrize("name", ["./none", "/nowhere/none", "none", "a/b/c"])
def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="no checkpoint folder"):
        find_checkpoint(name)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("no"), ConnectionError("offline"), OSError()])
def test_a_hub_name_without_network_is_an_error_that_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, local_files_only: bool = False, **__: object) -> str:
        raise LocalEntryNotFoundError("not cached") if local_files_only else error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(CheckpointError, match="owner/model is not in the Hugging Face cache") as caught:
        find_checkpoint("owner/model")
    assert "--checkpoint" in caught.value.remedy


def test_a_cached_checkpoint_needs_no_network(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_folder()

    def cached(*_: object, local_files_only: bool = False, **__: object) -> str:
        assert local_files_only
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    assert find_checkpoint("owner/model").name == "model"


def test_a_malformed_hub_name_is_refused() -> None:
    with pytest.raises(CheckpointError, match="is no hub name"):
        find_checkpoint("owner/..model--x")
