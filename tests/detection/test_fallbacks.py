"""Real runtimes that fall back in silence: right numbers, wrong device, UNATTESTED in every suite."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from harness.backend import load_backend
from harness.devices import find_interpreter
from harness.golden import TREE
from harness.target import EvidenceLevel
from support import Result

ONE_PROMPT = ("-k", "introduce-yourself or test_attestation")
EVERY_SUITE = ("-k", "introduce-yourself or test_attestation or (of_suite and core)")
CASES = 7  # attestation, four of a prompt, two of a suite


def judged(result: Result) -> Counter[str]:
    """Outcomes; the run must have come to judging, or nothing was shown."""
    assert result.record is not None, result.text
    return result.outcomes()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("", "EXECUTION_DEVICES of the compiled model names CPU"),
        ("npuw-both", "NPUW_DEVICES of the compiled model names NPU, CPU"),
    ],
    ids=["AUTO:NPU,CPU", "NPUW_DEVICES=NPU,CPU"],
)
def test_openvino_that_may_use_the_cpu_proves_no_npu(conform: Any, fault: str, words: str) -> None:
    result = conform(*EVERY_SUITE, targets="planted-openvino:npu:fp16", fault=fault, options=[])
    assert judged(result) == Counter(UNATTESTED=CASES), result.text
    assert words in result.text


def test_onnx_runtime_whose_nodes_ran_on_the_cpu_proves_no_gpu(conform: Any) -> None:
    result = conform(*EVERY_SUITE, targets="planted-ort:dml:int4", options=[])
    assert judged(result) == Counter(UNATTESTED=CASES), result.text
    assert "names CPUExecutionProvider" in result.text
    evidence = result.record.sessions[0].evidence
    assert evidence.level is EvidenceLevel.MEASURED  # it is measured where they ran: on the wrong device
    assert sum(placement.heavy_nodes for placement in evidence.placements) > 0


def test_the_npu_library_without_an_npu_proves_none(conform: Any) -> None:
    backend = load_backend("npu-library")
    python = find_interpreter(backend, {}, TREE)
    if python is None or "npu-library" not in python.parts:
        pytest.skip(f"not installed: {backend.install}")
    interpreter = f"--interpreter=planted-npu-library={python}"
    few = (
        "-k",
        "test_attestation or (test_greedy_form and introduce-yourself)",
    )  # loading is slow, others are as above
    result = conform(*few, interpreter, targets="planted-npu-library:npu:fp16", options=[])
    assert judged(result) == Counter(UNATTESTED=2), result.text
    assert "npu_available() of the library names CPU" in result.text


def test_a_precision_hint_that_the_device_ignored_is_reported(conform: Any) -> None:
    option = "--load-option=openvino:cpu:fp32=INFERENCE_PRECISION_HINT=f16"
    result = conform(*ONE_PROMPT, option, targets="openvino:cpu:fp32", options=[])
    assert result.record is not None, result.text
    info = result.record.sessions[0].info
    back = info.properties["INFERENCE_PRECISION_HINT"]
    assert info.load_options == {"INFERENCE_PRECISION_HINT": "f16"}
    # Few processors compute in FP16; on the others OpenVINO takes the hint and says nothing.
    assert ("was ignored: it reads back as" in result.text) == (back != "f16"), (back, result.text)
    assert "Diagnostic, not the runtime's defaults" in result.text
