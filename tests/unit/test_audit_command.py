"""The audit command: which backend an artifact is of, what it prints, and its status."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from harness.cli import main
from openvino_artifact import Exported


@pytest.fixture
def plain(tmp_path: Path) -> Exported:
    return Exported("plain", tmp_path)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["audit", *arguments])
    text = capsys.readouterr()
    return int(str(ended.value.code)), text.out, text.err


def test_a_clean_artifact_ends_with_0(plain: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run(capsys, str(plain.artifact), "--checkpoint", str(plain.checkpoint.path))
    assert status == 0
    assert "clean: 15 tensors" in out
    assert "model.layers.*.mlp.down_proj.weight" in out


def test_findings_end_with_1_and_are_named(plain: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    name = "self.model.layers.1.self_attn.qkv_proj._openvino_orig_weight/scale"
    scales = plain.values(plain.layer(name, kind="Const", exact=True))
    scales[37 * 2] *= np.float16(1.01)
    plain.feed(plain.layer(f"{name[:-6]}/fq_weights_1", kind="Multiply"), 1, scales)
    plain.save()
    arguments = (str(plain.artifact), "--checkpoint", str(plain.checkpoint.path))
    status, out, _ = run(capsys, *arguments)
    assert status == 1
    assert "1 finding" in out
    assert "qkv_proj.weight, row 37" in out
    status, out, _ = run(capsys, *arguments, "--json")
    assert status == 1
    found = json.loads(out)
    assert [(f["tensor"], f["row"], f["group"]) for f in found["findings"]] == [
        ("model.layers.1.self_attn.qkv_proj.weight", 37, 0)
    ]


def test_what_cannot_be_read_ends_with_2(plain: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    plain.xml.write_text("<net>")
    status, _, err = run(capsys, str(plain.artifact), "--checkpoint", str(plain.checkpoint.path))
    assert status == 2
    assert "remedy" in err


def test_a_folder_of_nothing_known_ends_with_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        status, _, err = run(capsys, str(folder))
        assert status == 2
        assert str(folder) in err


def test_a_checkpoint_is_an_artifact_of_pytorch(plain: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(plain.checkpoint.path)
    assert run(capsys, folder, "--checkpoint", folder)[0] == 0
    status, _, err = run(capsys, folder, "--checkpoint", folder, "--backend", "ort-genai")
    assert status == 2
    assert "genai_config.json" in err
