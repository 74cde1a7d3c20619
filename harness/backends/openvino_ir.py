"""OpenVINO's IR read without OpenVINO: the graph in openvino_model.xml, the constants in openvino_model.bin.

The files may come from anywhere, so nothing in them is believed: document types (and with them entities) are
refused, every constant must lie within the .bin and have the size that its type and shape say, and walks along
the graph have a limit, since a hostile one may go in circles.
"""

from __future__ import annotations

import functools
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.codes import signed, unpack
from harness.errors import ArtifactError

REMEDY = "export the checkpoint again with optimum-cli, or copy the artifact again"
NESTING = 64
"""The most nodes in a row that a walk follows; what it looks for is never further away."""

_LARGEST_XML = 1 << 29
_WHOLE: dict[str, Any] = {
    "f64": np.float64,
    "f32": np.float32,
    "f16": np.float16,
    "bf16": np.uint16,
    "i64": np.int64,
    "u64": np.uint64,
    "i32": np.int32,
    "u32": np.uint32,
    "i16": np.int16,
    "u16": np.uint16,
    "i8": np.int8,
    "u8": np.uint8,
    "boolean": np.bool_,
    # Bytes that stand for floats: their meaning is the reader's business.
    "f8e4m3": np.uint8,
    "f8e5m2": np.uint8,
    "f8e8m0": np.uint8,
}
_HALVES = ("u4", "i4", "nf4", "f4e2m1")


class Node(msgspec.Struct):
    """An operation of the graph.

    `inputs` are the nodes and output ports that feed it, in the order of its input ports; `outputs` the numbers
    of its output ports in their order; `data` its attributes as text.
    """

    id: str
    type: str
    name: str
    data: dict[str, str]
    inputs: list[tuple[str, str]]
    outputs: list[str]


class Graph:
    """A model: its nodes by id, what feeds them and what they feed.

    Raises ArtifactError, in the making and from every method, where the files are not what they say.
    """

    def __init__(self, xml: Path) -> None:
        self.xml = xml
        self.bin = xml.with_suffix(".bin")
        root = _parse(xml)
        self.nodes = {node.id: node for node in map(self._node, root.iterfind("layers/layer"))}
        if not self.nodes:
            raise ArtifactError(f"{xml} has no layers", REMEDY)
        self._connect(root)
        self.info = _information(root.find("rt_info"))

    @functools.cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        """The .bin, opened when the first constant is read: what the graph is can be told without it."""
        return _map(self.bin)

    @staticmethod
    def _node(layer: ElementTree.Element) -> Node:
        data = layer.find("data")
        held = dict(data.attrib) if data is not None else {}
        ports = [port.get("id", "") for port in layer.iterfind("output/port")]
        return Node(layer.get("id", ""), layer.get("type", ""), layer.get("name", ""), held, [], ports)

    def _connect(self, root: ElementTree.Element) -> None:
        self.consumers: dict[str, list[Node]] = {key: [] for key in self.nodes}
        ports: dict[str, list[tuple[int, tuple[str, str]]]] = {key: [] for key in self.nodes}
        for edge in root.iterfind("edges/edge"):
            source, target, port = edge.get("from-layer", ""), edge.get("to-layer", ""), edge.get("to-port", "")
            if source not in self.nodes or target not in self.nodes or not port.isdigit():
                raise ArtifactError(f"{self.xml} joins layers that it does not have: {dict(edge.attrib)}", REMEDY)
            ports[target].append((int(port), (source, edge.get("from-port", ""))))
            self.consumers[source].append(self.nodes[target])
        for key, found in ports.items():
            self.nodes[key].inputs = [source for _, source in sorted(found)]

    def of_type(self, *types: str) -> Iterator[Node]:
        """Every node of one of the types, in the order of the file."""
        return (node for node in self.nodes.values() if node.type in types)

    def input(self, node: Node, number: int) -> Node:
        """The node that feeds an input. Raises ArtifactError where nothing does."""
        if number >= len(node.inputs):
            raise ArtifactError(f"{self.xml}: {node.name} ({node.type}) has no input {number}", REMEDY)
        return self.nodes[node.inputs[number][0]]

    def operands(self, node: Node) -> list[Node]:
        """The nodes that feed all inputs."""
        return [self.nodes[source] for source, _ in node.inputs]

    def through(self, node: Node, *types: str) -> Node:
        """The first node on the way up along first inputs that is of none of the types."""
        for _ in range(NESTING):
            if node.type not in types:
                return node
            node = self.input(node, 0)
        raise ArtifactError(f"{self.xml}: {node.name} is fed in a circle", REMEDY)

    def above(self, node: Node, stop: Callable[[Node], bool]) -> list[Node]:
        """The nearest nodes above this one, along all inputs, for which `stop` holds; each once."""
        found, seen, waiting = [], {node.id}, self.operands(node)
        while waiting:
            here = waiting.pop(0)
            if here.id in seen:
                continue
            seen.add(here.id)
            if stop(here):
                found.append(here)
            else:
                waiting += self.operands(here)
        return found

    def constant(self, node: Node) -> NDArray[Any] | None:
        """The values of a constant, also one that is converted or dressed up in a subgraph of its own; else None."""
        node = self.through(node, "Convert", "ConvertLike")
        return self.values(node) if node.type == "Const" else None

    def scalar(self, node: Node) -> float | None:
        """The one value that all elements of a constant have; None for anything else."""
        held = self.constant(node)
        if held is None or held.size == 0 or not np.all(held == held.flat[0]):
            return None
        return float(held.flat[0])

    def element_type(self, node: Node) -> str:
        """What a constant's elements are called in the IR."""
        return node.data.get("element_type", "")

    def values(self, node: Node) -> NDArray[Any]:
        """The elements of a Const in its shape: bf16 widened to float32, two codes of four bits taken apart.

        Raises ArtifactError where they lie outside the .bin, or are fewer or more than the shape says.
        """
        kind = self.element_type(node)
        shape = self.shape(node)
        count = math.prod(shape)
        raw = self._slice(node, kind, count)
        if kind in _HALVES:
            codes = unpack(raw, 4)[:count]
            return (signed(codes, 4) if kind == "i4" else codes).reshape(shape)
        found: NDArray[Any] = raw.view(_WHOLE[kind]).reshape(shape)
        if kind == "bf16":  # the upper half of a float32
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found

    def shape(self, node: Node) -> tuple[int, ...]:
        """The extents of a Const. Raises ArtifactError where they are no whole numbers, or more than eight."""
        text = node.data.get("shape", "").strip()
        parts = [part.strip() for part in text.split(",")] if text else []
        if not all(part.isdigit() for part in parts) or len(parts) > 8:
            raise ArtifactError(f"{self.xml}: {node.name} has the shape {text!r}", REMEDY)
        return tuple(map(int, parts))

    def _slice(self, node: Node, kind: str, count: int) -> NDArray[np.uint8]:
        if kind not in _WHOLE and kind not in _HALVES:
            raise ArtifactError(
                f"{self.xml}: {node.name} is of element type {kind!r}, which this version cannot read",
                f"export it in one of {', '.join((*_WHOLE, *_HALVES))}",
            )
        offset, size = node.data.get("offset", ""), node.data.get("size", "")
        needed = (count + 1) // 2 if kind in _HALVES else count * np.dtype(_WHOLE[kind]).itemsize
        if not (offset.isdigit() and size.isdigit()) or int(size) != needed:
            raise ArtifactError(
                f"{self.xml}: {node.name} holds {size or 'no'} bytes, its shape and type need {needed}", REMEDY
            )
        begin, end = int(offset), int(offset) + needed
        if end > self._bytes.size:
            raise ArtifactError(
                f"{self.bin} is truncated: {node.name} ends at byte {end}, the file at {self._bytes.size}", REMEDY
            )
        # A copy, since the file does not align its constants.
        return np.array(self._bytes[begin:end])


def _map(path: Path) -> NDArray[np.uint8]:
    try:
        return np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}", REMEDY) from None


class _Builder(ElementTree.TreeBuilder):
    """Refuses document types, without which there are no entities to blow up."""

    def doctype(self, name: str, pubid: str, system: str) -> None:  # noqa: ARG002 - the parser's signature
        raise ArtifactError("it declares a document type, which no exporter writes")


def _parse(xml: Path) -> ElementTree.Element:
    try:
        size = xml.stat().st_size
        if size > _LARGEST_XML:
            raise ArtifactError(f"it is {size} bytes long; no model's graph is")
        root = ElementTree.parse(xml, ElementTree.XMLParser(target=_Builder())).getroot()
    except (OSError, ElementTree.ParseError, ArtifactError, ValueError) as error:
        problem = error.problem if isinstance(error, ArtifactError) else str(error)
        raise ArtifactError(f"{xml} cannot be read: {problem}", REMEDY) from None
    if root is None or root.tag != "net":
        raise ArtifactError(f"{xml} is no OpenVINO model", REMEDY)
    return root


def _information(root: ElementTree.Element | None) -> dict[str, str]:
    """The values of rt_info by their path, such as `nncf/weight_compression/mode`."""
    found: dict[str, str] = {}
    waiting = [("", root)] if root is not None else []
    while waiting:
        path, element = waiting.pop()
        for child in element:
            inner = f"{path}/{child.tag}" if path else child.tag
            if "value" in child.attrib:
                found[inner] = child.attrib["value"]
            waiting.append((inner, child))
    return found
