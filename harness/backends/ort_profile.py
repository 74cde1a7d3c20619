"""Which execution provider ran which node of an ONNX graph, from a profile that ONNX Runtime wrote.

A provider that cannot take a node leaves it to the CPU without a word. The profile tells: one event for each
node run, of category `Node`, with the operator and the provider among its arguments. Nodes that compute shapes
or look up a row are left to the CPU on purpose by every provider; what counts is where the products and the
attention ran. Times of a GPU's nodes are those of handing work over, not of the work: they are recorded as
they are, and no share of time is judged.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.target import DeviceKind, Evidence, EvidenceLevel, Placement

# Operators that hold or read the model's weights and cache: nearly all of the work.
HEAVY = frozenset(
    {
        *("MatMul", "Gemm", "MatMulNBits", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"),
        *("MatMulBnb4", "QMoE", "MoE", "FusedMatMul", "QGemm"),
        *("GroupQueryAttention", "MultiHeadAttention", "Attention", "PagedAttention", "SparseAttention"),
    }
)
# Parts of a graph that DirectML runs as one node, numbered.
_FUSED = ("DmlFusedNode", "DmlRuntimeFusedNode")
_KINDS = {
    "CPUExecutionProvider": DeviceKind.CPU,
    "DmlExecutionProvider": DeviceKind.GPU,
    "CUDAExecutionProvider": DeviceKind.GPU,
    "TensorrtExecutionProvider": DeviceKind.GPU,
    "NvTensorRTRTXExecutionProvider": DeviceKind.GPU,
    "WebGpuExecutionProvider": DeviceKind.GPU,
}


def read_profile(path: Path) -> tuple[Placement, ...]:
    """What each execution provider ran, the busiest first.

    Raises ValueError when the file is no profile, or one without a node: nothing was run, or nothing recorded.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
        return placements(event for event in events if event.get("cat") == "Node")
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError, TypeError) as error:
        raise ValueError(f"{path.name} is no profile of ONNX Runtime: {error}") from None


def placements(events: Iterable[Mapping[str, Any]]) -> tuple[Placement, ...]:
    """Count runs of nodes by provider. Raises ValueError when there are none."""
    nodes: Counter[str] = Counter()
    heavy: Counter[str] = Counter()
    time: defaultdict[str, int] = defaultdict(int)
    for event in events:
        arguments = event.get("args") or {}
        provider, operator = arguments.get("provider"), arguments.get("op_name")
        if not provider or not operator:
            continue
        nodes[provider] += 1
        heavy[provider] += operator in HEAVY or operator.startswith(_FUSED)
        time[provider] += int(event.get("dur", 0))
    if not nodes:
        raise ValueError("the profile names no node that ran")
    return tuple(Placement(name, count, heavy[name], time[name]) for name, count in nodes.most_common())


def evidence_of(found: tuple[Placement, ...], index: int | None = None) -> Evidence:
    """Measured: the kinds of device that ran products and attention. A provider unknown here proves no kind.

    `index` is that of the adapter which the session was pinned to, by a name that cannot mean another; None
    where the provider chose.
    """
    working = [placement for placement in found if placement.heavy_nodes]
    kinds = {_KINDS[placement.provider] for placement in working if placement.provider in _KINDS}
    known = bool(working) and all(placement.provider in _KINDS for placement in working)
    return Evidence(
        level=EvidenceLevel.MEASURED if known else EvidenceLevel.NONE,
        kinds=tuple(sorted(kinds)),
        devices=tuple(placement.provider + ("" if index is None else f":{index}") for placement in working),
        source="a profile of which provider ran each product and attention",
        placements=found,
    )
