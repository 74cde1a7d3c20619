"""Ready-made artifacts as they are published: what they are is read from their files, and the target's one is found."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.numpy import load_file

from harness.artifacts import describe
from harness.backends.openvino import OpenVinoBackend
from harness.backends.ort_genai import OrtGenAIBackend
from harness.backends.pytorch import PyTorchBackend
from harness.contents import Contents
from harness.errors import ArtifactError, UsageError
from harness.ready_made import check_artifacts, choose, find_artifact, find_artifacts, spoken
from harness.target import Precision, Target
from onnx_artifact import Maker, Product, bfloat16, dequantised, floats, nbits
from openvino_artifact import Exported

REPOSITORY = "microsoft/Phi-3-mini-4k-instruct-onnx"
# As in that repository: folder, how products are stored, the provider in genai_config.json.
PUBLISHED: dict[str, tuple[Product, str | None]] = {
    "cpu_and_mobile/cpu-int4-rtn-block-32": (nbits(4, 32, level=1), None),
    "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4": (nbits(4, 32, level=4), None),
    "cuda/cuda-fp16": (floats(np.float16), "cuda"),
    "cuda/cuda-int4-rtn-block-32": (nbits(4, 32, dtype=np.float16, level=0), "cuda"),
    "directml/directml-int4-awq-block-128": (nbits(4, 128, zeros=True, dtype=np.float16, level=0), "dml"),
}
ORT, OPENVINO = OrtGenAIBackend(), OpenVinoBackend()
MARKS = (ORT.artifact_mark, OPENVINO.artifact_mark)


def target(text: str) -> Target:
    return Target.parse(text)


Write = Callable[..., Path]


@pytest.fixture
def write(make_folder: Callable[..., Path]) -> Write:
    """Writes an ONNX artifact of some products for a provider."""
    source = make_folder()
    config, weights = json.loads((source / "config.json").read_text()), load_file(source / "model.safetensors")

    def written(folder: Path, product: Product, provider: str | None = None) -> Path:
        maker = Maker(config, weights)
        maker.build(product)
        folder.mkdir(parents=True)
        maker.write(folder, external=True)
        path = folder / "genai_config.json"
        settings = json.loads(path.read_text())
        options: list[dict[str, Any]] = [] if provider is None else [{provider: {}}]
        settings["model"]["decoder"]["session_options"] = {"provider_options": options}
        path.write_text(json.dumps(settings))
        return folder

    return written


@pytest.fixture
def tree(write: Write, tmp_path: Path) -> Path:
    """A repository of several artifacts."""
    root = tmp_path / "onnx"
    for name, (product, provider) in PUBLISHED.items():
        write(root / name, product, provider)
    (root / "README.md").write_text("A model card.")
    return root


@pytest.mark.parametrize(
    ("product", "precision", "recipe"),
    [
        (nbits(4, 32, level=4), Precision.INT4, "4 bits in groups of 32, accuracy level 4"),
        (nbits(4, 128, zeros=True, level=0), Precision.INT4, "4 bits in groups of 128, asymmetric"),
        (nbits(8, 16), Precision.INT8, "8 bits in groups of 16, accuracy level 4"),
        (dequantised(zeros=False), Precision.INT4, "4 bits in groups of 4"),
        (dequantised(zeros=False, channel=True), Precision.INT4, "4 bits with a scale a row"),
        (floats(np.float16), Precision.FP16, "float16"),
        (floats(), Precision.FP32, "float32"),
        (bfloat16, Precision.BF16, "bfloat16"),
    ],
)
def test_an_onnx_artifact_is_what_its_graph_stores(
    write: Write, tmp_path: Path, product: Product, precision: Precision, recipe: str
) -> None:
    found = ORT.contents(write(tmp_path / "called-int8-by-somebody", product))
    assert found == Contents(precision, ("cpu",), f"{recipe}; by made-by-hand 1")


def test_an_artifact_of_two_kinds_of_weights_is_the_coarser(write: Write, tmp_path: Path) -> None:
    kinds = [nbits(4, 16, level=0), nbits(8, 16, level=0)]

    def either(maker: Maker, node: str, x: str, y: str, weight: Any) -> None:
        kinds["mlp" in node](maker, node, x, y, weight)

    found = ORT.contents(write(tmp_path / "mixed", either))
    assert found.precision is Precision.INT4
    assert "4 bits in groups of 16 (" in found.recipe
    assert "8 bits in groups of 16 (" in found.recipe


def test_bits_that_no_target_has_are_refused(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="weights of 2 bits in groups of 16"):
        ORT.contents(write(tmp_path / "two", nbits(2, level=0)))


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("plain", "4 bits in groups of 32, asymmetric"),
        ("long", "4 bits in groups of"),
    ],
)
def test_an_openvino_artifact_is_what_its_graph_stores(name: str, recipe: str, tmp_path: Path) -> None:
    exported = Exported(name, tmp_path)
    found = OPENVINO.contents(exported.artifact)
    assert (found.precision, found.devices) == (Precision.INT4, ())
    assert recipe in found.recipe
    scheme = exported.read().scheme
    assert f"by NNCF {scheme['nncf']} with mode {scheme['mode']}" in found.recipe
    assert f"awq {scheme['awq']}" in found.recipe


def test_what_an_openvino_artifact_states_does_not_make_it_so(tmp_path: Path) -> None:
    """Its codes are of 4 bits, whatever name and statement say."""
    exported = Exported("plain", tmp_path)
    mode = exported.root.find("rt_info/nncf/weight_compression/mode")
    assert mode is not None
    mode.set("value", "int8_asym")
    exported.save()
    found = OPENVINO.contents(exported.artifact)
    assert found.precision is Precision.INT4
    assert "mode int8_asym" in found.recipe


def test_files_that_an_artifact_names_and_lacks_are_told(write: Write, tmp_path: Path) -> None:
    folder = write(tmp_path / "made", nbits())
    (folder / "model.onnx.data").unlink()
    assert ORT.contents(folder).missing == ("model.onnx.data",)
    with pytest.raises(UsageError, match=r"made lacks model\.onnx\.data") as caught:
        choose(target("ort-genai:cpu:int4"), folder, ORT)
    assert "copy it again" in caught.value.remedy
    exported = Exported("plain", tmp_path)
    exported.bin.unlink()
    with pytest.raises(UsageError, match=r"lacks openvino_model\.bin"):
        choose(target("openvino:cpu:int4"), exported.artifact, OPENVINO)


@pytest.mark.parametrize(
    ("text", "folder"),
    [
        ("ort-genai:dml:int4", "directml/directml-int4-awq-block-128"),
        ("ort-genai:dml.1:int4", "directml/directml-int4-awq-block-128"),
        ("ort-genai:cuda:int4", "cuda/cuda-int4-rtn-block-32"),
        ("ort-genai:cuda:fp16", "cuda/cuda-fp16"),
    ],
)
def test_the_artifact_for_a_target_is_found_in_a_repository(tree: Path, text: str, folder: str) -> None:
    chosen = choose(target(text), tree, ORT)
    assert chosen.path == tree / folder
    assert chosen.contents is not None
    assert chosen.contents.precision is target(text).precision


def test_it_is_found_by_what_it_is_and_not_by_its_name(tree: Path) -> None:
    (tree / "directml").rename(tree / "cpu")
    (tree / "cpu" / "directml-int4-awq-block-128").rename(tree / "cpu" / "cpu-fp32")
    assert choose(target("ort-genai:dml:int4"), tree, ORT).path == tree / "cpu" / "cpu-fp32"


def test_several_artifacts_for_a_target_are_listed_with_their_options(tree: Path) -> None:
    with pytest.raises(UsageError, match="holds 5 artifacts, and 2 are for ort-genai:cpu:int4") as caught:
        choose(target("ort-genai:cpu:int4"), tree, ORT)
    text = str(caught.value)
    for name in PUBLISHED:
        assert f"    {name}: " in text
    assert "cuda/cuda-fp16: fp16 (float16; by made-by-hand 1, made for cuda)" in text
    fitting = [name for name in PUBLISHED if name.startswith("cpu")]
    assert [line.strip() for line in text.splitlines() if "--artifact" in line] == [
        f"--artifact 'ort-genai:cpu:int4={tree / name}'" for name in fitting
    ]


@pytest.mark.parametrize("text", ["ort-genai:cpu:fp32", "ort-genai:dml:fp16"])
def test_a_repository_without_one_for_a_target_says_what_it_has(tree: Path, text: str) -> None:
    with pytest.raises(UsageError, match=f"none of them is for {text}") as caught:
        choose(target(text), tree, ORT)
    assert all(name in caught.value.problem for name in PUBLISHED)
    assert "--artifact" not in caught.value.remedy


def test_a_broken_artifact_among_others_is_named_and_not_in_the_way(tree: Path) -> None:
    broken = tree / "cuda" / "cuda-int4-rtn-block-32"
    (broken / "model.onnx").write_bytes(b"no graph")
    assert choose(target("ort-genai:dml:int4"), tree, ORT).contents is not None
    with pytest.raises(UsageError, match="cuda/cuda-int4-rtn-block-32: cannot be read"):
        choose(target("ort-genai:cuda:int4"), tree, ORT)


def test_a_folder_of_its_own_needs_no_provider_but_the_right_precision(tree: Path) -> None:
    """Which device computes is the adapter's to say; which weights are judged is not."""
    folder = tree / "directml" / "directml-int4-awq-block-128"
    assert choose(target("ort-genai:cpu:int4"), folder, ORT).path == folder
    with pytest.raises(UsageError, match=r"its weights are int4 \(4 bits in groups of 128, asymmetric") as caught:
        choose(target("ort-genai:cpu:int8"), folder, ORT)
    assert "judge ort-genai:cpu:int4 on it" in caught.value.remedy


def test_openvino_artifacts_lie_at_the_top_or_in_folders(tmp_path: Path) -> None:
    exported = Exported("plain", tmp_path / "ov")
    chosen = choose(target("openvino:npu:int4"), exported.artifact, OPENVINO)
    assert chosen.path == exported.artifact
    assert choose(target("openvino:gpu:int4"), tmp_path / "ov", OPENVINO).path == exported.artifact
    with pytest.raises(UsageError, match=r"int4 .*4 bits in groups of 32"):
        choose(target("openvino:cpu:fp16"), exported.artifact, OPENVINO)


def test_another_backends_artifact_is_none(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no openvino_model\.xml in it or below it"):
        choose(target("openvino:cpu:int4"), tree, OPENVINO)
    with pytest.raises(UsageError, match="there is no artifact folder"):
        choose(target("openvino:cpu:int4"), tmp_path / "gone", OPENVINO)


def test_a_backend_that_cannot_tell_takes_the_folder_as_it_is(tree: Path) -> None:
    assert choose(target("pytorch:cpu:fp32"), tree, PyTorchBackend()) == (tree, None)


def test_a_run_stops_where_an_artifact_is_none_for_any_of_its_targets(tree: Path) -> None:
    backends = {"ort-genai": ORT}
    targets = [target("ort-genai:dml:int4"), target("ort-genai:cpu:fp32")]
    check_artifacts([("ort-genai:*", tree)], targets, backends)
    with pytest.raises(UsageError, match="none of them is for ort-genai:cpu:fp32"):
        check_artifacts([("ort-genai:*", tree)], targets[1:], backends)


def test_notes_that_a_download_leaves_do_not_change_an_artifacts_hash(write: Write, tmp_path: Path) -> None:
    folder = write(tmp_path / "made", nbits())
    before = describe(folder, "given")
    notes = folder / ".cache" / "huggingface"
    notes.mkdir(parents=True)
    (notes / "genai_config.json.metadata").write_text("etag")
    after = describe(folder, "given")
    assert (after.sha256, after.bytes) == (before.sha256, before.bytes)


class Hub:
    """A hub's cache below a folder, and a network from which snapshots of a repository are copied into it."""

    def __init__(self, cache: Path, remote: Path | None) -> None:
        self.snapshot = cache / f"models--{REPOSITORY.replace('/', '--')}" / "snapshots" / "a1b2"
        self.remote = remote
        self.asked: list[tuple[list[str] | None, bool]] = []

    def download(self, name: str, *, allow_patterns: list[str] | None, local_files_only: bool) -> str:
        assert name == REPOSITORY
        self.asked.append((allow_patterns, local_files_only))
        if not local_files_only and self.remote is not None:
            for path in filter(Path.is_file, self.remote.rglob("*")):
                inner = path.relative_to(self.remote).as_posix()
                if allow_patterns is None or any(Path(inner).match(pattern) for pattern in allow_patterns):
                    (self.snapshot / inner).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, self.snapshot / inner)
        if not self.snapshot.is_dir():
            raise LocalEntryNotFoundError("cannot find it in the cache, and there is no network")
        return str(self.snapshot)


MakeHub = Callable[..., Hub]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeHub:
    def made(remote: Path | None = None) -> Hub:
        found = Hub(tmp_path / "hub", remote)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", found.download)
        return found

    return made


def test_a_snapshot_in_the_cache_is_enough_without_a_network(hub: MakeHub, tree: Path) -> None:
    made = hub()
    folder = "cpu_and_mobile/cpu-int4-rtn-block-32-acc-level-4"
    shutil.copytree(tree / folder, made.snapshot / folder)
    found = find_artifact(REPOSITORY, MARKS)
    assert found == made.snapshot
    assert choose(target("ort-genai:cpu:int4"), found, ORT).path == made.snapshot / folder
    assert find_artifact(f"{REPOSITORY}/{folder}", MARKS) == made.snapshot / folder
    assert all(local for _, local in made.asked)
    assert spoken(made.snapshot / folder) == f"{REPOSITORY}/{folder}"


@pytest.mark.skipif(os.name == "nt", reason="symbolic links need rights on Windows")
def test_a_snapshot_of_links_is_read_and_measured(hub: MakeHub, tree: Path) -> None:
    made = hub()
    folder = Path("directml/directml-int4-awq-block-128")
    blobs, linked = made.snapshot.parents[1] / "blobs", made.snapshot / folder
    blobs.mkdir(parents=True)
    linked.mkdir(parents=True)
    for path in (tree / folder).iterdir():
        shutil.copy(path, blobs / f"blob-{path.name}")
        (linked / path.name).symlink_to(blobs / f"blob-{path.name}")
    chosen = choose(target("ort-genai:dml:int4"), find_artifact(REPOSITORY, MARKS), ORT)
    assert describe(chosen.path, "given").sha256 == describe(tree / folder, "given").sha256


def test_a_folder_that_is_named_is_downloaded_alone(hub: MakeHub, tree: Path) -> None:
    made = hub(tree)
    folder = "directml/directml-int4-awq-block-128"
    found = find_artifact(f"{REPOSITORY}/{folder}", MARKS)
    assert choose(target("ort-genai:dml:int4"), found, ORT).path == made.snapshot / folder
    assert made.asked == [(None, True), ([f"{folder}/*"], False)]
    assert not (made.snapshot / "cuda").exists()


def test_of_a_repository_of_several_artifacts_no_weights_are_downloaded(hub: MakeHub, tree: Path) -> None:
    made = hub(tree)
    found = find_artifact(REPOSITORY, MARKS)
    assert not list(made.snapshot.rglob("*.data"))
    folder = "cuda/cuda-fp16"
    with pytest.raises(UsageError, match=rf"{REPOSITORY}/{folder} lacks model\.onnx\.data") as caught:
        choose(target("ort-genai:cuda:fp16"), found, ORT)
    assert f"hf download {REPOSITORY} --include '{folder}/*'" in caught.value.remedy
    with pytest.raises(UsageError) as caught:
        choose(target("ort-genai:cpu:int4"), found, ORT)
    assert f"--artifact 'ort-genai:cpu:int4={REPOSITORY}/cpu_and_mobile/cpu-int4-rtn-block-32'" in str(caught.value)


def test_a_repository_of_one_artifact_is_downloaded_whole(hub: MakeHub, write: Write, tmp_path: Path) -> None:
    made = hub(write(tmp_path / "remote", nbits()))
    found = find_artifact(REPOSITORY, MARKS)
    assert choose(target("ort-genai:cpu:int4"), found, ORT).path == made.snapshot


def test_without_a_network_the_command_that_downloads_is_given(hub: MakeHub) -> None:
    hub()
    with pytest.raises(UsageError, match="nor is it in the Hugging Face cache") as caught:
        find_artifact(f"{REPOSITORY}/cuda/cuda-fp16", MARKS)
    assert f"hf download {REPOSITORY} --include 'cuda/cuda-fp16/*' --local-dir" in caught.value.remedy
    with pytest.raises(UsageError) as caught:
        find_artifact(REPOSITORY, MARKS)
    assert f"hf download {REPOSITORY} --local-dir" in caught.value.remedy


def test_a_snapshot_without_the_folder_is_said_to_lack_it(hub: MakeHub, tree: Path) -> None:
    made = hub()
    shutil.copytree(tree / "cuda", made.snapshot / "cuda")
    with pytest.raises(UsageError, match="its copy there has no directml/directml-int4-awq-block-128"):
        find_artifact(f"{REPOSITORY}/directml/directml-int4-awq-block-128", MARKS)
    with pytest.raises(UsageError) as caught:
        choose(target("ort-genai:dml:int4"), find_artifact(REPOSITORY, MARKS), ORT)
    assert f"hf download {REPOSITORY}" in caught.value.remedy


@pytest.mark.parametrize("name", ["nowhere", "/nowhere/at/all", "./a/b", "a/../b", "~nobody/a b"])
def test_what_is_neither_folder_nor_repository_is_refused(name: str, hub: MakeHub) -> None:
    made = hub()
    with pytest.raises(UsageError, match="there is no artifact folder"):
        find_artifact(name, MARKS)
    assert made.asked == []


def test_a_folder_of_this_machine_comes_before_the_hub(hub: MakeHub, tmp_path: Path) -> None:
    made = hub()
    (tmp_path / "owner" / "model").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert find_artifacts([("x:*", "owner/model")], {}) == (("x:*", tmp_path / "owner" / "model"),)
    assert made.asked == []
