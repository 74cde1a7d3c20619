"""The weights of an ONNX Runtime GenAI artifact by the checkpoint's names.

A node's name says which module of Phi-3 it is, the node's inputs what it computes with: two weights exchanged between
two products are read as the products use them. Every constant of floats or codes that a node takes must have been read
as a weight or as a rotary table, or the artifact is refused by that constant's name; constants that no node takes are
not part of the model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from harness.backends.ort_graph import Graph, attributes, whole
from harness.backends.ort_products import read_lookup, read_product, read_vector
from harness.backends.ort_statements import read_statements, rotary_constants
from harness.errors import ArtifactError
from harness.layout import Layout, Place
from harness.weights import Part, Quantised, Statement, Stored

_ODD = "export it with onnxruntime_genai.models.builder, or look at the graph: it computes something else than Phi-3"
_PRODUCTS = ("MatMulNBits", "MatMul")
_LOOKUPS = ("GatherBlockQuantized", "Gather")
_QUANTISED = ("MatMulNBits", "GatherBlockQuantized", "DequantizeLinear")
# The input that holds a norm's weight.
_NORMS = {"SimplifiedLayerNormalization": 1, "SkipSimplifiedLayerNormalization": 2, "RMSNormalization": 1}
# Shape arithmetic takes a few whole numbers; a table of them would be something else.
_SMALL = 64
_MODULE = re.compile(
    r"^(?:model\.)?(?:layers\.(?P<layer>\d{1,4})\.(?:(?:self_)?attn\.|mlp\.)?)?"
    r"(?P<part>qkv_proj|[qkvo]_proj|gate_up_proj|gate_proj|up_proj|down_proj|input_layernorm|post_attention_layernorm"
    r"|final_norm_layernorm|norm|embed_tokens|lm_head)\.(?:MatMul|Gather|LayerNorm|SkipLayerNorm|weight)"
)
_KINDS = {"embed_tokens": _LOOKUPS} | dict.fromkeys(
    ("input_layernorm", "post_attention_layernorm", "norm"), tuple(_NORMS)
)


class _Use(msgspec.Struct, frozen=True):
    """A node that takes a weight, the module that it is, and the constants that the weight is made of."""

    node: Any
    part: str
    layer: int
    constants: tuple[str, ...]


class OrtWeights:
    """The weights of one artifact; see `harness.weights.ArtifactWeights`. Opening reads the graph, not the weights."""

    def __init__(self, artifact: Path, config: Mapping[str, Any]) -> None:
        self._config = config
        self._graph = Graph(artifact)
        layout = Layout.of(config)
        self._uses = _find_uses(self._graph)
        self._places = [_place(layout, use) for use in self._uses]
        _check_nothing_left(self._graph, self._uses)
        layout.check_complete(self._places)

    @property
    def scheme(self) -> Mapping[str, str]:
        """What the graph says of its quantisation: the exporter, and each way that weights are stored in.

        `bits`, `block_size` and `accuracy_level` list every value that occurs; `operators` those that hold codes. The
        algorithm that chose the codes is nowhere stated.
        """
        nodes = [(_quantised_node(self._graph, use), use.constants[0]) for use in self._uses]
        quantised = [(node, codes) for node, codes in nodes if node.op_type in _QUANTISED]
        found = {
            "exporter": self._graph.producer,
            "operators": _listed(node.op_type for node, _ in quantised),
            "bits": _listed(self._bits(node, codes) for node, codes in quantised),
        }
        for name in ("block_size", "accuracy_level"):
            found[name] = _listed(str(attributes(node).get(name, "")) for node, _ in quantised)
        return {name: value for name, value in found.items() if value}

    def _bits(self, node: Any, codes: str) -> str:
        """Bits of a code: by its dtype, and where bytes hold several codes by the attribute."""
        packed = node.op_type != "DequantizeLinear" and self._graph.dtype(codes) == "uint8"
        return str(whole(node, "bits", 4)) if packed else "".join(filter(str.isdigit, self._graph.dtype(codes)))

    def tensors(self) -> Iterator[Stored]:
        """Every tensor in the graph's order, one at a time. Raises ArtifactError naming one that cannot be read."""
        return (part.read() for part in self.parts())

    def parts(self) -> list[Part]:
        """See `harness.weights.InParts`."""
        both = zip(self._uses, self._places, strict=True)
        return [Part(place.name, place.row, place.shape[0], partial(self._stored, use, place)) for use, place in both]

    def _stored(self, use: _Use, place: Place) -> Stored:
        content = self._read(use)
        held = content.codes if isinstance(content, Quantised) else content.values
        if held.shape != place.shape:
            raise ArtifactError(
                f"{use.constants[0]} stands for {list(held.shape)} where {place.name} has {list(place.shape)}",
                "compare it with the checkpoint that the artifact was exported from",
            )
        return Stored(place.name, place.row, use.constants[0], content)

    def _read(self, use: _Use) -> Any:
        if use.node.op_type in _NORMS:
            return read_vector(self._graph, use.node.input[_NORMS[use.node.op_type]])
        return (read_lookup if use.node.op_type in _LOOKUPS else read_product)(self._graph, use.node)

    def statements(self) -> list[Statement]:
        """What genai_config.json and the graph state beside the weights; see `ort_statements`."""
        return read_statements(self._graph, self._config)


def accuracy_levels(artifact: Path) -> dict[str, int]:
    """The accuracy level of each product by the checkpoint's name of its weight; 0 where the attribute is absent.

    At level 4 ONNX Runtime rounds the activations to int8, block by block. Raises ArtifactError when the artifact
    cannot be read, or the parts of one tensor state different levels.
    """
    graph = Graph(artifact)
    # Names do not depend on the extents.
    names = Layout(1, 1, 1, 1, 1, 1, 1, tied=False)
    levels: dict[str, int] = {}
    for use in _find_uses(graph):
        if use.node.op_type not in _PRODUCTS:
            continue
        level = whole(use.node, "accuracy_level", 0)
        name = names.place(use.part, use.layer).name
        if levels.setdefault(name, level) != level:
            raise ArtifactError(f"the parts of {name} state the accuracy levels {levels[name]} and {level}", _ODD)
    return levels


def _find_uses(graph: Graph) -> list[_Use]:
    """Every node that takes a weight. A second node that takes the same one for the same module adds nothing."""
    found: dict[tuple[Any, ...], _Use] = {}
    for node in graph.nodes:
        constants = _weight_constants(graph, node)
        if constants:
            part, layer = _module(node, constants)
            if node.op_type not in _KINDS.get(part, _PRODUCTS):
                raise ArtifactError(f"{node.name}, {part} by its name, is a {node.op_type}", _ODD)
            found.setdefault((part, layer, constants), _Use(node, part, layer, constants))
    return list(found.values())


def _weight_constants(graph: Graph, node: Any) -> tuple[str, ...]:
    """The constants of the weight that a node takes, the values or codes first; empty where it takes none."""
    inputs = [*node.input, "", "", ""]
    if node.op_type == "MatMulNBits":
        return _all_roots(graph, inputs[1:])
    if node.op_type == "MatMul":
        return graph.roots(inputs[1])
    if node.op_type == "GatherBlockQuantized":
        return _all_roots(graph, [inputs[0], *inputs[2:]])
    if node.op_type == "Gather":
        roots = graph.roots(inputs[0])
        return () if roots and _is_arithmetic(graph, roots[0]) else roots
    return graph.roots(inputs[_NORMS[node.op_type]]) if node.op_type in _NORMS else ()


def _all_roots(graph: Graph, names: list[str]) -> tuple[str, ...]:
    given = [name for name in names if name]
    found = [graph.roots(name) for name in given]
    missing = [name for name, roots in zip(given, found, strict=True) if not roots]
    if missing:
        raise ArtifactError(f"{missing[0]} is computed from the input, not stored", _ODD)
    return tuple(root for roots in found for root in roots)


def _module(node: Any, constants: tuple[str, ...]) -> tuple[str, int]:
    """Which module of Phi-3 a node is, by its own name or, where an optimiser took that away, its weight's."""
    for name in (node.name, constants[0]):
        match = _MODULE.match(name.replace("/", ".").lstrip("."))
        if match:
            part = "norm" if match["part"] == "final_norm_layernorm" else match["part"]
            in_layer = part not in ("norm", "embed_tokens", "lm_head")
            if in_layer == (match["layer"] is not None) or part == "norm":
                return part, int(match["layer"]) if in_layer else 0
    raise ArtifactError(f"{constants[0]}, which {node.op_type} {node.name!r} takes, is no weight of Phi-3", _ODD)


def _place(layout: Layout, use: _Use) -> Place:
    if use.layer >= layout.layers:
        raise ArtifactError(f"{use.constants[0]} is of layer {use.layer}; the checkpoint has {layout.layers}", _ODD)
    return layout.place(use.part, use.layer)


def _check_nothing_left(graph: Graph, uses: list[_Use]) -> None:
    """Raise ArtifactError naming a constant that some node takes and that is neither weight, table nor arithmetic."""
    known = {constant for use in uses for constant in use.constants} | rotary_constants(graph)
    for node in graph.nodes:
        for name in node.input:
            if graph.holds(name) and name not in known and not _is_arithmetic(graph, name):
                kind = f"{graph.dtype(name)} {list(graph.shape(name))}"
                raise ArtifactError(f"{name} ({kind}), which {node.op_type} {node.name!r} takes, is unknown", _ODD)
        # A table that the length chooses is the one thing that exporters put into a branch.
        if node.op_type in ("If", "Loop", "Scan") and not known & set(node.output):
            raise ArtifactError(f"{node.op_type} {node.name!r} has a graph of its own, which is not read", _ODD)


def _is_arithmetic(graph: Graph, name: str) -> bool:
    count = 1
    for extent in graph.shape(name):
        count *= extent
    return count <= _SMALL and graph.dtype(name) in ("int32", "int64", "bool")


def _quantised_node(graph: Graph, use: _Use) -> Any:
    """The node that turns a use's codes into weights: the product itself, or the DequantizeLinear before it."""
    node = use.node
    if node.op_type in _QUANTISED or node.op_type in _NORMS:
        return node
    name = node.input[0] if node.op_type == "Gather" else node.input[1]
    while (maker := graph.maker(name)) is not None and maker.op_type in ("Transpose", "Identity"):
        name = maker.input[0]
    return node if maker is None else maker


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(set(values) - {""}))
