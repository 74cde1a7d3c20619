"""Edits of an ONNX Runtime GenAI artifact: external data, attributes, and what feeds what."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from detection.battery.tensor import Tensor, pack
from harness.codes import unpack


class OnnxFiles:
    """An artifact's graph and constants, changed on disk at once."""

    backend = "ort-genai"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}

    def repair_window(self, window: int) -> None:
        """Have every layer's attention keep to the window, which as exported it does not."""
        self.window(window)
        path = self.folder / "genai_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["model"]["decoder"].pop("sliding_window", None)
        path.write_text(json.dumps(settings, indent=4), encoding="utf-8")

    def tensor(self, name: str) -> Tensor:
        """A quantised tensor by the checkpoint's name."""
        node = self._product(name)
        n, width, block, bits = (self._whole(node, key) for key in ("N", "K", "block_size", "bits"))
        codes = unpack(self._read(node.input[1], np.uint8), bits).astype(np.int16).reshape(n, -1)[:, :width]
        scales = np.array(self._read(node.input[2], np.float32).reshape(n, width // block))
        zeros = None
        if len(node.input) > 3 and node.input[3]:
            packed = self._read(node.input[3], np.uint8).reshape(n, -1)
            zeros = unpack(packed, bits).astype(np.int16)[:, : width // block]
        return Tensor(name, bits, False, codes, scales, zeros)

    def store(self, tensor: Tensor) -> None:
        """Write a tensor back."""
        node = self._product(tensor.name)
        self._write(node.input[1], pack(tensor.codes, tensor.bits))
        self._write(node.input[2], tensor.scales.astype(np.float32).tobytes())
        if tensor.zeros is not None:
            self._write(node.input[3], pack(tensor.zeros, tensor.bits))

    def swap_embedding_rows(self, first: int, second: int) -> None:
        """Two rows of the float embedding exchanged."""
        values = self._read("model.embed_tokens.weight", np.float32).reshape(-1, 256).copy()
        values[[first, second]] = values[[second, first]]
        self._write("model.embed_tokens.weight", values.tobytes())

    def scale_norm(self, layer: int, channel: int, factor: float) -> None:
        """One value of the weight of a layer's first norm."""
        name = f"model.layers.{layer}.input_layernorm.weight"
        values = self._read(name, np.float32).copy()
        values[channel] *= factor
        self._write(name, values.tobytes())

    def end_tokens(self, tokens: list[int]) -> None:
        """The tokens that end an answer."""
        path = self.folder / "genai_config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        settings["model"]["eos_token_id"] = tokens
        path.write_text(json.dumps(settings, indent=4), encoding="utf-8")

    def truncate(self, count: int) -> None:
        """Cut bytes off the constants' end."""
        path = self.folder / "model.onnx.data"
        path.write_bytes(path.read_bytes()[:-count])

    def rotary_base(self, base: float, factor: float) -> None:
        """Tables of a base `factor` times as large."""
        self._tables((base * factor) ** (-np.arange(16) / 16))

    def rotary_scale(self, factor: float) -> None:
        """Tables of frequencies times a factor."""
        self._tables(10000.0 ** (-np.arange(16) / 16) * factor)

    def _tables(self, frequencies: NDArray[np.float64]) -> None:
        angles = np.arange(1024)[:, None] * frequencies
        self._write("cos_cache", np.cos(angles).astype(np.float32).tobytes())
        self._write("sin_cache", np.sin(angles).astype(np.float32).tobytes())

    def epsilon(self, factor: float) -> None:
        """Every norm's epsilon."""
        for attribute in self._attributes("epsilon"):
            attribute.f *= factor
        self._save()

    def window(self, window: int) -> None:
        """The sliding window; 0 for none."""
        for attribute in self._attributes("local_window_size"):
            attribute.i = window or -1
        self._save()

    def attention_scale(self, factor: float) -> None:
        """The scale of the scores, in every layer."""
        for attribute in self._attributes("scale"):
            attribute.f *= factor
        self._save()

    def swap_gate_and_up(self, layer: int) -> None:
        """Have the activation take the other product."""
        gate, up = (f"/model/layers.{layer}/mlp/{part}_proj/MatMul/output_0" for part in ("gate", "up"))
        for node in self._model.graph.node:
            for at, name in enumerate(node.input):
                if name in (gate, up):
                    node.input[at] = up if name == gate else gate
        self._save()

    def skip_layer(self, layer: int) -> None:
        """Have what comes after a layer take what went into it."""
        before, after = self._residuals(layer - 1), self._residuals(layer)
        self._replace(dict(zip(after, before, strict=True)))

    def _residuals(self, layer: int) -> tuple[str, str]:
        prefix = f"/model/layers.{layer}"
        return f"{prefix}/post_attention_layernorm/output_3", f"{prefix}/mlp/down_proj/MatMul/output_0"

    def _replace(self, names: dict[str, str]) -> None:
        for node in self._model.graph.node:
            if "SkipLayerNorm" in node.name and all(name in node.input for name in names):
                for at, name in enumerate(node.input):
                    node.input[at] = names.get(name, name)
        self._save()

    def _product(self, name: str) -> Any:
        path = name.removesuffix(".weight").replace(".self_attn.", ".attn.")
        return next(
            node
            for node in self._model.graph.node
            if node.op_type == "MatMulNBits" and node.input[1].startswith(f"{path}.")
        )

    def _attributes(self, name: str) -> Iterator[Any]:
        return (attribute for node in self._model.graph.node for attribute in node.attribute if attribute.name == name)

    @staticmethod
    def _whole(node: Any, name: str) -> int:
        return next(int(attribute.i) for attribute in node.attribute if attribute.name == name)

    def _span(self, name: str) -> tuple[int, int]:
        entries = {entry.key: entry.value for entry in self._initializers[name].external_data}
        return int(entries["offset"]), int(entries["length"])

    def _read(self, name: str, dtype: Any) -> NDArray[Any]:
        offset, length = self._span(name)
        return np.frombuffer((self.folder / "model.onnx.data").read_bytes()[offset : offset + length], dtype=dtype)

    def _write(self, name: str, raw: bytes) -> None:
        offset, length = self._span(name)
        assert len(raw) == length, name
        with (self.folder / "model.onnx.data").open("r+b") as file:
            file.seek(offset)
            file.write(raw)

    def _save(self) -> None:
        onnx.save(self._model, str(self.folder / "model.onnx"))
