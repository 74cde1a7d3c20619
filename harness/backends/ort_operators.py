"""Single operators in ONNX Runtime, as graphs of the operations that GenAI's model builder writes.

Each is a model of one node or a few, run by an ONNX Runtime session on the target's execution provider; GenAI itself
loads whole models only, and runs them by the same engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.errors import Unsupported
from harness.operators.bench import Offer
from harness.operators.case import Case
from harness.operators.numerics import Numerics
from harness.operators.products import whole
from harness.operators.rowwise import EPSILON
from harness.target import Precision, Target

Inputs = Mapping[str, NDArray[Any]]
Built = tuple[list[Any], dict[str, NDArray[Any]]]
"""Nodes, and initializers by name. A node's output `y` is the result, inputs of the graph are those that are
neither."""

_DOMAIN = "com.microsoft"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "dml": "DmlExecutionProvider", "cuda": "CUDAExecutionProvider"}
# Columns that share a scale, and int8 activations, by the builder's defaults.
_BLOCK = 32
_INT8_ACTIVATIONS = 4
# Bytes of a constant that is given to a session apart from its model.
_LARGE = 1 << 20


class OrtBench:
    """Models of single operators, on a target's execution provider with its options.

    Raises Unsupported where ONNX Runtime, or the provider, is not installed.
    """

    def __init__(self, target: Target, provider_options: Mapping[str, str]) -> None:
        try:
            import onnxruntime
        except ImportError:  # some builds of GenAI bring the library and not its Python package
            raise Unsupported(
                "the interpreter has GenAI and no onnxruntime package", "python -m pip install onnxruntime"
            ) from None
        self._runtime = onnxruntime
        self._provider = _PROVIDERS[target.base_device]
        if self._provider not in onnxruntime.get_available_providers():
            raise Unsupported(
                f"this ONNX Runtime has no {self._provider}", "install the build of ONNX Runtime for the device"
            )
        self._options = dict(provider_options)
        self._last: tuple[Any, Any] | None = None
        self._cpu = target.base_device == "cpu"
        half = not self._cpu and target.precision is not Precision.FP32
        computes = Precision.FP16 if half else Precision.FP32
        self._dtype = np.float16 if half else np.float32
        blocks = (0, _BLOCK) if self._cpu else (0,)
        permitted = tuple(Arithmetic(computes, block) for block in blocks)
        numerics = Numerics(computes, Precision.FP32, half, permitted)
        self.offer = Offer(numerics, _weights(target), _lacks(target))

    def run(self, case: Case, inputs: Inputs) -> NDArray[np.floating]:
        """See `harness.operators.bench.Bench`."""
        session = self._session(case, inputs)
        if "query" in inputs:
            return self._attend(session, case, inputs)
        if "positions" in inputs:
            return self._rotate(session, case, inputs)
        name = "ids" if case.operator == "embedding" else "x"
        values = inputs[name] if name == "ids" else inputs[name].astype(self._dtype)
        parts = [session.run(["y"], {name: values[None, rows]})[0][0] for rows in case.spans]
        return np.concatenate(parts).astype(np.float32)

    def _attend(self, session: Any, case: Case, inputs: Inputs) -> NDArray[np.floating]:
        """Call by call, each given the keys and values that the one before has returned."""
        size = case["d"]
        past = dict.fromkeys(("past_key", "past_value"), np.zeros((1, case["kv"], 0, size), dtype=self._dtype))
        parts = []
        for rows in case.spans:
            flat = {n: inputs[n][rows].reshape(1, -1, inputs[n].shape[1] * size) for n in ("query", "key", "value")}
            fed = {name: value.astype(self._dtype) for name, value in flat.items()}
            fed |= {"last": np.asarray([rows.stop - 1], np.int32), "total": np.asarray(rows.stop, np.int32)}
            found, key, value = session.run(["y", "present_key", "present_value"], {**fed, **past})
            past = {"past_key": key, "past_value": value}
            parts.append(found[0].reshape(-1, case["heads"], size))
        return np.concatenate(parts).astype(np.float32)

    def _rotate(self, session: Any, case: Case, inputs: Inputs) -> NDArray[np.floating]:
        """The keys that GroupQueryAttention puts into its cache are rotated, and it attends by nothing else."""
        heads, size, first = case["heads"], case["d"], case["first"]
        if case["r"] % 16:
            raise Unsupported(f"GroupQueryAttention rotates a multiple of 16 components, not {case['r']}")
        x = inputs["x"].astype(self._dtype)
        angles = np.arange(first + case.count)[:, None] * inputs["frequencies"].astype(np.float64)
        factor = float(inputs["factor"])
        tables = {name: (f(angles) * factor).astype(self._dtype) for name, f in (("cos", np.cos), ("sin", np.sin))}
        past = np.zeros((1, heads, first, size), dtype=self._dtype)
        flat = x.reshape(1, case.count, heads * size)
        fed = {"query": flat, "key": flat, "value": flat, "past_key": past, "past_value": past, **tables}
        fed["last"] = np.asarray([first + case.count - 1], np.int32)
        fed["total"] = np.asarray(first + case.count, np.int32)
        (keys,) = session.run(["present_key"], fed)
        return np.asarray(keys[0, :, first:].transpose(1, 0, 2), dtype=np.float32)

    def _session(self, case: Case, inputs: Inputs) -> Any:
        """The case's model; the last one is kept, since cases of one shape and weight come one after another."""
        key = (case.operator, tuple(case.sizes.items()), case.seed)
        if self._last is None or self._last[0] != key:
            self._last = None  # the memory of the one before is needed
            self._last = (key, self._load(*model(case, inputs, self._dtype, int8=self._cpu)))
        return self._last[1]

    def _load(self, built: bytes, large: Mapping[str, NDArray[Any]]) -> Any:
        options = self._runtime.SessionOptions()
        values = [self._runtime.OrtValue.ortvalue_from_numpy(value) for value in large.values()]
        if large:
            options.add_external_initializers(list(large), values)
        if self._provider != _PROVIDERS["cpu"]:
            # What the device cannot run must not be computed elsewhere without a word.
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        providers = [(self._provider, self._options)]
        return self._runtime.InferenceSession(built, options, providers=providers)


def _weights(target: Target) -> dict[str, dict[str, int]]:
    bits = {"bits": 32 if target.precision is Precision.FP32 or target.base_device == "cpu" else 16}
    found = {"embedding": bits}
    if target.precision in (Precision.INT8, Precision.INT4):
        wide = 8 if target.precision is Precision.INT8 else 4
        return {**found, f"matmul-int{wide}": {"bits": wide, "group": _BLOCK, "zero": 0, "root": 0}}
    return {**found, "matmul-float": bits}


def _lacks(target: Target) -> dict[str, str]:
    lacks = {}
    for kind in ("float", "int8", "int4"):
        if f"matmul-{kind}" not in _weights(target):
            other = f"{target.backend}:{target.device}:{'fp32' if kind == 'float' else kind}"
            what = f"the builder writes no {kind} product at {target.precision.value}"
            lacks[f"matmul-{kind}"] = f"{what}; they are judged at {other}"
    return lacks


def model(case: Case, inputs: Inputs, dtype: Any, *, int8: bool) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """A serialised model of a case's operator, in the form of GenAI's builder; `int8` states accuracy_level 4.

    Constants too large to be serialised in no time come beside it, by name.
    """
    from onnx import TensorProto, helper, numpy_helper

    build: dict[str, Callable[..., Built]] = {
        "matmul": _matmul,
        "rms": _rms_norm,
        "swiglu": _swiglu,
        "softmax": _softmax,
        "embedding": _embedding,
        "rotary": _attention,
        "longrope": _attention,
        "attention": _attention,
    }
    family = case.operator.split("-")[0]
    nodes, constants = build[family](helper, case, inputs, dtype, int8)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    made = {name for node in nodes for name in node.output}
    fed = [name for node in nodes for name in node.input if name and name not in made and name not in constants]
    types = {"ids": TensorProto.INT64, "last": TensorProto.INT32, "total": TensorProto.INT32}
    inputs_of = [helper.make_tensor_value_info(name, types.get(name, element), None) for name in dict.fromkeys(fed)]
    shapes = {"total": [], "last": [1]}
    for value in inputs_of:
        if value.name in shapes:
            value.CopyFrom(helper.make_tensor_value_info(value.name, TensorProto.INT32, shapes[value.name]))
    results = [name for name in ("y", "present_key", "present_value") if name in made]
    outputs = [helper.make_tensor_value_info(name, element, None) for name in results]
    large = {name: np.ascontiguousarray(value) for name, value in constants.items() if value.nbytes > _LARGE}
    tensors = [
        _elsewhere(name, value) if name in large else numpy_helper.from_array(value, name)
        for name, value in constants.items()
    ]
    graph = helper.make_graph(nodes, case.operator, inputs_of, outputs, tensors)
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid(_DOMAIN, 1)]
    made_of_it = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    return bytes(made_of_it.SerializeToString()), large


def _elsewhere(name: str, value: NDArray[Any]) -> Any:
    """A constant whose values the session is given apart from the model."""
    from onnx import TensorProto, helper

    found = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(value.dtype), dims=value.shape)
    found.data_location = TensorProto.EXTERNAL
    found.external_data.add(key="location", value="given-apart")
    return found


def _matmul(helper: Any, case: Case, inputs: Inputs, dtype: Any, int8: bool) -> Built:
    inputs = whole(case, inputs)
    if "w" in inputs:
        return [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ascontiguousarray(inputs["w"].T.astype(dtype))}
    bits, block, (n, width) = case["bits"], case["group"], inputs["codes"].shape
    groups = inputs["scales"].shape[1]
    codes = np.pad(inputs["codes"], ((0, 0), (0, groups * block - width)))
    packed = codes if bits == 8 else codes[:, ::2] | (codes[:, 1::2] << 4)
    sizes: dict[str, int] = {"K": width, "N": n, "bits": bits, "block_size": block}
    if int8:
        sizes["accuracy_level"] = _INT8_ACTIVATIONS
    node = helper.make_node("MatMulNBits", ["x", "codes", "scales"], ["y"], domain=_DOMAIN, **sizes)
    scales = inputs["scales"].astype(dtype)
    return [node], {"codes": packed.reshape(n, groups, block * bits // 8), "scales": scales}


def _rms_norm(helper: Any, case: Case, inputs: Inputs, dtype: Any, int8: bool) -> Built:  # noqa: ARG001
    node = helper.make_node(
        "SimplifiedLayerNormalization", ["x", "weight"], ["y"], epsilon=EPSILON, axis=-1, stash_type=1
    )
    return [node], {"weight": inputs["weight"].astype(dtype)}


def _swiglu(helper: Any, case: Case, inputs: Inputs, dtype: Any, int8: bool) -> Built:  # noqa: ARG001
    halves = np.asarray([case["n"], case["n"]], dtype=np.int64)
    nodes = [
        helper.make_node("Split", ["x", "halves"], ["gate", "up"], axis=-1),
        helper.make_node("Sigmoid", ["gate"], ["share"]),
        helper.make_node("Mul", ["gate", "share"], ["silu"]),
        helper.make_node("Mul", ["silu", "up"], ["y"]),
    ]
    return nodes, {"halves": halves}


def _softmax(helper: Any, case: Case, inputs: Inputs, dtype: Any, int8: bool) -> Built:  # noqa: ARG001
    return [helper.make_node("Softmax", ["x"], ["y"], axis=-1)], {}


def _embedding(helper: Any, case: Case, inputs: Inputs, dtype: Any, int8: bool) -> Built:  # noqa: ARG001
    return [helper.make_node("Gather", ["table", "ids"], ["y"])], {"table": inputs["w"].astype(dtype)}


def _attention(helper: Any, case: Case, inputs: Inputs, dtype: Any, int8: bool) -> Built:  # noqa: ARG001
    """GroupQueryAttention; for the rotary embedding with tables, which rotate queries and keys as they come."""
    rotates = "positions" in inputs
    fed: Sequence[str] = ["query", "key", "value", "past_key", "past_value", "last", "total"]
    heads = case["heads"]
    node = helper.make_node(
        "GroupQueryAttention",
        [*fed, "cos", "sin"] if rotates else fed,
        ["y", "present_key", "present_value"],
        domain=_DOMAIN,
        num_heads=heads,
        kv_num_heads=heads if rotates else case["kv"],
        scale=case["d"] ** -0.5,
        local_window_size=(not rotates and case["window"]) or -1,
        do_rotary=int(rotates),
        rotary_interleaved=0,
    )
    return [node], {}
