"""The Intel NPU Acceleration Library, which has an interpreter of its own (its dependencies clash with all others)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.backend import DeviceReport, Recipe, Session, SessionInfo, check_options, versions_of
from harness.backends.causal_lm import CausalLMSession
from harness.errors import UsageError
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable

_DISTRIBUTION = "intel-npu-acceleration-library"
_REMEDY = "needs an Intel NPU and its driver (Windows: 32.0.100.2408 or later)"


class NpuLibraryBackend:
    """Phi-3 in the Intel NPU Acceleration Library, 1.4.0 being the last release. Never yet run on an NPU."""

    name = "npu-library"
    distributions = (_DISTRIBUTION,)
    install = (
        "Windows, Python 3.10 to 3.12, in an interpreter of its own: python -m pip install -e .[npu-library], "
        "then pytest --interpreter npu-library=PATH"
    )
    devices: Mapping[str, DeviceKind] = {"npu": DeviceKind.NPU}

    def targets(self) -> Sequence[Target]:
        """The NPU at the three precisions the library compiles to."""
        return [Target(self.name, "npu", p) for p in (Precision.FP16, Precision.INT8, Precision.INT4)]

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        """Nothing is exported: the library quantises the checkpoint while loading it."""
        if name is not None:
            raise UsageError(f"{target} has no recipe {name!r}: the checkpoint itself is loaded", "leave --recipe out")
        return None

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        """Ask the library; without an NPU it would warn and compute on the CPU, so this is not left to the load."""
        from intel_npu_acceleration_library import backend

        if not backend.npu_available():
            return dict.fromkeys(devices, Unavailable("the library finds no NPU", _REMEDY))
        return dict.fromkeys(devices, DeviceReport("NPU", {"driver": str(backend.get_driver_version())}))

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """Never called: `recipe` gives none."""
        raise NotImplementedError(f"nothing is exported from {checkpoint} to {out} ({recipe.name})")

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        """Compile the checkpoint for the NPU at the target's precision."""
        import torch
        from intel_npu_acceleration_library import NPUModelForCausalLM
        from intel_npu_acceleration_library.compiler import CompilerConfig
        from intel_npu_acceleration_library.dtypes import int4, int8

        check_options(self.name, options, {})
        dtype = {Precision.FP16: torch.float16, Precision.INT8: int8, Precision.INT4: int4}[target.precision]
        model = NPUModelForCausalLM.from_pretrained(
            str(artifact),
            config=CompilerConfig(dtype=dtype),
            export=False,  # the library's own cache is relative to the working directory and keyed by name
            use_cache=True,
            use_safetensors=True,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )
        return NpuLibrarySession(model, _info(model, options))


class NpuLibrarySession(CausalLMSession):
    """A compiled model."""

    def evidence(self) -> Evidence:
        """The library says whether there is an NPU, not whether it was used; that takes a busy counter."""
        from intel_npu_acceleration_library import backend

        available = bool(backend.npu_available())
        kind = DeviceKind.NPU if available else DeviceKind.CPU
        return Evidence(EvidenceLevel.NONE, (kind,), (kind.value.upper(),), "npu_available() of the library")


def _info(model: Any, options: Mapping[str, str]) -> SessionInfo:
    return SessionInfo(
        vocabulary=int(model.config.vocab_size),
        arithmetic=Precision.FP16,
        properties={"attention": "sdpa"},
        versions=versions_of((_DISTRIBUTION, "torch", "transformers")),
        load_options=dict(options),
    )
