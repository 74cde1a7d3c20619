"""What goes to one xdist worker: a machine's accelerators of a kind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.backend import load_backends
from harness.state import State
from harness.target import Target

BACKENDS = load_backends()
STATE = cast(Any, SimpleNamespace(backends=BACKENDS, kind=lambda t: BACKENDS[t.backend].devices[t.base_device]))


def together(one: str, other: str) -> bool:
    groups = [State.device_group(STATE, Target.parse(text)) for text in (one, other)]
    return groups[0] == groups[1]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("pytorch:cpu:fp32", "pytorch:cpu:bf16", False),
        ("pytorch:cpu:fp32", "openvino:cpu:fp32", False),
        ("openvino:cpu:fp32", "openvino:cpu:int8", False),
        ("openvino:npu:fp16", "npu-library:npu:int8", True),
        ("openvino:npu:fp16", "openvino:npu:fp16:lab1", False),
        ("openvino:gpu:fp16", "pytorch:cuda:fp16", True),
    ],
)
def test_targets_of_one_device_go_to_one_worker(one: str, other: str, expected: bool) -> None:
    assert together(one, other) == expected
