"""What an OpenVINO artifact is by its graph: how products store their weights, and what NNCF wrote beside them."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from harness.backends.openvino_ir import NESTING, Graph, Node
from harness.contents import Contents, Storage, coarsest, shares
from harness.errors import ArtifactError

MARK = "openvino_model.xml"
_ODD = "give an artifact that optimum-cli exported"
_FLOATS = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_BITS = {"u4": 4, "i4": 4, "nf4": 4, "f4e2m1": 4, "u8": 8, "i8": 8, "f8e4m3": 8, "f8e5m2": 8}
_DRESS = ("Convert", "Reshape", "Multiply", "Subtract")
_SCHEME = "nncf/weight_compression/"
_OPTIONS = ("mode", "group_size", "ratio", "awq", "scale_estimation", "gptq")


def read_contents(artifact: Path) -> Contents:
    """Read the graph; the .bin is not needed. Raises ArtifactError, see `harness.contents.TellsContents`."""
    graph = Graph(artifact / MARK)
    weights: Counter[Storage] = Counter()
    for node in graph.of_type("MatMul"):
        found = _stored(graph, graph.input(node, 1))
        if found is not None:
            storage, count = found
            weights[storage] += count
    missing = tuple(name for name in ("openvino_model.bin", "config.json") if not (artifact / name).is_file())
    return Contents(coarsest(weights), (), "; ".join(filter(None, [shares(weights), _stated(graph)])), missing)


def _stored(graph: Graph, node: Node) -> tuple[Storage, int] | None:
    """How a product's second factor is stored, and of how many elements it is; None where it is computed."""
    asymmetric = False
    for _ in range(NESTING):
        if node.type not in _DRESS:
            break
        asymmetric |= node.type == "Subtract"
        node = graph.input(node, 0)
    shape = graph.shape(node) if node.type == "Const" else ()
    if len(shape) < 2 or min(shape) < 1 or shape[0] == 1:  # the last are rotary frequencies
        return None
    kind = graph.element_type(node)
    if kind in _FLOATS:
        return Storage(dtype=_FLOATS[kind]), math.prod(shape)
    if kind not in _BITS:
        raise ArtifactError(
            f"{node.name} holds weights of the type {kind!r}, which is not known", "give another artifact"
        )
    coded = "" if kind[0] in "ui" else f"codes of {kind}"
    return Storage(_BITS[kind], "", shape[2] if len(shape) == 3 else 0, asymmetric, coded), math.prod(shape)


def _stated(graph: Graph) -> str:
    """What NNCF wrote of its options; empty where it wrote nothing."""
    found = [f"{key} {graph.info[_SCHEME + key]}" for key in _OPTIONS if _SCHEME + key in graph.info]
    return f"by NNCF {graph.info.get('nncf/version', 'of unknown version')} with {', '.join(found)}" if found else ""
