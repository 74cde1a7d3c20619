"""Single products out of an OpenVINO model: a MatMul with its decompression, compiled alone like the whole model."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from harness.errors import Unsupported
from harness.products import INPUTS, OUTPUTS, Products, drawn

# The two products of a layer whose weights stand alone in every export: the others may be joined.
_NAME = re.compile(r"(model\.layers\.\d+\.(?:self_attn\.o_proj|mlp\.down_proj))/.*MatMul")


def products(model: Any) -> Products:
    """The products of the first and the last layer of an OVModelForCausalLM, by the device and properties it has.

    Raises Unsupported where the IR does not name its operations as optimum-cli does.
    """
    found: Products = {}
    for number, (name, node) in enumerate(_ends(model.model)):
        inputs = drawn(node.input(0).get_partial_shape()[-1].get_length(), number)
        compiled = _compile(model, node)
        outputs = np.array(compiled([inputs[None]])[0][0], dtype=np.float32)
        found[f"{name}.weight"] = {INPUTS: inputs, OUTPUTS: outputs}
    if not found:
        raise Unsupported("the IR has no product of a layer by its name", "export the checkpoint with optimum-cli")
    return found


def _ends(model: Any) -> list[tuple[str, Any]]:
    """The products of the first and of the last layer by name."""
    matched = [(_NAME.search(node.get_friendly_name()), node) for node in model.get_ordered_ops()]
    named = [(name[1], node) for name, node in matched if name and node.get_type_name() == "MatMul"]
    named.sort(key=lambda pair: int(pair[0].split(".")[2]))
    return named if len(named) <= 4 else named[:2] + named[-2:]


def _compile(model: Any, node: Any) -> Any:
    """A model of the product alone: what feeds it becomes an input, its weights stay as they are stored."""
    import openvino
    from openvino import opset13

    width = node.input(0).get_partial_shape()[-1].get_length()
    fed = opset13.parameter([-1, -1, width], np.float32)
    attributes = node.get_attributes()
    product = opset13.matmul(fed, node.input_value(1), bool(attributes["transpose_a"]), bool(attributes["transpose_b"]))
    alone = openvino.Model([opset13.result(product)], [fed], "product").clone()
    return openvino.Core().compile_model(alone, model._device, {**model.ov_config, "CACHE_DIR": ""})
