"""How the adapters store a drawn weight, and which operations their graphs are of; no runtime is needed for it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from harness.backends.npu_library_operators import _packed
from harness.backends.ort_operators import model
from harness.codes import signed, unpack
from harness.operators.case import parse_case
from harness.operators.catalogue import operator_of
from harness.operators.products import stored_weight, whole

CASES = {
    "matmul-float/fp32/2/k=33,n=17,bits=32/plain/1": ["MatMul"],
    "matmul-int8/fp32/2/k=64,n=17,bits=8,group=32,zero=0,root=0/plain/1": ["MatMulNBits"],
    "matmul-int4/fp32/2/k=64,n=17,bits=4,group=32,zero=0,root=0/plain/1": ["MatMulNBits"],
    "rms-norm/fp32/2/n=33/plain/1": ["SimplifiedLayerNormalization"],
    "rotary/fp32/2/heads=2,d=32,r=32,first=1/plain/1": ["GroupQueryAttention"],
    "attention-window/fp32/2+1/heads=2,kv=1,d=32,window=3/plain/1": ["GroupQueryAttention"],
    "swiglu/fp32/2/n=33/plain/1": ["Split", "Sigmoid", "Mul", "Mul"],
    "softmax/fp32/2/n=33/plain/1": ["Softmax"],
    "embedding/fp32/2/n=33,v=5,bits=32/plain/1": ["Gather"],
}


def built(text: str, *, int8: bool = True) -> tuple[Any, dict[str, Any], Any, Any]:
    case = parse_case(text)
    inputs = operator_of(case).draw(case)
    serialised, large = model(case, inputs, np.float32, int8=int8)
    return onnx.load_from_string(serialised), large, case, inputs


@pytest.mark.parametrize(("text", "operations"), CASES.items())
def test_a_graph_has_the_operations_of_genais_builder(text: str, operations: list[str]) -> None:
    graph = built(text)[0].graph
    assert [node.op_type for node in graph.node] == operations
    assert {value.name for value in graph.output} >= {"y"}


def test_the_window_and_the_scale_are_stated() -> None:
    (node,) = built("attention-window/fp32/2+1/heads=2,kv=1,d=32,window=3/plain/1")[0].graph.node
    stated = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert (stated["local_window_size"], stated["do_rotary"], stated["kv_num_heads"]) == (3, 0, 1)
    assert stated["scale"] == pytest.approx(32**-0.5)
    (node,) = built("attention/fp32/2+1/heads=2,kv=1,d=32,window=0/plain/1")[0].graph.node
    stated = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    assert stated["local_window_size"] == -1


@pytest.mark.parametrize("bits", [8, 4])
def test_stored_codes_stand_for_the_weight_that_is_meant(bits: int) -> None:
    text = f"matmul-int{bits}/fp32/2/k=64,n=17,bits={bits},group=32,zero=0,root=0/plain/1"
    found, _, case, inputs = built(text)
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in found.graph.initializer}
    codes = unpack(stored["codes"].reshape(17, -1), bits).astype(np.float64)
    weight = (codes - 2 ** (bits - 1)).reshape(17, 2, 32) * stored["scales"][..., None]
    assert np.array_equal(weight.reshape(17, 64), stored_weight(case, inputs))
    twos = _packed(inputs["codes"], bits)
    given = twos if bits == 8 else signed(unpack(twos, 4), 4)
    assert np.array_equal(given, inputs["codes"].astype(np.int16) - 2 ** (bits - 1))


def test_int8_activations_are_asked_for_where_the_builder_asks_for_them() -> None:
    text = "matmul-int4/fp32/2/k=64,n=17,bits=4,group=32,zero=0,root=0/plain/1"
    for int8, level in ((True, [4]), (False, [])):
        (node,) = built(text, int8=int8)[0].graph.node
        assert [a.i for a in node.attribute if a.name == "accuracy_level"] == level


def test_a_large_constant_is_given_apart_and_a_weight_repeats_its_rows() -> None:
    found, large, case, inputs = built("matmul-float/fp32/1/k=512,n=2062,bits=32/plain/1")
    assert list(large) == ["w"]
    (tensor,) = found.graph.initializer
    assert tensor.data_location == onnx.TensorProto.EXTERNAL
    assert large["w"].shape == tuple(tensor.dims) == (512, 2062)
    assert inputs["w"].shape == (1031, 512)
    assert np.array_equal(large["w"].T, np.tile(inputs["w"], (2, 1)))
    assert np.array_equal(whole(case, inputs)["w"], large["w"].T)
