"""The weights of an OpenVINO artifact by the checkpoint's names, out of its IR and without OpenVINO.

A product's name says which module of Phi-3 it is, its inputs what it computes with: the weight is followed up from
the product, so that two weights exchanged between two products are read as the products use them. A quantised one is

    Convert(Reshape(Multiply(Subtract(Convert(codes), Convert(zero points)), scales)))

where symmetric ones have no Subtract and those with one group a row no Reshape. AWQ leaves a multiplication on the
activations, which is read with the product that it feeds. Every constant of floats or codes must have been read as
one or other, or the artifact is refused by that constant's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.backends.openvino_ir import Graph, Node
from harness.backends.openvino_levels import NAMES, SCALES, levels_of
from harness.backends.openvino_statements import read_statements, rotary_constants
from harness.errors import ArtifactError
from harness.layout import Layout, Place
from harness.weights import Part, Plain, Quantised, Statement, Stored

_ODD = "export it with optimum-cli, or look at the graph: it computes something else than Phi-3"
_MODULE = re.compile(
    r"^__module\.(?:model\.)?(?:layers\.(?P<layer>\d{1,4})\.(?:self_attn\.|mlp\.)?)?"
    r"(?P<part>qkv_proj|[qkvo]_proj|gate_up_proj|gate_proj|up_proj|down_proj|input_layernorm|post_attention_layernorm"
    r"|norm|embed_tokens|lm_head)/"
)
_NORMS = ("input_layernorm", "post_attention_layernorm", "norm")
_FLOATS = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_CODES = {"u4": (4, 0, 15), "i4": (4, -8, 7), "u8": (8, 0, 255), "i8": (8, -128, 127)}
_SCHEME = "nncf/weight_compression/"
# Scalars are arithmetic: epsilon, one, the value that masks.
_SMALL = 1


class _Use(msgspec.Struct, frozen=True):
    """A node that takes a weight: where the weight belongs, the top of its subgraph, and AWQ's multiplier."""

    node: Node
    place: Place
    weight: Node
    multiplier: Node | None = None


class OpenVinoWeights:
    """The weights of one artifact; see `harness.weights.ArtifactWeights`.

    Opening reads the graph and checks that it takes each tensor of the checkpoint once and no other constant.
    """

    def __init__(self, artifact: Path, config: Mapping[str, Any]) -> None:
        self._artifact = artifact
        self._graph = Graph(artifact / "openvino_model.xml")
        layout = Layout.of(config)
        self._uses = _find_uses(self._graph, layout)
        _check_nothing_left(self._graph, self._uses)
        layout.check_complete(use.place for use in self._uses)

    @property
    def scheme(self) -> Mapping[str, str]:
        """What NNCF writes of its options, such as mode, group_size, ratio, awq, gptq and scale_estimation."""
        info = self._graph.info
        found = {key[len(_SCHEME) :]: value for key, value in info.items() if key.startswith(_SCHEME)}
        return {**found, "nncf": info.get("nncf/version", "")} if found else {}

    def tensors(self) -> Iterator[Stored]:
        """Every tensor in the graph's order, one at a time. Raises ArtifactError naming one that cannot be read."""
        return (part.read() for part in self.parts())

    def parts(self) -> list[Part]:
        """See `harness.weights.InParts`."""
        return [Part(use.place.name, use.place.row, use.place.shape[0], partial(self._read, use)) for use in self._uses]

    def _read(self, use: _Use) -> Stored:
        content, source = _content(self._graph, use.weight)
        held = content.codes if isinstance(content, Quantised) else content.values
        if use.place.name.endswith(("norm.weight", "layernorm.weight")):
            content = Plain(content.product().reshape(-1), _dtype(content))
            held = content.values
        if held.shape != use.place.shape:
            raise ArtifactError(
                f"{source} stands for {list(held.shape)} where {use.place.name} has {list(use.place.shape)}",
                "compare it with the checkpoint that the artifact was exported from",
            )
        multiplier = None if use.multiplier is None else self._multiplier(use, held.shape[-1])
        return Stored(use.place.name, use.place.row, source, msgspec.structs.replace(content, multiplier=multiplier))

    def _multiplier(self, use: _Use, width: int) -> NDArray[Any]:
        held = self._graph.constant(use.multiplier) if use.multiplier is not None else None
        if held is None or held.size != width:
            raise ArtifactError(f"{use.node.name}: AWQ's multiplier has not one value for each of {width} inputs", _ODD)
        return held.reshape(-1)

    def statements(self) -> list[Statement]:
        """What the graph and the configuration beside it state; see `openvino_statements`."""
        return read_statements(self._graph, self._artifact)


def _dtype(content: Plain | Quantised) -> str:
    if isinstance(content, Quantised):
        raise ArtifactError("a norm's weight is quantised, which no exporter does", _ODD)
    return content.dtype


def _find_uses(graph: Graph, layout: Layout) -> list[_Use]:
    """Every node that takes a weight. A second node that takes the same one for the same module adds nothing."""
    found: dict[tuple[str, int, str], _Use] = {}
    for node in graph.of_type("MatMul", "Gather", "Multiply"):
        weight = _weight(graph, node)
        if weight is not None:
            place = _place(layout, node)
            multiplier = _awq(graph, node) if node.type == "MatMul" else None
            found.setdefault((place.name, place.row, weight.id), _Use(node, place, weight, multiplier))
    return list(found.values())


def _weight(graph: Graph, node: Node) -> Node | None:
    """The top of the weight's subgraph that a node takes; None where it takes no weight."""
    module = _MODULE.match(node.name)
    if node.type == "Multiply":
        if module is None or module["part"] not in _NORMS:
            return None
        held = [operand for operand in graph.operands(node) if _is_stored(graph, operand)]
        return held[0] if len(held) == 1 else None
    stored = [number for number in range(min(2, len(node.inputs))) if _is_stored(graph, graph.input(node, number))]
    if node.type == "Gather":
        return graph.input(node, 0) if module is not None and 0 in stored else None
    if 1 not in stored:
        return None
    if 0 in stored or node.data.get("transpose_a") == "true" or node.data.get("transpose_b") != "true":
        raise ArtifactError(f"{node.name} is no product of activations with a weight's rows", _ODD)
    return graph.input(node, 1)


def _is_stored(graph: Graph, node: Node) -> bool:
    """Whether a node is computed from constants alone; only what dresses up a weight is looked through."""
    waiting, steps = [node], 0
    while waiting:
        here, steps = waiting.pop(), steps + 1
        if here.type not in ("Const", "Convert", "Reshape", "Multiply", "Subtract") or steps > 16:
            return False
        waiting += graph.operands(here)
    return True


def _place(layout: Layout, node: Node) -> Place:
    module = _MODULE.match(node.name)
    if module is None or ((module["layer"] is None) != (module["part"] in ("norm", "embed_tokens", "lm_head"))):
        raise ArtifactError(f"{node.name}, which takes a weight, is no module of Phi-3", _ODD)
    layer = int(module["layer"] or 0)
    if layer >= layout.layers:
        raise ArtifactError(f"{node.name} is of layer {layer}; the checkpoint has {layout.layers}", _ODD)
    return layout.place(module["part"], layer)


def _awq(graph: Graph, node: Node) -> Node | None:
    """The constant that AWQ multiplies a product's activations with, on either factor of an elementwise product."""
    above = graph.input(node, 0)
    candidates = [above, *(graph.operands(above) if above.type == "Multiply" else [])]
    found = [
        operand
        for candidate in candidates
        if candidate.type == "Multiply" and candidate.name.endswith("/awq_mul")
        for operand in graph.operands(candidate)
        if graph.constant(operand) is not None
    ]
    if len(found) > 1:
        raise ArtifactError(f"{node.name} is fed by two multipliers", _ODD)
    return found[0] if found else None


def _content(graph: Graph, weight: Node) -> tuple[Plain | Quantised, str]:
    """What a weight's subgraph stores, without multiplier, and the name of the constant that holds it."""
    top = graph.through(weight, "Convert", "Reshape")
    if top.type == "Const":
        kind = graph.element_type(top)
        if kind not in _FLOATS:
            raise ArtifactError(f"{top.name} holds {kind} without a scale", _ODD)
        return Plain(graph.values(top), _FLOATS[kind]), top.name
    if top.type != "Multiply" or len(top.inputs) != 2:
        raise ArtifactError(f"{weight.name} is computed by {top.type}, not stored", _ODD)
    codes, zero_points = graph.through(graph.input(top, 0), "Convert"), None
    if codes.type == "Subtract":
        zero_points = graph.constant(graph.input(codes, 1))
        if zero_points is None:
            raise ArtifactError(f"{codes.name} takes zero points that are not stored", _ODD)
        codes = graph.through(graph.input(codes, 0), "Convert")
    scales = graph.through(graph.input(top, 1), "Convert")
    if codes.type != "Const" or scales.type != "Const":
        raise ArtifactError(f"{top.name} is no product of stored codes and stored scales", _ODD)
    return _quantised(graph, codes, scales, zero_points), codes.name


def _quantised(graph: Graph, codes: Node, scales: Node, zero_points: NDArray[Any] | None) -> Quantised:
    kind, held = graph.element_type(codes), graph.values(codes)
    levels = levels_of(kind)
    if (kind not in _CODES and levels is None) or graph.element_type(scales) not in SCALES:
        found = f"{codes.name} holds {kind} with scales of {graph.element_type(scales)}"
        raise ArtifactError(f"{found}, which this version cannot read", f"known: {', '.join((*_CODES, *NAMES))}")
    bits, low, high = _CODES[kind] if levels is None else (levels.size.bit_length() - 1, 0, levels.size - 1)
    n, width = held.shape[0], held.size // max(1, held.shape[0])
    values = SCALES[graph.element_type(scales)](graph.values(scales))
    groups = held.shape[1] if held.ndim == 3 else 1
    grid = (n, groups, 1) if held.ndim == 3 else (n, 1)
    if held.ndim not in (2, 3) or values.shape != grid or held.size == 0:
        raise ArtifactError(f"{codes.name}: codes {list(held.shape)} do not go with scales {list(values.shape)}", _ODD)
    if zero_points is None:
        zeros = np.zeros((1, 1), dtype=np.int16)
    elif zero_points.size not in (1, values.size):
        raise ArtifactError(f"{codes.name}: {zero_points.size} zero points for {values.size} scales", _ODD)
    else:
        zeros = zero_points.reshape((n, groups) if zero_points.size == values.size else (1, 1))
    return Quantised(held.reshape(n, width), values.reshape(n, groups), zeros, bits, low, high, levels=levels)


def _check_nothing_left(graph: Graph, uses: list[_Use]) -> None:
    """Raise ArtifactError naming a constant of floats or codes that is no weight, multiplier or rotary table."""
    known = {node.id for node in rotary_constants(graph)}
    for use in uses:
        known |= _constants(graph, use.weight)
        if use.multiplier is not None:
            known |= _constants(graph, use.multiplier)
    for node in graph.of_type("Const"):
        integers = graph.element_type(node) in ("i64", "i32", "boolean")
        if node.id not in known and not integers and graph.consumers[node.id] and graph.values(node).size > _SMALL:
            taken = graph.consumers[node.id][0]
            shape = node.data.get("shape", "")
            raise ArtifactError(
                f"{node.name} ({graph.element_type(node)} [{shape}]), which {taken.name} takes, is unknown", _ODD
            )


def _constants(graph: Graph, node: Node) -> set[str]:
    return {node.id} | {found.id for found in graph.above(node, lambda above: above.type == "Const")}
