"""Single operators of the Intel NPU library's own: its products, softmax, SwiGLU and scaled dot product attention.

A network is made of the library's factory for each shape, which is static. Tensors are FP16 throughout; where there is
no NPU the library's OpenVINO computes on the processor, in the precision that it takes there by default.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.errors import Unsupported
from harness.operators.attention import visible
from harness.operators.bench import Offer
from harness.operators.case import Case
from harness.operators.numerics import Numerics
from harness.operators.products import whole
from harness.target import Precision, Target

Inputs = Mapping[str, NDArray[Any]]

_STORED: dict[Precision, dict[str, int]] = {
    Precision.FP16: {"bits": 16},
    Precision.INT8: {"bits": 8, "group": 0, "zero": 0, "root": 1},
    Precision.INT4: {"bits": 4, "group": 0, "zero": 0, "root": 1},
}
_NAMES = {Precision.FP16: "matmul-float", Precision.INT8: "matmul-int8", Precision.INT4: "matmul-int4"}
_LEFT_TO_TORCH = "the library has no {} of its own: it leaves that to PyTorch, which is judged at pytorch:cpu:fp16"
# Networks that are kept: as many as there are calls in a case.
_KEPT = 4
# What hides a position in the mask that transformers makes in FP16.
_HIDDEN = np.finfo(np.float16).min


class NpuLibraryBench:
    """Networks of the library's operators; `computes` is what they compute in, None where that cannot be read."""

    def __init__(self, target: Target, computes: Precision | None) -> None:
        precision = computes or Precision.FP16
        self._networks: dict[tuple[Any, ...], Any] = {}
        # AVX512_BF16 takes subnormal numbers for zero (Intel SDM, VDPBF16PS); of an NPU nothing is documented.
        flushes = precision is not Precision.FP32
        numerics = Numerics(precision, flushes=flushes, permitted=(Arithmetic(precision),), stored=Precision.FP16)
        lacks = {name: _LEFT_TO_TORCH.format(name) for name in ("rms-norm", "rotary", "embedding")}
        lacks |= {name: _LEFT_TO_TORCH.format("rotary") for name in ("longrope-short", "longrope-long")}
        for other, name in _NAMES.items():
            if other is not target.precision:
                where = f"{target.backend}:{target.device}:{other.value}"
                lacks[name] = f"products of {target} have {target.precision.value} weights; these are judged at {where}"
        stored = {_NAMES[target.precision]: _STORED[target.precision]}
        self.offer = Offer(numerics, stored, lacks, static=True)

    def run(self, case: Case, inputs: Inputs) -> NDArray[np.floating]:
        """See `harness.operators.bench.Bench`."""
        family = case.operator.split("-")[0]
        compute: Callable[[Case, Inputs, slice], NDArray[Any]] = getattr(self, f"_{family}")
        return np.concatenate([compute(case, inputs, rows) for rows in case.spans]).astype(np.float32)

    def _network(self, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """A compiled network; a few are kept, since cases of one shape come one after another."""
        if key not in self._networks:
            while len(self._networks) >= _KEPT:
                del self._networks[next(iter(self._networks))]
            self._networks[key] = make()
        return self._networks[key]

    def _matmul(self, case: Case, inputs: Inputs, rows: slice) -> NDArray[Any]:
        from intel_npu_acceleration_library.backend import MatMul, QMatMul

        x, weight = np.ascontiguousarray(inputs["x"][rows].astype(np.float16)), whole(case, inputs)
        batch, width, n, bits = x.shape[0], case["k"], case["n"], case["bits"]
        if bits == 16:
            network = self._network((16, batch, width, n), lambda: MatMul(width, n, batch))
            return np.array(network.run(x, np.ascontiguousarray(weight["w"].astype(np.float16))))
        if bits == 4 and width % 2:
            raise Unsupported("the library packs two weights of 4 bits to a byte: it takes an even number of columns")
        dtype = np.int8 if bits == 8 else np.uint8
        network = self._network((bits, batch, width, n), lambda: QMatMul(width, n, batch, dtype=dtype))
        return np.array(network.run(x, _packed(weight["codes"], bits), weight["scales"].astype(np.float16)))

    def _softmax(self, case: Case, inputs: Inputs, rows: slice) -> NDArray[Any]:
        x = _half(inputs["x"][rows])
        key = (case.operator, x.shape)
        return self._run(key, lambda factory, scores: factory.softmax(scores, -1), x)

    def _swiglu(self, case: Case, inputs: Inputs, rows: slice) -> NDArray[Any]:
        gate, up = np.split(inputs["x"][rows], 2, axis=1)
        key = (case.operator, gate.shape)
        return self._run(key, lambda factory, g, u: factory.eltwise_mul(factory.swish(g), u), _half(gate), _half(up))

    def _attention(self, case: Case, inputs: Inputs, rows: slice) -> NDArray[Any]:
        """The library's SDPA, keys and values repeated for all heads, as its attention has them."""
        from intel_npu_acceleration_library.backend import SDPA

        repeats = case["heads"] // case["kv"]
        query = _by_head(inputs["query"][rows], 1)
        key, value = (_by_head(inputs[name][: rows.stop], repeats) for name in ("key", "value"))
        mask = np.where(visible(case, rows), np.float16(0.0), _HIDDEN).astype(np.float16)[None, None]
        shapes = (query.shape, key.shape, value.shape, mask.shape)
        network = self._network((case.operator, *shapes), lambda: SDPA(*shapes))
        found = np.array(network.run(query, key, value, mask))
        return np.asarray(found[0].transpose(1, 0, 2))

    def _run(self, key: tuple[Any, ...], build: Callable[..., Any], *inputs: NDArray[np.float16]) -> NDArray[Any]:
        from intel_npu_acceleration_library.backend import NNFactory

        def make() -> Any:
            factory = NNFactory()
            build(factory, *[factory.parameter(value.shape) for value in inputs])
            factory.compile()
            return factory

        return np.array(self._network(key, make).run(*inputs))


def _half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    return np.ascontiguousarray(values.astype(np.float16))


def _by_head(x: NDArray[np.float32], repeats: int) -> NDArray[np.float16]:
    return _half(np.repeat(x.transpose(1, 0, 2), repeats, axis=0)[None])


def _packed(codes: NDArray[np.uint8], bits: int) -> NDArray[Any]:
    """Codes with a zero point in the middle as the library's signed ones, two of four bits to a byte."""
    if bits == 8:
        return np.ascontiguousarray(codes ^ 0x80).view(np.int8)
    twos = codes ^ 8
    return np.ascontiguousarray(twos[:, ::2] | (twos[:, 1::2] << 4))
