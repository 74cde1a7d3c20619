"""Operators of Phi-3 as graphs of OpenVINO's operations, in the form that optimum-intel exports.

Weights are Convert, Subtract, Multiply, Reshape, Convert as NNCF writes them; RMSNorm is taken apart into powers, means
and roots; the rotary embedding computes its angles in the graph; attention is ScaledDotProductAttention over a state.
The plugin fuses these patterns, so that the kernels are the ones of a whole model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.operators.case import Case
from harness.operators.products import whole
from harness.operators.rowwise import EPSILON

Inputs = Mapping[str, NDArray[Any]]

# What hides a position in the exporter's mask.
_HIDDEN = -65504.0


def graph(case: Case, inputs: Inputs, span: slice | None) -> Any:
    """A model of the case's operator: for calls of any number of rows, or for one call, whose shapes are then static.

    Its inputs are those that `feeds` names, its output what the operator gives. A product by one follows, as products
    follow in a model: the CPU plugin computes what none follows in FP32, whatever it reports.
    """
    import openvino
    from openvino import opset13 as ops

    build = {
        "matmul": _matmul,
        "rms": _rms_norm,
        "swiglu": _swiglu,
        "softmax": _softmax,
        "embedding": _embedding,
        "rotary": _rotary,
        "longrope": _rotary,
        "attention": _attention,
    }[case.operator.split("-")[0]]
    rows = -1 if span is None else span.stop - span.start
    if "query" in inputs and span is not None:
        parameters, found, sinks = _attention_over(ops, case, span)
    else:
        parameters, found, sinks = build(ops, case, inputs, rows)
    if case.operator.split("-")[0] not in ("matmul", "embedding"):
        found = _product_by_one(ops, found)
    return openvino.Model([ops.result(found)], sinks, parameters, case.operator)


def feeds(case: Case, inputs: Inputs, rows: slice, *, stateless: bool) -> list[NDArray[Any]]:
    """What a call of `graph` is fed with, in the order of its parameters."""
    from harness.operators.attention import visible

    if case.operator == "embedding":
        return [inputs["ids"][None, rows]]
    if "positions" in inputs:
        return [_by_head(inputs["x"][rows]), inputs["positions"][None, rows]]
    if "query" in inputs:
        seen = visible(case, rows)[None, None]
        if stateless:
            kept = [_by_head(inputs[name][: rows.stop]) for name in ("key", "value")]
            return [_by_head(inputs["query"][rows]), *kept, seen]
        parts = [_by_head(inputs[name][rows]) for name in ("query", "key", "value")]
        return [*parts, seen, np.zeros(1, dtype=np.int32)]
    return [inputs["x"][None, rows]]


def result(found: NDArray[np.float32]) -> NDArray[np.float32]:
    """One call's result in the shape of its truth: heads after rows."""
    return np.asarray(found[0] if found.ndim == 3 else found[0].transpose(1, 0, 2))


def weight(ops: Any, case: Case, inputs: Inputs) -> Any:
    """A weight `[n, K]` in FP32, decompressed in the graph from what is stored."""
    inputs = whole(case, inputs) if "x" in inputs else inputs
    if "w" in inputs:
        if case["bits"] == 32:
            return ops.constant(inputs["w"])
        return ops.convert(ops.constant(inputs["w"].astype(np.float16)), "f32")
    n, width = inputs["codes"].shape
    groups = inputs["scales"].shape[1]
    shape = [n, width] if groups == 1 else [n, groups, width // groups]
    codes = ops.convert(_codes(ops, case, inputs["codes"], shape), "f16")
    grid = [n, 1] if groups == 1 else [n, groups, 1]
    if case["zero"]:
        zeros = ops.convert(ops.constant(inputs["zeros"].reshape(grid)), "f16")
        codes = ops.subtract(codes, zeros)
    scaled = ops.multiply(codes, ops.constant(inputs["scales"].astype(np.float16).reshape(grid)))
    if groups > 1:
        scaled = ops.reshape(scaled, np.array([n, width]), False)
    return ops.convert(scaled, "f32")


def _codes(ops: Any, case: Case, codes: NDArray[np.uint8], shape: list[int]) -> Any:
    """Codes as they are stored: u8, or i4 with two of them to a byte, the first in the low half."""
    import openvino

    if case["bits"] == 8:
        return ops.constant(codes.reshape(shape))
    twos = codes ^ 8  # unsigned with the zero point 8, as two's complement
    packed = np.ascontiguousarray(twos.reshape(-1, 2)[:, 0] | (twos.reshape(-1, 2)[:, 1] << 4))
    tensor = openvino.Tensor(openvino.Type.i4, openvino.Shape(shape))
    tensor.data.reshape(-1)[:] = packed.reshape(-1).view(
        tensor.data.dtype
    )  # a tensor made of an array shares its memory
    return ops.constant(tensor)


def _product_by_one(ops: Any, found: Any) -> Any:
    single = ops.unsqueeze(found, np.array([-1]))
    return ops.squeeze(ops.matmul(single, ops.constant(np.ones((1, 1), dtype=np.float32)), False, True), np.array([-1]))


def _matmul(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:
    x = ops.parameter([1, rows, case["k"]], np.float32)
    return [x], ops.matmul(x, weight(ops, case, inputs), False, True), []


def _rms_norm(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:
    x = ops.parameter([1, rows, case["n"]], np.float32)

    def one(value: float) -> Any:
        return ops.constant(np.full((1, 1, 1), value, dtype=np.float32))

    mean = ops.reduce_mean(ops.power(x, one(2.0)), np.array([-1]), True)
    inverse = ops.divide(one(1.0), ops.sqrt(ops.add(mean, one(EPSILON))))
    return [x], ops.multiply(ops.constant(inputs["weight"][None, None]), ops.multiply(x, inverse)), []


def _swiglu(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:  # noqa: ARG001
    x = ops.parameter([1, rows, 2 * case["n"]], np.float32)
    halves = ops.variadic_split(x, np.int64(-1), np.array([case["n"], case["n"]]))
    return [x], ops.multiply(halves.output(1), ops.swish(halves.output(0))), []


def _softmax(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:  # noqa: ARG001
    x = ops.parameter([1, rows, case["n"]], np.float32)
    return [x], ops.softmax(x, -1), []


def _embedding(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:
    ids = ops.parameter([1, rows], np.int64)
    return [ids], ops.gather(weight(ops, case, inputs), ops.convert(ids, "i32"), np.int32(0)), []


def _rotary(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:
    x = ops.parameter([1, case["heads"], rows, case["d"]], np.float32)
    positions = ops.parameter([1, rows], np.int64)
    frequencies = ops.constant(inputs["frequencies"][None, :, None])
    angles = ops.matmul(frequencies, ops.convert(ops.unsqueeze(positions, np.array([1])), "f32"), False, False)
    angles = ops.transpose(angles, np.array([0, 2, 1]))
    angles = ops.concat([angles, angles], -1)
    cosine, sine = (_factored(ops, function(angles), inputs["factor"]) for function in (ops.cos, ops.sin))
    whole, half = case["r"], case["r"] // 2
    rotated = _slice(ops, x, 0, whole) if whole < case["d"] else x
    turned = ops.multiply(_slice(ops, rotated, half, whole), ops.constant(np.float32(-1.0)))
    turned = ops.concat([turned, _slice(ops, rotated, 0, half)], -1)
    found = ops.add(ops.multiply(rotated, cosine), ops.multiply(turned, sine))
    if whole < case["d"]:
        found = ops.concat([found, _slice(ops, x, whole, case["d"])], -1)
    return [x, positions], found, []


def _factored(ops: Any, function: Any, factor: NDArray[np.float32]) -> Any:
    """Cosines or sines over all heads, by LongRoPE's factor where there is one."""
    if float(factor) != 1.0:
        function = ops.multiply(function, ops.constant(np.full((1, 1, 1), factor, dtype=np.float32)))
    return ops.unsqueeze(function, np.array([1]))


def _slice(ops: Any, x: Any, start: int, stop: int) -> Any:
    return ops.slice(x, np.array([start]), np.array([stop]), np.array([1]), np.array([3]))


def _attention(ops: Any, case: Case, inputs: Inputs, rows: int) -> Any:  # noqa: ARG001
    heads, kv, size = case["heads"], case["kv"], case["d"]
    query, key, value = (ops.parameter([1, n, rows, size], np.float32) for n in (heads, kv, kv))
    seen = ops.parameter([1, 1, rows, -1], bool)
    beams = ops.parameter([-1], np.int32)
    mask = ops.select(seen, ops.constant(np.float32(0.0)), ops.constant(np.float32(_HIDDEN)))
    sinks, kept = [], []
    for name, new in (("key", key), ("value", value)):
        # Empty at first, as long as there are beams.
        shape = ops.concat([ops.shape_of(beams), ops.constant(np.array([kv, 0, size]))], 0)
        empty = ops.broadcast(ops.constant(np.float32(0.0)), shape)
        past = ops.read_value(empty, f"past_key_values.0.{name}", np.float32, [-1, kv, -1, size])
        joined = ops.concat([ops.gather(past, beams, np.int32(0)), new], -2)
        sinks.append(ops.assign(joined, f"past_key_values.0.{name}"))
        kept.append(_repeated(ops, joined, heads // kv, heads, size))
    scale = ops.constant(np.float32(size**-0.5))
    found = ops.scaled_dot_product_attention(query, *kept, mask, scale, False)
    return [query, key, value, seen, beams], found, sinks


def _attention_over(ops: Any, case: Case, rows: slice) -> Any:
    """Attention over keys and values that are given, as where a device takes no state."""
    heads, kv, size = case["heads"], case["kv"], case["d"]
    count, length = rows.stop - rows.start, rows.stop
    query = ops.parameter([1, heads, count, size], np.float32)
    key, value = (ops.parameter([1, kv, length, size], np.float32) for _ in range(2))
    seen = ops.parameter([1, 1, count, length], bool)
    mask = ops.select(seen, ops.constant(np.float32(0.0)), ops.constant(np.float32(_HIDDEN)))
    kept = [_repeated(ops, x, heads // kv, heads, size) for x in (key, value)]
    scale = ops.constant(np.float32(size**-0.5))
    found = ops.scaled_dot_product_attention(query, *kept, mask, scale, False)
    return [query, key, value, seen], found, []


def _repeated(ops: Any, x: Any, times: int, heads: int, size: int) -> Any:
    """Keys or values `[1, kv, n, d]` for all heads, as the exporter repeats them."""
    if times == 1:
        return x
    shape = ops.shape_of(x)
    batch, length = (ops.gather(shape, np.array([axis]), np.int32(0)) for axis in (0, 2))
    kv = heads // times
    wide = ops.concat([batch, ops.constant(np.array([kv, times])), length, ops.constant(np.array([size]))], 0)
    spread = ops.broadcast(ops.unsqueeze(x, np.array([2])), wide, broadcast_spec="BIDIRECTIONAL")
    return ops.reshape(spread, np.array([0, heads, -1, size]), True)


def _by_head(x: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(x.transpose(1, 0, 2)[None])
