"""Selecting targets, demanding hardware, naming files: the options and what they answer to bad input."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.golden import TREE
from support import Tiny


def test_collecting_imports_no_runtime() -> None:
    code = (
        "import sys, pytest; status = pytest.main(['--collect-only', '-q', '-c', sys.argv[1], sys.argv[2]]); "
        "heavy = {'torch', 'openvino', 'onnxruntime', 'onnxruntime_genai', 'transformers'} & set(sys.modules); "
        "print(f'status={int(status)} heavy={sorted(heavy)}')"
    )
    command = [sys.executable, "-c", code, str(TREE / "pyproject.toml"), str(TREE / "conformance")]
    found = subprocess.run(command, capture_output=True, text=True, check=True, cwd=TREE)
    assert "status=0 heavy=[]" in found.stdout, found.stdout[-2000:]
    assert "test_greedy_regret[openvino:npu:int4-introduce-yourself]" in found.stdout


@pytest.mark.parametrize(
    ("expression", "included", "excluded"),
    [
        ("npu", "npu-library:npu:int8", "openvino:cpu"),
        ("openvino and int4", "openvino:npu:int4", "openvino:npu:int8"),
        ("ort-genai", "ort-genai:dml:int4", "pytorch"),
        ("gpu and fp16", "pytorch:cuda:fp16", "npu"),
    ],
)
def test_markers_select_kind_backend_and_precision(conform: Any, expression: str, included: str, excluded: str) -> None:
    text = conform("--collect-only", "-q", "-m", expression, targets="", options=[]).text
    assert f"test_attestation[{included}]" in text
    ids = [line for line in text.splitlines() if "::" in line]
    assert not [line for line in ids if excluded in line.split("[")[1]]


def test_unknown_target_lists_the_known_ones(conform: Any) -> None:
    result = conform(targets="openvino:tpu:int4")
    assert result.status != 0
    assert "selects no target" in result.text
    assert "openvino:npu:int4" in result.text


def test_an_indexed_device_may_be_written_out(conform: Any) -> None:
    text = conform("--collect-only", "-q", targets="openvino:gpu.1:int4").text
    assert "test_attestation[openvino:gpu.1:int4]" in text


@pytest.mark.parametrize("wanted", ["npu", "planted:pretender:*"])
def test_require_fails_when_nothing_ran_on_it(conform: Any, wanted: str) -> None:
    result = conform(f"--require={wanted}", targets="planted:cpu:fp32")
    assert result.status == 1
    assert f"--require {wanted}: nothing ran on it" in result.text


def test_require_fails_when_everything_was_skipped(conform: Any) -> None:
    assert conform("--require=gpu", targets="planted:absent:fp32").status == 1


def test_require_is_met_by_a_judged_target(conform: Any) -> None:
    assert conform("--require=cpu", "--require=planted").status == 0


def test_xdist_gives_the_same_outcomes(conform: Any) -> None:
    plain = conform(targets="planted:*", fault="scaled")
    spread = conform("-n2", targets="planted:*", fault="scaled")
    assert plain.status == spread.status == 1
    assert {(c.id, c.outcome, c.message) for c in plain.cases} == {(c.id, c.outcome, c.message) for c in spread.cases}
    processes = {s.info.properties["pid"] for s in spread.record.sessions if s.target == "planted:cpu:fp32"}
    assert len(processes) == 1


def test_output_survives_code_page_1252(conform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONIOENCODING", "cp1252")
    result = conform(targets="planted:*", fault="scaled")
    assert "UnicodeEncodeError" not in result.text
    assert "planted:cpu:fp32" in result.text


def test_a_missing_golden_names_the_command_that_records_it(conform: Any, tiny: Tiny, tmp_path: Path) -> None:
    options = [tiny.options[0], tiny.options[1], f"--golden={tmp_path}"]
    result = conform(options=options)
    assert result.status != 0
    assert "there is no golden" in result.text
    assert "phi3-conformance golden record" in result.text


def test_a_tampered_golden_is_refused(conform: Any, tiny: Tiny, tmp_path: Path) -> None:
    copy = tmp_path / "golden"
    shutil.copytree(tiny.golden, copy)
    path = copy / "few" / "logits.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    result = conform(options=[*tiny.options[:2], f"--golden={copy}"])
    assert result.status != 0
    assert "was changed after it was recorded" in result.text


def test_a_stale_golden_is_refused(conform: Any, tiny: Tiny, tmp_path: Path) -> None:
    prompts = tmp_path / "few.jsonl"
    prompts.write_text(tiny.prompts.read_text(encoding="utf-8").replace("abcdefghij", "abcdefghik"), encoding="utf-8")
    result = conform(options=[tiny.options[0], f"--prompts={prompts}", tiny.options[2]])
    assert result.status != 0
    assert "is stale" in result.text


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--checkpoint=/nowhere/at/all", "there is no checkpoint folder"),
        ("--policy=nowhere.toml", "nowhere.toml"),
        ("--waivers=nowhere.toml", "nowhere.toml"),
        ("--interpreter=openvino=/nowhere/python", "names no Python"),
        ("--stage-timeout=lunch=3", "is not STAGE=SECONDS"),
        ("--artifact=nonsense", "is not TARGET=VALUE"),
        ("--artifact=planted:cpu:fp32=/nowhere/at/all", "there is no artifact folder"),
        ("--artifact=planted:cpu:fp23=/nowhere/at/all", "matches no target"),
        ("--recipe=nonsense=int4", "matches no target"),
        ("--recipe=pytorch:*=int4", "matches no target"),
        (f"--interpreter=plantd={sys.executable}", "is no backend"),
        ("--stage-timeout=run=-1", "is not STAGE=SECONDS"),
        ("--stage-timeout=compare=3", "is not STAGE=SECONDS"),
        ("--recipe=openvino:cpu:int4=int5", "has no recipe 'int5'"),
        ("--load-option=planted:*=bad", "write --load-option='openvino:npuw-cpu:*=whole-prompt=yes'"),
    ],
)
def test_bad_options_get_an_error_that_names_them_and_no_traceback(conform: Any, option: str, words: str) -> None:
    targets = "openvino:cpu:int4" if option.startswith("--recipe") else "planted:cpu:fp32"
    result = conform(option, "-k", "test_attestation", targets=targets)
    assert result.status != 0
    assert words in result.text
    assert "Traceback" not in result.text


@pytest.mark.parametrize(
    ("targets", "prompts", "words"),
    [
        ("planted:cpu:fp32", "nowhere.jsonl", "there is no prompt suite"),
        ("nonsense", "", "is not a target"),
        ("planted:tpu:fp32", "", "selects no target"),
    ],
)
def test_what_cannot_be_collected_is_said_once(
    conform: Any, tiny: Tiny, targets: str, prompts: str, words: str
) -> None:
    result = conform("--collect-only", targets=targets, options=[f"--prompts={prompts or tiny.prompts}"])
    assert result.status != 0
    assert result.text.count(words) == 1
    assert "Traceback" not in result.text


def test_the_record_names_no_folder_of_the_machine(conform: Any) -> None:
    result = conform("-k", "test_attestation")
    text = json.dumps(result.record.command)
    assert str(Path.home()) not in text
    assert str(TREE) not in text
