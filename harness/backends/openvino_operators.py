"""Single operators in OpenVINO, compiled on a target's device with the runtime's defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.backends.openvino_graphs import feeds, graph, result
from harness.operators.bench import Offer
from harness.operators.case import Case
from harness.operators.numerics import Numerics
from harness.target import Precision, Target

Properties = Mapping[str, str]

_FLOAT = "the artifacts of {target} have no float weights but norms, which are judged in rms-norm"
_OTHER = "no product of {target} has {bits} bit weights; they are judged at openvino:{device}:int{bits}"
# How NNCF stores weights by default: 8 bits for a row with a zero point, 4 bits for 128 columns without.
_INT8 = {"bits": 8, "group": 0, "zero": 1, "root": 0}
_INT4 = {"bits": 4, "group": 128, "zero": 0, "root": 0}


class OpenVinoBench:
    """Graphs compiled one by one, on an NPU and by NPUW one for each number of rows.

    `read` says, of a compiled graph, what it computes in and what that permits: see `OpenVinoBackend`.
    """

    def __init__(
        self,
        target: Target,
        device: str,
        config: Mapping[str, str],
        read: Callable[[Any, Any], tuple[Precision | None, tuple[Arithmetic, ...]]],
    ) -> None:
        import openvino

        self._core = openvino.Core()
        self._target, self._device, self._config = target, device, dict(config)
        self._shape: Any = None
        self._graphs: dict[str, Any] = {}
        self._static = device.startswith("NPU")
        probe = Case("softmax", Precision.FP32, (1,), {"n": 2})
        compiled = self._compile(probe, {"x": np.zeros((1, 2), dtype=np.float32)}, slice(0, 1))
        precision, permitted = read(self._core, compiled)
        computes = precision or Precision.FP16
        # AVX512_BF16 and AMX take subnormal numbers for zero (Intel SDM, VDPBF16PS); so do GPUs and NPUs where faster.
        flushes = computes is not Precision.FP32
        numerics = Numerics(computes, Precision.FP32, flushes, permitted or (Arithmetic(computes),))
        self.offer = Offer(numerics, _weights(target), _lacks(target), static=self._static)

    def run(self, case: Case, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.floating]:
        """See `harness.operators.bench.Bench`."""
        request: Any = None
        parts = []
        for rows in case.spans:
            if request is None or self._static:
                request = self._compiled(case, inputs, rows if self._static else None).create_infer_request()
            fed = feeds(case, inputs, rows, stateless=self._static)
            given = [np.ascontiguousarray(value) for value in fed]
            parts.append(result(np.array(request.infer(given)[0], dtype=np.float32)))
        return np.concatenate(parts)

    def _compiled(self, case: Case, inputs: Mapping[str, NDArray[Any]], rows: slice | None) -> Any:
        """The case's graph; those of one shape and weight are kept, since such cases come one after another."""
        key = (case.operator, tuple(case.sizes.items()), case.seed)
        if self._shape != key:
            self._shape, self._graphs = key, {}
        if str(rows) not in self._graphs:
            self._graphs[str(rows)] = self._compile(case, inputs, rows)
        return self._graphs[str(rows)]

    def _compile(self, case: Case, inputs: Mapping[str, NDArray[Any]], rows: slice | None) -> Any:
        model = graph(case, inputs, rows)
        if self._target.precision in (Precision.FP32, Precision.FP16):
            # The exporter writes this into every float model, and with it the CPU plugin keeps the cache in FP16.
            model.set_rt_info("f16", ["runtime_options", "KV_CACHE_PRECISION"])
        return self._core.compile_model(model, self._device, self._config)


def _weights(target: Target) -> dict[str, dict[str, int]]:
    bits = {"bits": 32 if target.precision is Precision.FP32 else 16}
    found = {
        Precision.INT8: {"matmul-int8": _INT8, "embedding": _INT8},
        # The layers that lose most, and embedding and LM head, are kept in 8 bits.
        Precision.INT4: {"matmul-int8": _INT8, "matmul-int4": _INT4, "embedding": _INT8},
    }
    return found.get(target.precision, {"matmul-float": bits, "embedding": bits})


def _lacks(target: Target) -> dict[str, str]:
    offered = _weights(target)
    found = {}
    if "matmul-float" not in offered:
        found["matmul-float"] = _FLOAT.format(target=target)
    for bits in (8, 4):
        if f"matmul-int{bits}" not in offered:
            found[f"matmul-int{bits}"] = _OTHER.format(target=target, bits=bits, device=target.device)
    return found
