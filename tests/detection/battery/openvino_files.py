"""Edits of an OpenVINO artifact: constants in the .bin, edges and attributes in the .xml."""

from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from detection.battery.tensor import Tensor, pack
from harness.backends.openvino_ir import Graph, Node
from harness.backends.openvino_rotary import rotary_constants

BITS = {"u4": (4, False), "i4": (4, True), "u8": (8, False), "i8": (8, True)}


class OpenVinoFiles:
    """An artifact's graph and constants, changed on disk at once."""

    backend = "openvino"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._xml = folder / "openvino_model.xml"
        self._graph = Graph(self._xml)

    def tensor(self, name: str) -> Tensor:
        """A quantised tensor by the checkpoint's name."""
        source = f"self.{name.removesuffix('.weight')}._openvino_orig_weight"
        codes, scales = self._named(source), self._named(f"{source}/scale")
        held = self._graph.values(codes)
        n = held.shape[0]
        zeros = [node for node in self._graph.of_type("Const") if node.name == f"{source}/zero_point"]
        points = self._graph.values(zeros[0]).astype(np.int16).reshape(n, -1) if zeros else None
        bits, signed = BITS[codes.data["element_type"]]
        flat = held.astype(np.int16).reshape(n, -1)
        return Tensor(name, bits, signed, flat, np.array(self._graph.values(scales).reshape(n, -1)), points)

    def store(self, tensor: Tensor) -> None:
        """Write a tensor back."""
        source = f"self.{tensor.name.removesuffix('.weight')}._openvino_orig_weight"
        self._write(self._named(source), pack(tensor.codes, tensor.bits))
        self._write(self._named(f"{source}/scale"), tensor.scales.tobytes())
        if tensor.zeros is not None:
            self._write(self._named(f"{source}/zero_point"), pack(tensor.zeros, tensor.bits))

    def scale_norm(self, layer: int, channel: int, factor: float) -> None:
        """One value of the weight of a layer's first norm."""
        node = next(
            above
            for node in self._graph.of_type("Multiply")
            if node.name.endswith(f"layers.{layer}.input_layernorm/aten::mul/Multiply_1")
            for above in [self._graph.through(other, "Convert") for other in self._graph.operands(node)]
            if above.type == "Const"
        )
        values = np.array(self._graph.values(node))
        values.reshape(-1)[channel] *= factor
        self._write(node, values.tobytes())

    def end_tokens(self, tokens: list[int]) -> None:
        """The tokens that end an answer."""
        path = self.folder / "generation_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**settings, "eos_token_id": tokens}), encoding="utf-8")

    def truncate(self, count: int) -> None:
        """Cut bytes off the constants' end."""
        path = self.folder / "openvino_model.bin"
        path.write_bytes(path.read_bytes()[:-count])

    def rotary_base(self, base: float, factor: float) -> None:
        """Frequencies of a base `factor` times as large."""
        node = rotary_constants(self._graph)[0]
        values = self._graph.values(node).astype(np.float64)
        changed = values ** (math.log(base * factor) / math.log(base))
        self._write(node, changed.astype(np.float32).tobytes())

    def rotary_scale(self, factor: float) -> None:
        """All frequencies times a factor."""
        node = rotary_constants(self._graph)[0]
        self._write(node, (self._graph.values(node) * np.float32(factor)).astype(np.float32).tobytes())

    def epsilon(self, factor: float) -> None:
        """Every norm's epsilon; the constants may be one."""
        nodes = {
            above.data["offset"]: above
            for node in self._graph.of_type("Add")
            if any(other.type == "ReduceMean" for other in self._graph.operands(node))
            for above in self._graph.operands(node)
            if above.type == "Const"
        }
        for node in nodes.values():
            self._write(node, (self._graph.values(node) * factor).astype(np.float32).tobytes())

    def window(self, window: int) -> None:
        """The sliding window; 0 for none."""
        node = next(
            above
            for node in self._graph.of_type("Greater")
            for sum_ in self._graph.operands(node)
            if sum_.type == "Add"
            for above in self._graph.operands(sum_)
            if above.type == "Const" and node.name.startswith("__module.model/")
        )
        self._write(node, np.asarray(-(window or 1 << 20), dtype=np.int64).tobytes())

    def attention_scale(self, factor: float) -> None:
        """The scale of the scores, in every layer."""
        nodes = {
            node.data["offset"]: node
            for node in (self._graph.input(n, 4) for n in self._graph.of_type("ScaledDotProductAttention"))
        }
        for node in nodes.values():
            self._write(node, (self._graph.values(node) * factor).astype(np.float32).tobytes())

    def swap_gate_and_up(self, layer: int) -> None:
        """Have the activation take the other half."""
        root, tree = self._open()
        split = self._node(f"layers.{layer}.mlp/prim::ListUnpack/VariadicSplit").id
        for edge in root.iterfind("edges/edge"):
            if edge.get("from-layer") == split:
                edge.set("from-port", {"3": "4", "4": "3"}[edge.get("from-port", "")])
        tree.write(self._xml)

    def skip_layer(self, layer: int) -> None:
        """Have what comes after a layer take what went into it."""
        before, after = self._node(f"layers.{layer - 1}/aten::add/Add_1"), self._node(f"layers.{layer}/aten::add/Add_1")
        root, tree = self._open()
        for edge in root.iterfind("edges/edge"):
            if edge.get("from-layer") == after.id:
                edge.set("from-layer", before.id)
        tree.write(self._xml)

    def _open(self) -> tuple[ElementTree.Element, ElementTree.ElementTree[Any]]:
        tree: ElementTree.ElementTree[Any] = ElementTree.parse(self._xml)
        return tree.getroot(), tree

    def _named(self, name: str) -> Node:
        return next(node for node in self._graph.of_type("Const") if node.name == name)

    def _node(self, end: str) -> Node:
        return next(node for node in self._all() if node.name.endswith(end))

    def _all(self) -> Iterator[Node]:
        return iter(self._graph.nodes.values())

    def _write(self, node: Node, raw: bytes) -> None:
        assert len(raw) == int(node.data["size"]), node.name
        with (self.folder / "openvino_model.bin").open("r+b") as file:
            file.seek(int(node.data["offset"]))
            file.write(raw)
