"""Single operators in PyTorch, as transformers' Phi-3 calls them, in the dtype of a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.operators.attention import visible
from harness.operators.bench import Offer
from harness.operators.case import Case
from harness.operators.numerics import Numerics
from harness.operators.products import whole
from harness.operators.rowwise import EPSILON
from harness.target import Precision, Target

Inputs = Mapping[str, NDArray[Any]]

_LACKS = {
    f"matmul-int{bits}": f"transformers computes Phi-3's products in floats; no target of PyTorch has INT{bits} weights"
    for bits in (8, 4)
}


class TorchBench:
    """Functions of torch and of transformers' Phi-3 on one device."""

    def __init__(self, target: Target, device: str) -> None:
        import torch

        self._torch = torch
        self._device = device
        precision = target.precision
        self._dtype = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[
            precision
        ]
        bits = {"bits": 32 if precision is Precision.FP32 else 16}
        # A GPU's FP32 products and functions are its own affair; sums of half precision are accumulated in FP32.
        numerics = Numerics(precision, permitted=(Arithmetic(precision),))
        self.offer = Offer(numerics, {"matmul-float": bits, "embedding": bits}, _LACKS)

    def run(self, case: Case, inputs: Inputs) -> NDArray[np.floating]:
        """See `harness.operators.bench.Bench`."""
        compute: Callable[[Case, Inputs], Any] = getattr(self, f"_{case.operator.split('-')[0]}")
        with self._torch.inference_mode():
            found = compute(case, inputs)
        return np.asarray(found.to(dtype=self._torch.float32, device="cpu").numpy())

    def _float(self, values: NDArray[Any]) -> Any:
        return self._torch.from_numpy(np.ascontiguousarray(values)).to(device=self._device, dtype=self._dtype)

    def _matmul(self, case: Case, inputs: Inputs) -> Any:
        weight, x = self._float(whole(case, inputs)["w"]), self._float(inputs["x"])
        return self._torch.cat([self._torch.nn.functional.linear(x[rows], weight) for rows in case.spans])

    def _rms(self, case: Case, inputs: Inputs) -> Any:
        from transformers.models.phi3.modeling_phi3 import Phi3RMSNorm

        norm = Phi3RMSNorm(case["n"], eps=EPSILON).to(device=self._device, dtype=self._dtype)
        norm.weight.data = self._float(inputs["weight"])
        return norm(self._float(inputs["x"]))

    def _swiglu(self, case: Case, inputs: Inputs) -> Any:  # noqa: ARG002 - the sizes are the arrays'
        gate, up = self._float(inputs["x"]).chunk(2, dim=-1)
        return up * self._torch.nn.functional.silu(gate)

    def _softmax(self, case: Case, inputs: Inputs) -> Any:  # noqa: ARG002 - the sizes are the arrays'
        scores = self._float(inputs["x"])
        return self._torch.nn.functional.softmax(scores, dim=-1, dtype=self._torch.float32).to(self._dtype)

    def _embedding(self, case: Case, inputs: Inputs) -> Any:  # noqa: ARG002 - the sizes are the arrays'
        ids = self._torch.from_numpy(inputs["ids"]).to(self._device)
        return self._torch.nn.functional.embedding(ids, self._float(inputs["w"]))

    def _rotary(self, case: Case, inputs: Inputs) -> Any:  # noqa: ARG002 - the sizes are the arrays'
        from transformers.models.phi3.modeling_phi3 import apply_rotary_pos_emb

        torch = self._torch
        frequencies = torch.from_numpy(inputs["frequencies"]).to(self._device)
        positions = torch.from_numpy(inputs["positions"]).to(self._device)
        angles = (frequencies[None, :, None] @ positions[None, None, :].float()).transpose(1, 2)
        angles = torch.cat((angles, angles), dim=-1)
        factor = float(inputs["factor"])
        cosine, sine = ((f(angles) * factor).to(self._dtype) for f in (torch.cos, torch.sin))
        x = self._float(inputs["x"]).transpose(0, 1)[None]
        rotated, _ = apply_rotary_pos_emb(x, x, cosine, sine)
        return rotated[0].transpose(0, 1)

    _longrope = _rotary

    def _attention(self, case: Case, inputs: Inputs) -> Any:
        """Call by call over a growing cache, by the attention that transformers takes by default."""
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        query, key, value = (self._float(inputs[name]).transpose(0, 1)[None] for name in ("query", "key", "value"))
        module = SimpleNamespace(num_key_value_groups=case["heads"] // case["kv"], is_causal=True)
        found = []
        for rows in case.spans:
            mask = self._torch.from_numpy(visible(case, rows))[None, None].to(self._device)
            kept = slice(0, rows.stop)
            mixed, _ = sdpa_attention_forward(
                module, query[:, :, rows], key[:, :, kept], value[:, :, kept], mask, scaling=case["d"] ** -0.5
            )
            found.append(mixed[0])
        return self._torch.cat(found)
