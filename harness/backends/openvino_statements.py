"""What an OpenVINO artifact states beside its weights, read off the graph, and the configuration beside it.

Names are those of `harness.weights.Statement.what`. Only a form that is recognised as a whole is stated: where an
exporter writes something else, nothing is said, rather than something guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from harness.backends.openvino_attention import read_attention
from harness.backends.openvino_ir import Graph, Node
from harness.backends.openvino_rotary import rotary_constants
from harness.errors import ArtifactError
from harness.weights import Statement

__all__ = ["read_statements", "rotary_constants"]

_LAYER = re.compile(r"^__module\.(?:model\.)?layers\.(\d{1,4})\.(?:(?:self_attn|mlp)\.)?(\w+)")
_INTO = {"o_proj": ("qkv_proj", "q_proj", "k_proj", "v_proj"), "down_proj": ("gate_up_proj", "gate_proj", "up_proj")}


def read_statements(graph: Graph, artifact: Path) -> list[Statement]:
    """Everything that the artifact states. Raises ArtifactError when a configuration beside it cannot be read."""
    found = _configured(artifact) + list(_norms(graph))
    for node in graph.of_type("ScaledDotProductAttention"):
        layer = layer_of(node)
        if layer is not None:
            found += read_attention(graph, node, layer)
    return found + list(_gates(graph)) + _order(graph)


def layer_of(node: Node) -> int | None:
    """The layer that a node belongs to by its name."""
    match = _LAYER.match(node.name)
    return int(match[1]) if match else None


def _configured(artifact: Path) -> list[Statement]:
    """The end tokens and the context length, as optimum-intel reads them."""
    config, generation = _json(artifact / "config.json"), _json(artifact / "generation_config.json")
    found = []
    where, held = ("generation_config.json", generation) if "eos_token_id" in generation else ("config.json", config)
    for what, source, key, values in (
        ("end_tokens", where, "eos_token_id", held),
        ("context_length", "config.json", "max_position_embeddings", config),
    ):
        value = values.get(key)
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if not all(isinstance(number, int) for number in numbers):
            raise ArtifactError(f"{artifact / source}: {key} is {value!r}, not a number", "export the artifact again")
        found.append(Statement(what, np.asarray(value, dtype=np.float64), f"{source}: {key}"))
    return found


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", "export the artifact again") from None
    return held if isinstance(held, dict) else {}


def _norms(graph: Graph) -> Iterable[Statement]:
    """Epsilon: the constant added to a mean of squares."""
    for node in graph.of_type("Add"):
        operands = graph.operands(node)
        if any(operand.type == "ReduceMean" for operand in operands):
            for operand in operands:
                epsilon = graph.scalar(operand)
                if epsilon is not None:
                    yield Statement("rms_norm_eps", np.asarray(epsilon), node.name, layer_of(node))


def _gates(graph: Graph) -> Iterable[Statement]:
    """Whether the first half of gate and up goes through the activation, as in Phi-3."""
    for node in graph.of_type("MatMul"):
        match = _LAYER.match(node.name)
        if match is None or match[2] != "down_proj":
            continue
        product = _unscaled(graph, graph.input(node, 0))
        if product.type != "Multiply":
            continue
        swished = [n for n in (_unscaled(graph, above) for above in graph.operands(product)) if n.type == "Swish"]
        plain = [source for source in product.inputs if graph.nodes[source[0]].type == "VariadicSplit"]
        if len(swished) == 1 and len(plain) == 1 and len(swished[0].inputs) == 1:  # a second input is Swish's beta
            (split, gate), (other, up) = swished[0].inputs[0], plain[0]
            ports = graph.nodes[split].outputs
            if split == other and sorted((gate, up)) == sorted(ports):
                first = np.asarray(float(gate == ports[0]))
                yield Statement("gate_first", first, swished[0].name, int(match[1]))


def _unscaled(graph: Graph, node: Node) -> Node:
    """A node without the multiplication that AWQ put after it."""
    if node.type == "Multiply" and node.name.endswith("/awq_mul"):
        return next((above for above in graph.operands(node) if graph.constant(above) is None), node)
    return node


def _order(graph: Graph) -> list[Statement]:
    """The layers in the order that the residual stream meets them: their attention, and their MLP.

    Followed from the LM head down to the embedding. Nothing is stated unless every block both reads the stream where
    it adds to it, through a norm, and is one of attention and MLP.
    """
    heads = [node for node in graph.of_type("MatMul") if node.name.startswith("__module.lm_head/")]
    here = _norm_input(graph, graph.input(heads[0], 0)) if len(heads) == 1 else None
    met: dict[str, list[int]] = {"o_proj": [], "down_proj": []}
    blocks = 0
    while here is not None and here.type == "Add" and blocks <= len(graph.nodes):
        step = _block(graph, here)
        if step is None:
            return []
        part, layer, here = step
        met[part].append(layer)
        blocks += 1
    if here is None or here.type != "Gather" or blocks == 0:
        return []
    source = f"the residual stream from {here.name} to {heads[0].name}"
    layers = np.asarray(len(set(met["o_proj"] + met["down_proj"])), dtype=np.float64)
    return [
        Statement("layer_order", np.asarray(met["o_proj"][::-1], dtype=np.float64), source),
        Statement("mlp_order", np.asarray(met["down_proj"][::-1], dtype=np.float64), source),
        Statement("num_hidden_layers", layers, source),
    ]


def _block(graph: Graph, add: Node) -> tuple[str, int, Node] | None:
    """Which block a residual addition adds, and the stream before it."""
    operands = graph.operands(add)
    branches = [(node, match) for node in operands if (match := _LAYER.match(node.name)) and match[2] in _INTO]
    if len(operands) != 2 or len(branches) != 1 or branches[0][0].type != "MatMul":
        return None
    branch, match = branches[0]
    stream = operands[0] if operands[1] is branch else operands[1]
    into = _INTO[match[2]]

    def enters(node: Node) -> bool:
        inner = _LAYER.match(node.name)
        weighs = node.type == "MatMul" and inner is not None and inner[2] in (*into, "o_proj", "down_proj")
        return weighs or node.type == "ShapeOf"  # shapes are taken from any layer, values are not

    entries = [node for node in graph.above(branch, enters) if node.type != "ShapeOf"]
    own = all((inner := _LAYER.match(node.name)) and inner[1] == match[1] and inner[2] in into for node in entries)
    reads = {id(_norm_input(graph, graph.input(node, 0))) for node in entries}
    return (match[2], int(match[1]), stream) if entries and own and reads == {id(stream)} else None


def _norm_input(graph: Graph, node: Node) -> Node | None:
    """What a norm, of which this is the last multiplication, normalises."""
    node = _unscaled(graph, node)
    if node.type != "Multiply":
        return None
    inner = [above for above in graph.operands(node) if graph.constant(above) is None]
    if len(inner) != 1 or inner[0].type != "Multiply":
        return None
    stream = [above for above in graph.operands(inner[0]) if above.type not in ("Divide", "Power")]
    return stream[0] if len(stream) == 1 else None
