"""What an ONNX Runtime GenAI artifact is by its graph and genai_config.json: how products store their weights, and the
execution provider that it was made for.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

from harness.backends.ort_artifact import providers
from harness.backends.ort_graph import FLOATS, Graph, attributes, whole
from harness.contents import Contents, Storage, coarsest, shares
from harness.errors import ArtifactError

MARK = "genai_config.json"
_CHAIN = 16


def read_contents(artifact: Path) -> Contents:
    """Read configuration and graph, not the weights. Raises ArtifactError, see `harness.contents.TellsContents`."""
    graph = Graph(artifact)
    weights: Counter[Storage] = Counter()
    for node in graph.nodes:
        if node.op_type == "MatMulNBits":
            weights[_blocks(node)] += whole(node, "N", 0) * whole(node, "K", 0)
        elif node.op_type == "MatMul" and len(node.input) == 2:
            _count(graph, node.input[1], weights)
    missing = graph.missing_files()
    try:
        devices = tuple(providers(dict(graph.settings))) or ("cpu",)
    except (AttributeError, TypeError) as error:
        raise ArtifactError(f"{artifact / MARK} cannot be used: {error}", "copy the artifact again") from None
    made = f"by {graph.producer}" if graph.producer else ""
    return Contents(coarsest(weights), devices, "; ".join(filter(None, [shares(weights), made])), missing)


def _blocks(node: Any) -> Storage:
    """A product of activations with codes in blocks."""
    level = whole(node, "accuracy_level", 0)
    zeros = len(node.input) > 3 and bool(node.input[3])
    details = f"accuracy level {level}" if level else ""
    return Storage(whole(node, "bits", 4), "", whole(node, "block_size"), zeros, details)


def _count(graph: Graph, name: str, weights: Counter[Storage]) -> None:
    """Add the weight that a product takes by this name, if it is stored."""
    for _ in range(_CHAIN):
        node = graph.maker(name)
        if node is None or node.op_type not in ("Transpose", "Identity", "DequantizeLinear"):
            break
        if node.op_type == "DequantizeLinear" and graph.holds(node.input[0]):
            bits = int("".join(filter(str.isdigit, graph.dtype(node.input[0]))) or 0)
            block = attributes(node).get("block_size", 0)
            zeros = len(node.input) > 2 and bool(node.input[2])
            weights[Storage(bits, "", int(block), zeros)] += math.prod(graph.shape(node.input[0]))
            return
        name = node.input[0]
    if graph.holds(name) and len(graph.shape(name)) == 2 and graph.dtype(name) in FLOATS:
        weights[Storage(dtype=graph.dtype(name))] += math.prod(graph.shape(name))
