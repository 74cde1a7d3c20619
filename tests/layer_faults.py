"""Faults of one layer, planted in copies of real artifacts and, run as a script, in PyTorch's modules.

As a script (under an interpreter that has torch): `layer_faults.py CHECKPOINT TOKENS PREFILL` prints, as JSON, which
sublayer is found first for every layer and sublayer that was made faulty.
"""

from __future__ import annotations

import copy
import json
import shutil
import struct
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

SUBLAYERS = ("self_attn", "mlp")
SCALE = 1.01


def plant_in_openvino(artifact: Path, out: Path, layer: int, sublayer: str) -> Path:
    """A copy whose attention of one layer scales by 1 % more, or whose MLP of one layer takes gate for up."""
    shutil.copytree(artifact, out)
    path = out / "openvino_model.xml"
    tree = ElementTree.parse(path)
    root = tree.getroot()
    layers = {found.get("name"): found for found in root.iterfind("layers/layer")}
    if sublayer == "mlp":
        split = layers[f"__module.model.layers.{layer}.mlp/prim::ListUnpack/VariadicSplit"].get("id")
        edges = [edge for edge in root.iterfind("edges/edge") if edge.get("from-layer") == split]
        assert len(edges) == 2
        ports = [str(edge.get("from-port")) for edge in edges]
        for edge, port in zip(edges, reversed(ports), strict=True):
            edge.set("from-port", port)
    else:
        name = f"__module.model.layers.{layer}.self_attn/aten::scaled_dot_product_attention/ScaledDotProductAttention"
        _scale_attention(root, layers[name], out / "openvino_model.bin")
    tree.write(path)
    return out


def _scale_attention(root: Any, attention: Any, weights: Path) -> None:
    """Feed an attention a scale of its own, which is a constant that layers share."""
    edge = next(
        edge
        for edge in root.iterfind("edges/edge")
        if edge.get("to-layer") == attention.get("id") and edge.get("to-port") == "4"
    )
    nodes = root.find("layers")
    shared = next(node for node in nodes if node.get("id") == edge.get("from-layer"))
    own, form = copy.deepcopy(shared), {"f32": "<f", "f16": "<e"}[shared.find("data").get("element_type")]
    content = weights.read_bytes()
    offset = int(shared.find("data").get("offset"))
    value = struct.unpack_from(form, content, offset)[0]
    own.set("id", str(1 + max(int(node.get("id")) for node in nodes)))
    own.set("name", "a scale of its own")
    own.find("data").set("offset", str(len(content)))
    weights.write_bytes(content + struct.pack(form, value * SCALE))
    nodes.insert(0, own)
    edge.set("from-layer", str(own.get("id")))


def plant_in_onnx(artifact: Path, out: Path, layer: int, sublayer: str) -> Path:
    """The same in a graph of ONNX Runtime GenAI."""
    import onnx

    shutil.copytree(artifact, out)
    path = out / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    nodes = {node.name: node for node in model.graph.node}
    if sublayer == "mlp":
        gate, up = (_product(nodes, f"/model/layers.{layer}/mlp/{part}_proj/") for part in ("gate", "up"))
        gate.output[0], up.output[0] = up.output[0], gate.output[0]
    else:
        attention = nodes[f"/model/layers.{layer}/attn/GroupQueryAttention"]
        scale = next(attribute for attribute in attention.attribute if attribute.name == "scale")
        scale.f *= SCALE
    onnx.save(model, str(path))
    return out


def _product(nodes: dict[str, Any], prefix: str) -> Any:
    return next(node for name, node in nodes.items() if name.startswith(prefix) and node.op_type.startswith("MatMul"))


def find_in_pytorch(checkpoint: Path, tokens: list[int], prefill: int) -> dict[str, str]:
    """For every sublayer that is made faulty by a hook or an attribute, the sentence; and for none, under `none`."""
    from harness.backends.pytorch import PyTorchBackend
    from harness.localise import Localisation, judge
    from harness.reference.artifact import ArtifactReference
    from harness.reference.model import completed
    from harness.reference.sublayers import examine
    from harness.target import Target

    target, backend = Target.parse("pytorch:cpu:fp32"), PyTorchBackend()
    session: Any = backend.load(checkpoint, target, options={}, trust_remote_code=False)
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    reference = ArtifactReference(backend.dequantized_weights(checkpoint, config), config)

    def sentence() -> str:
        states = session.residual_states(tokens, prefill)
        found = completed(examine(reference, states, tokens, prefill, session.info.permitted))
        return Localisation(str(target), "", found.arithmetic, found.distances, judge(found), 0.0).sentence

    answers = {"none": sentence()}
    for number, layer in enumerate(session._model.model.layers):
        layer.self_attn.scaling *= SCALE
        answers[f"model.layers.{number}.self_attn"] = sentence()
        layer.self_attn.scaling /= SCALE
        hook = layer.mlp.gate_up_proj.register_forward_hook(lambda _, __, given: given.roll(given.shape[-1] // 2, -1))
        answers[f"model.layers.{number}.mlp"] = sentence()
        hook.remove()
    return answers


if __name__ == "__main__":
    print(json.dumps(find_in_pytorch(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3]))))
