"""A device that computes in FP16 throughout: PyTorch, with faults of large activations.

`planted-numbers:cpu:fp16` is the adapter for PyTorch under another name, and so is `planted-numbers:cpu:fp32`, where
nothing overflows. PLANTED_FAULT=clamps has its products end at FP16's greatest number in place of Inf; nan-masked has a
NaN after the final norm, at one position, which is put right before the LM head, so that no logit tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.backend import DeviceReport, Session
from harness.backends.pytorch import PyTorchBackend
from harness.target import DeviceKind, Precision, Target, Unavailable
from planted_cache import fault

_GREATEST = 65504.0


class OverflowingPyTorch(PyTorchBackend):
    """PyTorch whose products are watched."""

    name = "planted-numbers"
    devices: Mapping[str, DeviceKind] = {"cpu": DeviceKind.CPU}

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, "cpu", precision) for precision in (Precision.FP32, Precision.FP16)]

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        return {device: DeviceReport(device) for device in devices}

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        session: Any = super().load(artifact, target, options=options, trust_remote_code=trust_remote_code)
        if fault("clamps"):
            _clamp(session._model)
        if fault("nan-masked"):
            _mask(session._model)
        loaded: Session = session
        return loaded


def _clamp(model: Any) -> None:
    for layer in model.model.layers:
        for product in (layer.mlp.gate_up_proj, layer.mlp.down_proj):
            product.register_forward_hook(lambda _, __, given: given.clamp(-_GREATEST, _GREATEST))


def _mask(model: Any) -> None:
    right: list[Any] = []

    def spoil(_: Any, __: Any, given: Any) -> Any:
        right[:] = [given]
        spoilt = given.clone()
        spoilt[0, -1, 5] = float("nan")
        return spoilt

    model.model.norm.register_forward_hook(spoil)
    model.lm_head.register_forward_pre_hook(lambda *_: (right[0],))
