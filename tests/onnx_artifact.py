"""Small ONNX Runtime GenAI artifacts made by hand: a Phi-3 of random weights in every layout that the builder writes.

The graphs name and connect what matters to reading them, and would not run. Quantising and packing here are written
anew, from the operators' documentation, so that they share no code with the reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Floats = NDArray[np.float32]
# Takes the node's name, its input, its output and the weight [n, K], and adds the nodes of the product.
Product = Callable[["Maker", str, str, str, Floats], None]


def pack(codes: NDArray[np.uint8], bits: int) -> NDArray[np.uint8]:
    """Unsigned codes `[n, m]` to bytes, the first in the lowest bits; a last byte is filled with zeros."""
    per = 8 // bits
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % per))).astype(np.uint32)
    return sum(padded[:, i::per] << (bits * i) for i in range(per)).astype(np.uint8)  # type: ignore[union-attr]


class Blocks:
    """A weight quantised by blocks: `codes` `[n, G, block]`, `scales` and `zeros` `[n, G]`, and what they stand for."""

    def __init__(self, weight: Floats, bits: int, block: int, *, zeros: bool, dtype: Any = np.float32) -> None:
        self.bits, self.block, self.width = bits, block, weight.shape[1]
        groups = -(-self.width // block)
        padded = np.pad(weight, ((0, 0), (0, groups * block - self.width))).reshape(len(weight), groups, block)
        half = 2 ** (bits - 1)
        self.scales = (np.abs(padded).max(axis=2) / (half - 1)).astype(dtype)
        self.scales[::2] *= -1  # some quantisers choose the sign of the greatest weight
        offsets = np.arange(self.scales.size).reshape(self.scales.shape) % 3 if zeros else 0
        self.zeros = (np.full(self.scales.shape, half) - offsets).astype(np.uint8)
        steps = padded / self.scales.astype(np.float64)[..., None]
        self.codes = np.clip(np.rint(steps) + self.zeros[..., None], 0, 2 * half - 1).astype(np.uint8)
        self.given = zeros

    @property
    def product(self) -> NDArray[np.float64]:
        """(code - zero point) x scale in float64."""
        found = (self.codes.astype(np.float64) - self.zeros[..., None]) * self.scales.astype(np.float64)[..., None]
        product: NDArray[np.float64] = found.reshape(len(found), -1)[:, : self.width]
        return product


class Maker:
    """A graph under construction. `expected` is what each checkpoint tensor's rows must be read as."""

    def __init__(self, config: dict[str, Any], weights: dict[str, Floats]) -> None:
        self.config, self.weights = config, weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.expected: dict[tuple[str, int], NDArray[np.float64]] = {}
        self.domain = "com.microsoft"

    def add(self, name: str, values: Any) -> str:
        """Add a constant and return its name."""
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(self, kind: str, inputs: list[str], outputs: list[str], name: str, **attributes: Any) -> None:
        """Add a node; operators that ONNX does not have are in Microsoft's domain."""
        domain = (
            "" if kind in ("MatMul", "Gather", "Transpose", "Reshape", "DequantizeLinear", "If", "Greater") else None
        )
        self.nodes.append(
            helper.make_node(
                kind, inputs, outputs, name, domain=self.domain if domain is None else domain, **attributes
            )
        )

    def build(self, product: Product, *, apart: bool = True) -> None:
        """The whole model: products by `product`; with `apart` query, key and value as three, gate and up as two."""
        size = self.config["hidden_size"] // self.config["num_attention_heads"]
        query, key = size * self.config["num_attention_heads"], size * self.config["num_key_value_heads"]
        inner = self.config["intermediate_size"]
        rows = (
            {"q_proj": (0, query), "k_proj": (query, key), "v_proj": (query + key, key)}
            if apart
            else {"qkv_proj": None}
        )
        halves = {"gate_proj": (0, inner), "up_proj": (inner, inner)} if apart else {"gate_up_proj": None}
        self.lookup()
        self.add("cos_cache", np.cos(np.outer(np.arange(64), np.arange(size // 2))).astype(np.float32))
        self.add("sin_cache", np.sin(np.outer(np.arange(64), np.arange(size // 2))).astype(np.float32))
        for layer in range(self.config["num_hidden_layers"]):
            stem, prefix = f"/model/layers.{layer}", f"model.layers.{layer}."
            self.norm(layer, "input", f"{prefix}input_layernorm.weight")
            self._products(product, f"{stem}/attn", f"{prefix}self_attn.qkv_proj.weight", rows)
            self.attention(layer)
            self._products(product, f"{stem}/attn", f"{prefix}self_attn.o_proj.weight", {"o_proj": None})
            self.norm(layer, "post_attention", f"{prefix}post_attention_layernorm.weight")
            self._products(product, f"{stem}/mlp", f"{prefix}mlp.gate_up_proj.weight", halves)
            self._products(product, f"{stem}/mlp", f"{prefix}mlp.down_proj.weight", {"down_proj": None})
        self.norm(self.config["num_hidden_layers"], "final_norm", "model.norm.weight")
        self._products(product, "", "lm_head.weight", {"lm_head": None})

    def _products(self, product: Product, stem: str, name: str, parts: dict[str, Any]) -> None:
        for part, span in parts.items():
            first, count = span or (0, len(self.weights[name]))
            node = f"{stem}/{part}/MatMul"
            product(self, node, f"{node}/input", f"{node}/output_0", self.weights[name][first : first + count])
            self.expected[name, first] = self.read

    read: NDArray[np.float64]

    def lookup(self) -> None:
        """The embedding, in floats."""
        table = self.weights["model.embed_tokens.weight"]
        name = self.add("model.embed_tokens.weight", table)
        self.node("Gather", [name, "input_ids"], ["embedded"], "/model/embed_tokens/Gather")
        self.expected[name, 0] = table.astype(np.float64)

    def norm(self, layer: int, which: str, name: str) -> None:
        """A norm with its weight; the first has nothing to add."""
        weight = self.add(f"model.layers.{layer}.{which}_layernorm.weight", self.weights[name])
        skips = (layer, which) != (0, "input")
        inputs, kind = (["x", "skip", weight], "Skip") if skips else (["x", weight], "")
        output, node = f"norm{layer}{which}", f"/model/layers.{layer}/{which}_layernorm/{kind}LayerNorm"
        self.node(f"{kind}SimplifiedLayerNormalization", inputs, [output], node, epsilon=1e-5)
        self.expected[name, 0] = self.weights[name].astype(np.float64)

    def attention(self, layer: int) -> None:
        """Attention, rotating by the graph's tables."""
        inputs = ["q", "k", "v", "pk", "pv", "len", "total", "cos_cache", "sin_cache"]
        heads = {"num_heads": self.config["num_attention_heads"], "kv_num_heads": self.config["num_key_value_heads"]}
        stated = {
            "scale": 0.25,
            "local_window_size": 7 + layer,
            "softcap": 0.0,
            "do_rotary": 1,
            "rotary_interleaved": 0,
        }
        name = f"/model/layers.{layer}/attn/GroupQueryAttention"
        self.node("GroupQueryAttention", inputs, [f"mixed{layer}"], name, **heads, **stated)

    def model(self) -> onnx.ModelProto:
        """The graph as it stands."""
        graph = helper.make_graph(self.nodes, "made", [], [], self.initializers)
        return helper.make_model(graph, producer_name="made-by-hand", producer_version="1")

    def write(self, folder: Path, *, external: bool = False) -> Path:
        """Write graph and genai_config.json; with `external` the constants go into model.onnx.data."""
        folder.mkdir(exist_ok=True)
        where: dict[str, Any] = {"location": "model.onnx.data", "size_threshold": 0} if external else {}
        onnx.save_model(self.model(), str(folder / "model.onnx"), save_as_external_data=external, **where)
        (folder / "genai_config.json").write_text(json.dumps(settings_of(self.config)), encoding="utf-8")
        return folder


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """genai_config.json of a checkpoint's configuration."""
    names = ("num_attention_heads", "num_key_value_heads", "num_hidden_layers", "hidden_size")
    decoder = {name: config[name] for name in names}
    decoder |= {"filename": "model.onnx", "head_size": config["hidden_size"] // config["num_attention_heads"]}
    decoder["sliding_window"] = {"window_size": 9}
    return {
        "model": {"vocab_size": config["vocab_size"], "context_length": 64, "eos_token_id": [2, 3], "decoder": decoder}
    }


def floats(dtype: Any = np.float32) -> Product:
    """MatMul by a constant `[K, n]`."""

    def product(maker: Maker, node: str, x: str, y: str, weight: Floats) -> None:
        name = maker.add(node[1:].replace("/", ".") + ".weight", weight.T.astype(dtype))
        maker.node("MatMul", [x, name], [y], node)
        maker.read = weight.astype(dtype).astype(np.float64)

    return product


def bfloat16(maker: Maker, node: str, x: str, y: str, weight: Floats) -> None:
    """MatMul by a constant in bfloat16, the upper half of a float32."""
    upper = (np.ascontiguousarray(weight.T).view(np.uint32) >> 16).astype(np.uint16)
    name = node[1:].replace("/", ".") + ".weight"
    maker.initializers.append(helper.make_tensor(name, TensorProto.BFLOAT16, upper.shape, upper.tobytes(), raw=True))
    maker.node("MatMul", [x, name], [y], node)
    maker.read = (upper.astype(np.uint32) << 16).view(np.float32).T.astype(np.float64)


def nbits(
    bits: int = 4, block: int = 16, *, zeros: bool = False, dtype: Any = np.float32, flat: bool = False, level: int = 4
) -> Product:
    """MatMulNBits; with `flat` scales and zero points have one axis, as older builders wrote them."""

    def product(maker: Maker, node: str, x: str, y: str, weight: Floats) -> None:
        made, stem = Blocks(weight, bits, block, zeros=zeros, dtype=dtype), node[1:].replace("/", ".")
        n, groups, _ = made.codes.shape
        codes = pack(made.codes.reshape(n, -1), bits).reshape(n, groups, -1)
        points = pack(made.zeros, bits)
        inputs = [x, maker.add(f"{stem}.weight_Q{bits}", codes)]
        inputs.append(maker.add(f"{stem}.weight_scales", made.scales.ravel() if flat else made.scales))
        if zeros:
            inputs.append(maker.add(f"{stem}.weight_zp", points.ravel() if flat else points))
        stated = {"K": made.width, "N": n, "bits": bits, "block_size": block}
        stated |= {"accuracy_level": level} if level else {}
        maker.node("MatMulNBits", inputs, [y], f"{node}_Q{bits}", **stated)
        maker.read = made.product

    return product


def dequantised(*, zeros: bool, channel: bool = False) -> Product:
    """MatMul after DequantizeLinear: signed 4-bit codes `[K, n]` in blocks; by `channel` `[n, K]` and a Transpose."""

    def product(maker: Maker, node: str, x: str, y: str, weight: Floats) -> None:
        n, width = weight.shape
        made, stem = Blocks(weight, 4, width if channel else 4, zeros=zeros and not channel), node[1:].replace("/", ".")
        codes = made.codes.reshape(n, -1)[:, :width]
        scales, points = made.scales, made.zeros
        if channel:
            attributes = {"axis": 0}
            scales, points = scales[:, 0], points[:, 0]
        else:
            codes, scales, points = codes.T, scales.T, points.T
            attributes = {"axis": 0, "block_size": 4}
        kind, shift = (TensorProto.UINT4, 0) if zeros and not channel else (TensorProto.INT4, 8)
        names = [f"{stem}.weight_DQ_Q4", maker.add(f"{stem}.weight_DQ_scales", scales)]
        maker.initializers.append(_four_bits(names[0], kind, (codes.astype(np.int16) - shift) & 15))
        if zeros and not channel:
            names.append(f"{stem}.weight_DQ_zero_points")
            maker.initializers.append(_four_bits(names[-1], kind, points))
        maker.node("DequantizeLinear", names, [f"{y}_w"], f"{node}_DQ_Q4", **attributes)
        if channel:
            maker.node("Transpose", [f"{y}_w"], [f"{y}_t"], f"{node}_transpose", perm=[1, 0])
        maker.node("MatMul", [x, f"{y}_t" if channel else f"{y}_w"], [y], f"{node}_matmul_Q4")
        maker.read = made.product

    return product


def _four_bits(name: str, kind: int, codes: NDArray[Any]) -> onnx.TensorProto:
    packed = pack(codes.astype(np.uint8).reshape(1, -1), 4)
    return helper.make_tensor(name, kind, codes.shape, packed.tobytes(), raw=True)
