"""Profiles in the form that ONNX Runtime 1.32 writes, cut down to what matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.backends.ort_profile import HEAVY, evidence_of, placements, read_profile
from harness.target import DeviceKind, EvidenceLevel, Placement

CPU, DML, CUDA = "CPUExecutionProvider", "DmlExecutionProvider", "CUDAExecutionProvider"
LAYER = ("SimplifiedLayerNormalization", "MatMulNBits", "GroupQueryAttention", "MatMulNBits", "QuickGelu", "Mul")
SHAPES = ("Shape", "Gather", "Cast", "ReduceSum", "Sub")


def session(name: str) -> dict[str, Any]:
    """An event that is no node's."""
    return {"cat": "Session", "pid": 71, "tid": 71, "dur": 1620, "ts": 3, "ph": "X", "name": name, "args": {}}


def node(operator: str, provider: str, microseconds: int = 10) -> dict[str, Any]:
    arguments = {
        "mem_in_use_delta": "8192",
        "activation_size": "8192",
        "parameter_size": "16384",
        "node_index": "8",
        "op_name": operator,
        "thread_scheduling_stats": "",
        "output_size": "16384",
        "provider": provider,
        "input_type_shape": [{"float": [1, 8, 256]}, {"float": [512, 8]}],
        "output_type_shape": [{"float": [1, 8, 512]}],
    }
    name = f"/model/layers.0/{operator}_kernel_time"
    return {
        **{"cat": "Node", "pid": 71, "tid": 71, "dur": microseconds, "ts": 25958, "ph": "X"},
        **{"name": name, "args": arguments},
    }


def profile(tmp_path: Path, *nodes: dict[str, Any]) -> Path:
    path = tmp_path / "profile_2026-11-23_04-15-45_744.json"
    events = [session("model_loading_uri"), session("session_initialization"), *nodes, session("model_run")]
    path.write_text(json.dumps(events), encoding="utf-8")
    return path


def test_a_graph_that_ran_on_the_processor_is_measured_there(tmp_path: Path) -> None:
    found = read_profile(profile(tmp_path, *(node(operator, CPU) for operator in (*SHAPES, *LAYER))))
    assert found == (Placement(CPU, nodes=11, heavy_nodes=3, microseconds=110),)
    evidence = evidence_of(found)
    assert evidence.level is EvidenceLevel.MEASURED
    assert (evidence.kinds, evidence.devices) == ((DeviceKind.CPU,), (CPU,))
    assert evidence.placements == found


@pytest.mark.parametrize("provider", [DML, CUDA])
def test_shapes_and_look_ups_on_the_processor_are_no_fallback(tmp_path: Path, provider: str) -> None:
    nodes = [*(node(operator, provider) for operator in LAYER), *(node(operator, CPU) for operator in SHAPES * 9)]
    evidence = evidence_of(read_profile(profile(tmp_path, *nodes)))
    assert evidence.level is EvidenceLevel.MEASURED
    assert (evidence.kinds, evidence.devices) == ((DeviceKind.GPU,), (provider,))
    assert {placement.provider: placement.heavy_nodes for placement in evidence.placements} == {provider: 3, CPU: 0}


@pytest.mark.parametrize("operator", ["MatMulNBits", "MatMul", "Gemm", "GroupQueryAttention", "MultiHeadAttention"])
def test_one_product_or_attention_that_fell_back_is_seen_among_many(tmp_path: Path, operator: str) -> None:
    nodes = [node(name, DML) for name in LAYER * 20]
    evidence = evidence_of(read_profile(profile(tmp_path, *nodes, node(operator, CPU, 1))))
    assert evidence.kinds == (DeviceKind.CPU, DeviceKind.GPU)
    assert set(evidence.devices) == {CPU, DML}


@pytest.mark.parametrize("name", ["DmlFusedNode_0_0", "DmlFusedNode_2_11", "DmlRuntimeFusedNode_0_3"])
def test_a_graph_that_directml_fused_into_one_node_of_its_own_name_ran_on_the_gpu(tmp_path: Path, name: str) -> None:
    evidence = evidence_of(read_profile(profile(tmp_path, node(name, DML), node("Shape", CPU))))
    assert evidence.kinds == (DeviceKind.GPU,)


def test_a_provider_that_is_not_known_proves_nothing(tmp_path: Path) -> None:
    nodes = [node("MatMulNBits", "FutureExecutionProvider"), node("MatMulNBits", DML)]
    evidence = evidence_of(read_profile(profile(tmp_path, *nodes)))
    assert evidence.level is EvidenceLevel.NONE
    assert "FutureExecutionProvider" in evidence.devices


def test_shapes_alone_prove_nothing(tmp_path: Path) -> None:
    evidence = evidence_of(read_profile(profile(tmp_path, *(node(operator, CPU) for operator in SHAPES))))
    assert (evidence.level, evidence.kinds, evidence.devices) == (EvidenceLevel.NONE, (), ())


def test_a_profile_without_a_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no node"):
        read_profile(profile(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        '[{"cat": "Node", "args": {"op_name": "MatMul"',
        "5",
        "null",
        '{"traceEvents": []}',
        '["Node"]',
        "[[]]",
        '[{"cat": "Node", "args": "MatMul"}]',
        '[{"cat": "Node", "args": {"op_name": "MatMul", "provider": ["a"]}}]',
        '[{"cat": "Node", "dur": null, "args": {"op_name": "MatMul", "provider": "a"}}]',
    ],
)
def test_what_is_no_profile_is_refused_by_its_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "profile_1.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"profile_1\.json is no profile"):
        read_profile(path)


def test_a_profile_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.json is no profile"):
        read_profile(tmp_path / "none.json")
    (tmp_path / "binary.json").write_bytes(b"[\xff\xfe]")
    with pytest.raises(ValueError, match="decode"):
        read_profile(tmp_path / "binary.json")


@given(
    st.lists(
        st.tuples(st.sampled_from([*sorted(HEAVY), *SHAPES]), st.sampled_from([CPU, DML]), st.integers(0, 99)),
        min_size=1,
    )
)
def test_every_run_of_a_node_is_counted_once_and_the_busiest_provider_comes_first(
    runs: list[tuple[str, str, int]],
) -> None:
    found = placements(node(*run) for run in runs)
    assert sum(placement.nodes for placement in found) == len(runs)
    assert sum(placement.heavy_nodes for placement in found) == sum(operator in HEAVY for operator, _, _ in runs)
    assert sum(placement.microseconds for placement in found) == sum(time for _, _, time in runs)
    assert [placement.nodes for placement in found] == sorted((p.nodes for p in found), reverse=True)
