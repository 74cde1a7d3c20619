"""Reading what a worker with the NPU library kept; the folders here are written by hand, without the library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from harness.backends.npu_library import NpuLibraryBackend
from harness.checkpoint import open_checkpoint
from harness.errors import ArtifactError
from harness.weights import Plain, Quantised, ReadsWeights
from npu_library_artifact import Kept

HEAD = "lm_head.weight"


@pytest.fixture
def keep(tmp_path: Path, make_folder: Callable[..., Path]) -> Callable[[int | None], Kept]:
    return lambda bits: Kept(tmp_path / "kept", make_folder(), bits)


@pytest.mark.parametrize("bits", [None, 4, 8])
def test_every_tensor_is_read_as_what_it_stands_for(keep: Callable[[int | None], Kept], bits: int | None) -> None:
    kept = keep(bits)
    found = kept.read()
    assert found.keys() == kept.expected.keys()
    for name, content in found.items():
        np.testing.assert_array_equal(content.product(), kept.expected[name], err_msg=name)
    assert isinstance(found[HEAD], Plain if bits is None else Quantised)
    assert isinstance(found["model.norm.weight"], Plain)


def test_codes_are_signed_and_have_no_zero_point(keep: Callable[[int | None], Kept]) -> None:
    content = keep(4).read()[HEAD]
    assert (content.bits, content.low, content.high, content.zero_points.tolist()) == (4, -8, 7, [[0]])
    assert content.codes.min() == -7
    assert content.group == 16


def test_the_scheme_says_who_quantised(keep: Callable[[int | None], Kept]) -> None:
    kept = keep(8)
    weights = NpuLibraryBackend().dequantized_weights(kept.folder, kept.config)
    assert weights.scheme == {"exporter": "a library 1.0", "bits": "8", "group": "channel"}
    assert isinstance(NpuLibraryBackend(), ReadsWeights)


def test_a_folder_that_is_none_names_the_remedy(make_folder: Callable[..., Path]) -> None:
    folder = make_folder()
    with pytest.raises(ArtifactError, match=r"holds no kept weights: it has no npu-library") as caught:
        NpuLibraryBackend().dequantized_weights(folder, open_checkpoint(folder).config)
    assert "keep_weights" in caught.value.remedy


def drop(kept: Kept) -> None:
    del kept.manifest["tensors"][HEAD]  # type: ignore[attr-defined]


def add(kept: Kept, name: str) -> None:
    kept.manifest["tensors"][name] = {"bits": None}  # type: ignore[index]
    save_file({"values": np.zeros(3, np.float32)}, kept.folder / f"{Path(name).name}.safetensors")


def replace(kept: Kept, **tensors: Any) -> None:
    save_file(tensors, kept.folder / f"{HEAD}.safetensors")


HALF = np.ones((24, 1), np.float16)
CODES = np.ones((24, 8), np.uint8)
FAULTS: dict[str, tuple[Callable[[Kept], object], str]] = {
    "another format": (lambda k: k.manifest.update(format=2), r"is of format 2, not 1"),
    "no tensors": (lambda k: k.manifest.pop("tensors"), r"cannot be read"),
    "a list": (lambda k: k.manifest.update(tensors=[1]), r"cannot be read"),
    "odd bits": (lambda k: k.manifest["tensors"][HEAD].update(bits=5), r"has 5 bits"),  # type: ignore[index]
    "a missing head": (drop, r"no lm_head\.weight"),
    "a bias": (lambda k: add(k, "lm_head.bias"), r"lm_head\.bias, which is no tensor of Phi-3"),
    "a name that leads out": (lambda k: add(k, "../lm_head"), r"'\.\./lm_head' has"),
    "no file": (lambda k: (k.folder / f"{HEAD}.safetensors").unlink(), r"lm_head\.weight\.safetensors"),
    "a cut file": (lambda k: (k.folder / f"{HEAD}.safetensors").write_bytes(b"\x10" + b"\0" * 20), r"is truncated"),
    "no scale": (lambda k: replace(k, codes=CODES), r"lm_head\.weight: there is no tensor scale"),
    "codes of another kind": (lambda k: replace(k, codes=CODES.view("b"), scale=HALF), r"codes is int8, not uint8"),
    "a scale for each column": (
        lambda k: replace(k, codes=CODES, scale=HALF.T),
        r"codes \[24, 16\] and scales \[1, 24\]",
    ),
    "fewer rows": (lambda k: replace(k, codes=CODES[1:], scale=HALF[1:]), r"lm_head\.weight is \[23, 16\]"),
}


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_cannot_be_read_is_named(
    keep: Callable[[int | None], Kept], change: Callable[[Kept], object], message: str
) -> None:
    kept = keep(4)
    change(kept)
    kept.save()
    with pytest.raises(ArtifactError, match=message) as caught:
        kept.read()
    assert caught.value.remedy
