"""A device behind a driver that comes in two versions: PyTorch, with a kernel that the second version breaks.

`planted-driver:cpu:fp32` is the adapter for PyTorch under another name. PLANTED_FAULT=driver-2 is the newer driver:
its fused kernel takes the gate of the last layer's MLP for the other half and the other half for the gate.
PLANTED_FAULT=driver-2-mended is one that differs from the first in nothing but its version.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.backend import DeviceReport, Session
from harness.backends.pytorch import PyTorchBackend
from harness.target import DeviceKind, Precision, Target, Unavailable
from planted_cache import fault


class DrivenPyTorch(PyTorchBackend):
    """PyTorch behind a driver."""

    name = "planted-driver"
    devices: Mapping[str, DeviceKind] = {"cpu": DeviceKind.CPU}

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, "cpu", Precision.FP32)]

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        version = "32.0.100.4023" if fault("driver-2") or fault("driver-2-mended") else "32.0.100.3917"
        return {device: DeviceReport("a device with a driver", {"DRIVER_VERSION": version}) for device in devices}

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        session: Any = super().load(artifact, target, options=options, trust_remote_code=trust_remote_code)
        if fault("driver-2"):
            kernel = session._model.model.layers[-1].mlp.gate_up_proj
            kernel.register_forward_hook(lambda _, __, given: given.roll(given.shape[-1] // 2, -1))
        loaded: Session = session
        return loaded
