"""Real exports by optimum-cli of checkpoints of two layers, unpacked for a test to read and to spoil.

`plain` is INT4 asymmetric in groups of 32 with AWQ and a sliding window of 24; `long` is INT4 symmetric with AWQ, a
tied head, partial rotary embeddings and LongRoPE. Both have four heads and two key and value heads.
"""

from __future__ import annotations

import copy
import tarfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.backends.openvino_weights import OpenVinoWeights
from harness.checkpoint import open_checkpoint

PACKED = Path(__file__).parent / "unit" / "openvino_ir"
_DTYPES = {"f32": np.float32, "f16": np.float16, "i64": np.int64, "i32": np.int32, "u8": np.uint8, "u4": np.uint8}


class Exported:
    """An artifact and its checkpoint in a folder of the test's own; `save` writes what was changed in the graph."""

    def __init__(self, name: str, folder: Path) -> None:
        with tarfile.open(PACKED / f"{name}.tar.xz") as packed:
            packed.extractall(folder, filter="data")
        self.artifact = folder / "artifact"
        self.xml, self.bin = self.artifact / "openvino_model.xml", self.artifact / "openvino_model.bin"
        self.checkpoint = open_checkpoint(folder / "checkpoint")
        self.root = ElementTree.parse(self.xml).getroot()
        self.layers = {str(layer.get("id")): layer for layer in self.root.iterfind("layers/layer")}

    def read(self) -> OpenVinoWeights:
        """Open the artifact as it is on disk."""
        return OpenVinoWeights(self.artifact, self.checkpoint.config)

    def save(self) -> None:
        """Write the graph."""
        ElementTree.ElementTree(self.root).write(self.xml, encoding="utf-8")

    def layer(self, *parts: str, kind: str | None = None, exact: bool = False) -> ElementTree.Element:
        """The one layer whose name contains all parts, or is the one part if `exact`, and whose type is `kind`."""
        found = [
            layer
            for layer in self.layers.values()
            if kind in (None, layer.get("type"))
            and (layer.get("name") == parts[0] if exact else all(part in str(layer.get("name")) for part in parts))
        ]
        assert len(found) == 1, [layer.get("name") for layer in found]
        return found[0]

    def data(self, layer: ElementTree.Element) -> ElementTree.Element:
        """A layer's attributes."""
        held = layer.find("data")
        assert held is not None
        return held

    def edge(self, target: ElementTree.Element, number: int) -> ElementTree.Element:
        """The edge into a layer's input."""
        into = [edge for edge in self.root.iterfind("edges/edge") if edge.get("to-layer") == target.get("id")]
        return sorted(into, key=lambda edge: int(str(edge.get("to-port"))))[number]

    def source(self, target: ElementTree.Element, number: int) -> ElementTree.Element:
        """The layer that feeds an input."""
        return self.layers[str(self.edge(target, number).get("from-layer"))]

    def connect(self, source: ElementTree.Element, target: ElementTree.Element, number: int) -> None:
        """Feed an input from the first output of another layer."""
        port = source.find("output/port")
        assert port is not None
        edge = self.edge(target, number)
        edge.set("from-layer", str(source.get("id")))
        edge.set("from-port", str(port.get("id")))

    def values(self, constant: ElementTree.Element) -> NDArray[Any]:
        """A constant's elements as they lie in the .bin, codes of four bits two to a byte."""
        held = self.data(constant)
        begin, size = int(str(held.get("offset"))), int(str(held.get("size")))
        raw = self.bin.read_bytes()[begin : begin + size]
        return np.frombuffer(raw, dtype=_DTYPES[str(held.get("element_type"))]).copy()

    def feed(self, target: ElementTree.Element, number: int, values: Any) -> None:
        """Feed an input from a copy of the constant that feeds it, with other elements; others keep the old one."""
        constant = copy.deepcopy(self.source(target, number))
        constant.set("id", str(1 + max(map(int, self.layers))))
        held = self.data(constant)
        raw = np.ascontiguousarray(values, dtype=_DTYPES[str(held.get("element_type"))]).tobytes()
        held.set("offset", str(self.bin.stat().st_size))
        held.set("size", str(len(raw)))
        with self.bin.open("ab") as file:
            file.write(raw)
        parent = self.root.find("layers")
        assert parent is not None
        parent.append(constant)
        self.layers[str(constant.get("id"))] = constant
        self.connect(constant, target, number)

    def readers(self, source: ElementTree.Element) -> list[tuple[ElementTree.Element, int]]:
        """The layers that a layer feeds, each with the number of the input."""
        found = []
        for target in self.layers.values():
            into = [edge for edge in self.root.iterfind("edges/edge") if edge.get("to-layer") == target.get("id")]
            ordered = sorted(into, key=lambda edge: int(str(edge.get("to-port"))))
            found += [(target, i) for i, edge in enumerate(ordered) if edge.get("from-layer") == source.get("id")]
        return found
