"""The Intel NPU Acceleration Library, which has an interpreter of its own (its dependencies clash with all others)."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from harness.arithmetic import Arithmetic, CachePrecision, Weights
from harness.backend import Capabilities, DeviceReport, Recipe, Session, SessionInfo, check_options, versions_of
from harness.backends.causal_lm import CausalLMSession
from harness.backends.hf_tokenizer import HfTokenizer
from harness.backends.npu_library_operators import NpuLibraryBench
from harness.backends.npu_library_weights import KeptWeights, keep
from harness.backends.torch_states import watched
from harness.errors import Unsupported, UsageError
from harness.operators.bench import Bench
from harness.states import States, gather
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable
from harness.weights import ArtifactWeights

_DISTRIBUTION = "intel-npu-acceleration-library"
_KINDS = {"npu": DeviceKind.NPU, "cpu": DeviceKind.CPU}
_PHI3 = Path("models", "phi3", "configuration_phi3.py")
_ABSENT = Unavailable(
    "the library finds no NPU and would compute on the CPU", "needs an Intel NPU and its driver (2408 or later)"
)
_NO_FALLBACK = Unavailable(
    "the library takes the NPU wherever there is one", "npu-library:cpu is for machines without an NPU"
)


class NpuLibraryBackend:
    """Phi-3 in the Intel NPU Acceleration Library, 1.4.0 being the last release.

    `cpu` is the library's own fallback where there is no NPU: the same path but for the device, under a
    name of kind cpu. Never yet run on an NPU.
    """

    name = "npu-library"
    distributions = (_DISTRIBUTION,)
    install = "python -m tox -e npu-library (Python 3.10 to 3.12; an interpreter of its own, found by itself)"
    devices: Mapping[str, DeviceKind] = _KINDS
    one_model_a_process = True
    """The library aborts when a second model is made."""

    def __init__(self) -> None:
        self._loaded = False

    def targets(self) -> Sequence[Target]:
        """Both devices at the three precisions the library compiles to."""
        precisions = (Precision.FP16, Precision.INT8, Precision.INT4)
        return [Target(self.name, device, precision) for device in _KINDS for precision in precisions]

    def is_slow(self, target: Target) -> bool:
        """The fallback with integer weights, which takes 0.2 s for a token of a model of 6 million parameters."""
        return target.base_device == "cpu" and target.precision in (Precision.INT8, Precision.INT4)

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        """Nothing is exported: the library quantises the checkpoint while loading it."""
        if name is not None:
            raise UsageError(f"{target} has no recipe {name!r}: the checkpoint itself is loaded", "leave --recipe out")
        return None

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        """Ask the library; without an NPU it would warn and compute on the CPU, so this is not left to the load."""
        from intel_npu_acceleration_library import backend

        present = bool(backend.npu_available())
        report = DeviceReport("NPU", {"NPU_DRIVER_VERSION": str(backend.get_driver_version())}) if present else _ABSENT
        fallback = _NO_FALLBACK if present else DeviceReport("CPU", {"role": "the library's fallback without an NPU"})
        known: dict[str, DeviceReport | Unavailable] = {"npu": report, "cpu": fallback}
        unknown = Unavailable("the library knows one NPU and no index", "name npu")
        return {device: known.get(device, unknown) for device in devices}

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """Never called: `recipe` gives none."""
        raise NotImplementedError(f"nothing is exported from {checkpoint} to {out} ({recipe.name})")

    def dequantized_weights(self, artifact: Path, config: Mapping[str, Any]) -> ArtifactWeights:
        """Read what `NpuLibrarySession.keep_weights` wrote. Raises ArtifactError, see `KeptWeights`."""
        return KeptWeights(artifact, config)

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        """Compile the checkpoint for the NPU at the target's precision."""
        _check_rotary(artifact)
        import torch
        from intel_npu_acceleration_library import NPUModelForCausalLM
        from intel_npu_acceleration_library.compiler import CompilerConfig
        from intel_npu_acceleration_library.dtypes import int4, int8

        check_options(self.name, options, {})
        if self._loaded:
            raise UsageError("the library ends the process at the second model", "load each in a worker of its own")
        self._loaded = True
        dtype = {Precision.FP16: torch.float16, Precision.INT8: int8, Precision.INT4: int4}[target.precision]
        model = NPUModelForCausalLM.from_pretrained(
            str(artifact),
            config=CompilerConfig(dtype=dtype),
            export=False,  # the library's own cache is relative to the working directory and keyed by name
            use_cache=True,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
        )
        return NpuLibrarySession(model, _info(model, options), artifact, trust_remote_code)

    def operators(self, target: Target) -> Bench:
        """See `harness.operators.bench.RunsOperators`. Networks of one operator do not take the process down."""
        return NpuLibraryBench(target, _arithmetic())


class NpuLibrarySession(CausalLMSession):
    """A compiled model. One to a process: the library aborts when a second one is made."""

    def __init__(self, model: Any, info: SessionInfo, artifact: Path, trust_remote_code: bool) -> None:
        super().__init__(model, info)
        self._artifact = artifact
        self._trust_remote_code = trust_remote_code

    def tokenizer(self) -> HfTokenizer:
        """See `harness.tokenization.GivesTokenizer`."""
        return HfTokenizer(self._artifact, trust_remote_code=self._trust_remote_code)

    def keep_weights(self, folder: str) -> None:
        """Write what the loaded model holds, for `NpuLibraryBackend.dequantized_weights` to read; see `keep`."""
        found = versions_of((_DISTRIBUTION, "neural-compressor"))
        keep(self._model, Path(folder), ", ".join(f"{name} {version}" for name, version in found.items()))

    def residual_states(self, tokens: list[int], prefill: int) -> States:
        """See `harness.states.GivesStates`."""
        with watched(self._model) as seen:
            return gather(self, tokens, prefill, lambda: seen)

    def evidence(self) -> Evidence:
        """The library uses the NPU exactly where it finds one, without a word of what it then did there."""
        from intel_npu_acceleration_library import backend

        kind = DeviceKind.NPU if backend.npu_available() else DeviceKind.CPU
        # On the CPU there is nothing to fall back to. On the NPU its word is not enough: embedding, attention
        # and norms are left to torch on the CPU, and only a busy counter tells whether the linear layers moved.
        level = EvidenceLevel.BY_CONSTRUCTION if kind is DeviceKind.CPU else EvidenceLevel.NONE
        return Evidence(level, (kind,), (kind.value.upper(),), "npu_available() of the library")


def _check_rotary(checkpoint: Path) -> None:
    """Raise Unsupported where only a part of each head is rotated and the transformers that is installed rotates all.

    4.47, the last one that the library works with, does not know `partial_rotary_factor`: it takes no LongRoPE factors
    for a part of a head, and says nothing where there are none. Its source is read, since importing it takes seconds.
    """
    found = importlib.util.find_spec("transformers")
    source = None if found is None or found.origin is None else Path(found.origin).parent / _PHI3
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    partial = rope.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    if partial != 1.0 and source is not None and "partial_rotary_factor" not in source.read_text(encoding="utf-8"):
        raise Unsupported(
            f"transformers {importlib.metadata.version('transformers')} rotates whole heads; the checkpoint has a "
            f"partial_rotary_factor of {partial}",
            "the library works with no newer transformers: use another backend for this checkpoint",
        )


def _info(model: Any, options: Mapping[str, str]) -> SessionInfo:
    from intel_npu_acceleration_library import backend

    layers = [type(module) for module in model.modules()]
    compiled = [layer.__name__ for layer in layers if layer.__module__.startswith("intel_npu_acceleration_library")]
    arithmetic = _arithmetic()
    return SessionInfo(
        vocabulary=int(model.config.vocab_size),
        arithmetic=arithmetic,
        properties={
            "attention": str(model.config._attn_implementation),
            **{f"compiled_{name}": str(compiled.count(name)) for name in sorted(set(compiled))},
        },
        versions=versions_of((_DISTRIBUTION, "openvino", "neural-compressor", "torch", "transformers", "tokenizers")),
        load_options=dict(options),
        permitted=_permitted(arithmetic),
        # What generates is transformers, which means to begin anew wherever LongRoPE switches.
        capabilities=Capabilities(
            keeps_weights=True, compiles_lengths=True, recomputes_past=0, repeats_exactly=not backend.npu_available()
        ),
    )


def _permitted(arithmetic: Precision | None) -> tuple[Arithmetic, ...]:
    """Linear layers in the device's half precision; between them FP16 tensors of torch, the cache among them."""
    operators = arithmetic if arithmetic in (Precision.FP16, Precision.BF16) else Precision.FP16
    roundings = (Weights.EXACT, Weights.F16, Weights.BF16)
    return tuple(Arithmetic(operators, 0, CachePrecision.F16, weights) for weights in roundings)


def _arithmetic() -> Precision | None:
    """What the linear layers compute in: FP16 on the NPU; on the CPU what OpenVINO takes there by default.

    None where that cannot be read (the Windows wheel brings OpenVINO without its Python API).
    """
    from intel_npu_acceleration_library import backend

    if backend.npu_available():
        return Precision.FP16
    try:
        import openvino

        hint = openvino.Core().get_property("CPU", "INFERENCE_PRECISION_HINT").to_string()
    except Exception:  # noqa: BLE001 - not installed, or a property that this release refuses
        return None
    return {"f32": Precision.FP32, "f16": Precision.FP16, "bf16": Precision.BF16}.get(hint)
