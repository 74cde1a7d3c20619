"""The adapters of this project, made to fall back in the ways that runtimes do: real artifacts, real runtimes.

`planted-openvino:npu` compiles for `AUTO:NPU,CPU`, or with PLANTED_FAULT=npuw-both through NPUW with the CPU
behind the NPU. `planted-ort:dml` loses its execution provider on the way. `planted-npu-library:npu` goes on where the
library has warned that there is no NPU. Each claims the device it was asked for, and on a machine without that device
computes right numbers on the processor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness.backend import DeviceReport, Recipe
from harness.backends.npu_library import NpuLibraryBackend
from harness.backends.openvino import OpenVinoBackend
from harness.backends.ort_genai import OrtGenAIBackend
from harness.target import DeviceKind, Precision, Target, Unavailable
from planted_cache import fault


class FallingOpenVino(OpenVinoBackend):
    """OpenVINO that lets the plugin choose."""

    name = "planted-openvino"
    devices: Mapping[str, DeviceKind] = {"npu": DeviceKind.NPU}

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, "npu", Precision.FP16)]

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        return {device: DeviceReport("an NPU, it says") for device in devices}

    def compile_for(self, target: Target, options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        if fault("npuw-both"):
            config = {"NPU_USE_NPUW": "YES", "NPUW_LLM": "YES", "NPUW_DEVICES": "NPU,CPU"}
            return "NPU", {"CACHE_DIR": "", "NPUW_ONLINE_PIPELINE": "NONE", **config}
        return "AUTO:NPU,CPU", {"CACHE_DIR": ""}


class FallingOrt(OrtGenAIBackend):
    """ONNX Runtime whose provider takes no node, so that the CPU takes them all."""

    name = "planted-ort"
    devices: Mapping[str, DeviceKind] = {"dml": DeviceKind.GPU}

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, "dml", Precision.INT4)]

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        return super().recipe(Target("ort-genai", "cpu", target.precision), name)

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        return {device: DeviceReport("an adapter, it says") for device in devices}

    def choose_provider(
        self, config: Any, target: Target, settings: Mapping[str, Any], options: Mapping[str, str]
    ) -> None:
        config.clear_providers()


class FallingNpuLibrary(NpuLibraryBackend):
    """The NPU library, whose warning nobody heeds."""

    name = "planted-npu-library"
    devices: Mapping[str, DeviceKind] = {"npu": DeviceKind.NPU}

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, "npu", Precision.FP16)]

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        return {device: DeviceReport("an NPU, it says") for device in devices}
