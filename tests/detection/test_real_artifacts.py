"""Faults planted in artifacts of real runtimes, and the suites that find them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from harness.artifacts import artifact_cache
from harness.backend import Recipe, load_backend
from harness.checkpoint import find_checkpoint
from harness.devices import find_interpreter
from harness.errors import Stage
from harness.golden import TREE
from harness.options import DEFAULT_CHECKPOINT
from harness.record import CaseRecord
from harness.target import Target
from harness.worker import Worker


def export(target: str, checkpoint: Path, out: Path, scratch: Path) -> None:
    """Export a checkpoint by the target's default recipe, outside the cache."""
    parsed = Target.parse(target)
    backend = load_backend(parsed.backend)
    worker = Worker("exporter", scratch, interpreter=find_interpreter(backend, {}, TREE))
    worker.start()
    try:
        worker.call(Stage.PREPARE, "open", backend=backend.name)
        recipe: Recipe | None = backend.recipe(parsed, None)
        arguments = {"checkpoint": str(checkpoint), "recipe": recipe, "out": str(out), "trust_remote_code": False}
        worker.call(Stage.PREPARE, "export", **arguments)
    finally:
        worker.stop()


def changed_checkpoint(folder: Path, **changes: Any) -> Path:
    """A copy of the bundled checkpoint with another configuration."""
    shutil.copytree(DEFAULT_CHECKPOINT, folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text(encoding="utf-8")), **changes}
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def failures(cases: list[CaseRecord], test: str) -> list[CaseRecord]:
    return [case for case in cases if case.test == test and case.outcome == "FAIL"]


@pytest.mark.parametrize(
    ("target", "options"),
    [
        # In BF16, which this plugin takes where the processor has it, rounding moves as much as this fault does.
        ("openvino:cpu:fp32", ["--load-option=openvino:cpu:fp32=INFERENCE_PRECISION_HINT=f32"]),
        ("ort-genai:cpu:fp32", []),
    ],
)
def test_a_rotary_base_one_per_cent_off_is_found_in_the_graph_and_in_the_logits(
    conform: Any, tmp_path: Path, target: str, options: list[str]
) -> None:
    theta = find_checkpoint(str(DEFAULT_CHECKPOINT)).config["rope_theta"]
    faulty = changed_checkpoint(tmp_path / "faulty", rope_theta=theta * 1.01)
    export(target, faulty, tmp_path / "artifact", tmp_path / "scratch")
    chosen = "test_weights or (test_logits and not window and not of_suite)"
    result = conform(f"--artifact={target}={tmp_path / 'artifact'}", "-k", chosen, *options, targets=target, options=[])
    assert result.status == 1
    (audited,) = failures(result.cases, "test_weights")
    assert "weight audit: " in audited.message
    assert "rotary" in audited.message
    found = failures(result.cases, "test_logits")
    # A prompt of one token has no distances between positions; a rotary base shows in every other one.
    assert len(found) >= 27, result.text[-3000:]
    for case in found:
        assert case.message.startswith(f"{target}  prompt '{case.case.removeprefix('test_logits[')[:-1]}'")
        assert "implementation error in " in case.message
        assert "quantisation error: within its limits" in case.message
    assert "first bad: model.layers.0.self_attn" in result.record.sessions[0].first_bad
    assert f"reproduce: pytest --artifact={target}=" in result.text
    assert f"'conformance/test_logits.py::test_logits[{target}-" in result.text


def test_an_artifact_with_another_end_token_is_found_by_the_form_of_its_answers(conform: Any, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    export("ort-genai:cpu:fp32", DEFAULT_CHECKPOINT, artifact, tmp_path / "scratch")
    path = artifact / "genai_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["model"]["eos_token_id"] = [5]
    path.write_text(json.dumps(settings), encoding="utf-8")
    result = conform(
        f"--artifact=ort-genai:cpu:fp32={artifact}",
        "-k",
        "test_greedy_form and not window",
        targets="ort-genai:cpu:fp32",
        options=[],
    )
    found = failures(result.cases, "test_greedy_form")
    assert found
    assert all("overrun" in case.message or "early stop" in case.message for case in found)


def test_a_truncated_artifact_is_an_error_of_stage_load(conform: Any, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    export("openvino:cpu:fp32", DEFAULT_CHECKPOINT, artifact, tmp_path / "scratch")
    weights = artifact / "openvino_model.bin"
    weights.write_bytes(weights.read_bytes()[:1000])
    result = conform(
        f"--artifact=openvino:cpu:fp32={artifact}", "-k", "test_attestation", targets="openvino:cpu:fp32", options=[]
    )
    assert [f"{case.outcome}({case.stage})" for case in result.cases] == ["ERROR(load)"]


def test_the_tests_leave_no_artifact_in_the_users_cache() -> None:
    assert not list(artifact_cache().glob("*.partial"))
