"""ONNX Runtime GenAI: exported with its model builder, run on cpu, DirectML and CUDA."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.backend import (
    DeviceReport,
    Recipe,
    Session,
    SessionInfo,
    check_options,
    pick_recipe,
    versions_of,
)
from harness.errors import UsageError
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable

_KINDS = {"cpu": DeviceKind.CPU, "dml": DeviceKind.GPU, "cuda": DeviceKind.GPU}
_PROVIDERS = {"dml": "DML", "cuda": "cuda"}
# The builds that provide the module; only one of them can be installed in an interpreter.
_BUILDS = ("onnxruntime-genai", "onnxruntime-genai-winml", "onnxruntime-genai-directml", "onnxruntime-genai-cuda")
_EXPORTER = (*_BUILDS, "onnxruntime", "onnx-ir", "transformers", "torch")
_PRECISIONS = {
    "cpu": (Precision.FP32, Precision.INT8, Precision.INT4),
    "dml": (Precision.FP16, Precision.INT4),
    "cuda": (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT4),
}
_REMEDIES = {
    "dml": "needs Windows with a DirectX 12 GPU and, in an interpreter of its own, "
    "python -m pip install -e .[ort-genai-winml]",
    "cuda": "needs an NVIDIA GPU and, in an interpreter of its own, python -m pip install onnxruntime-genai-cuda",
}


class OrtGenAIBackend:
    """Phi-3 in ONNX Runtime GenAI."""

    name = "ort-genai"
    distributions = ("|".join(_BUILDS),)
    install = "python -m pip install -e .[ort-genai]  (Python 3.11 or later)"
    devices: Mapping[str, DeviceKind] = _KINDS

    def targets(self) -> Sequence[Target]:
        """The precisions that the builder makes for each execution provider."""
        return [Target(self.name, device, p) for device, precisions in _PRECISIONS.items() for p in precisions]

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        """One recipe for each precision and execution provider, named `int4-cpu`."""
        device = target.base_device
        options = ("-p", target.precision.value, "-e", device)
        default = Recipe(f"{target.precision.value}-{device}", target.precision, options, _EXPORTER)
        return pick_recipe(self.name, (default,), target.precision, name)

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        """The CPU is always there; for the others the installed build must have the execution provider."""
        return {device: _find(device) for device in devices}

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """Run the model builder in a process of its own."""
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out)]
        cache = out.with_name(out.name + "-builder-cache")
        command += [*recipe.options, "-c", str(cache)]
        command += ["--extra_options", "hf_remote=true"] if trust_remote_code else []
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return ["python", *command[1:]]

    def load(
        self,
        artifact: Path,
        target: Target,
        *,
        options: Mapping[str, str],
        trust_remote_code: bool,  # noqa: ARG002 - the runtime runs no code of a checkpoint
    ) -> Session:
        """Load with exactly one execution provider appended, or none for the CPU."""
        import onnxruntime_genai as og

        check_options(self.name, options, {})
        settings = _read_config(artifact)
        config = og.Config(str(artifact))
        config.clear_providers()
        provider = _PROVIDERS.get(target.base_device)
        if provider is not None:
            config.append_provider(provider)
        if target.index:
            config.set_provider_option(provider, "device_index", str(target.index))
        return OrtGenAISession(og, og.Model(config), settings, options)


class OrtGenAISession:
    """A model and the generator of the prompt being fed."""

    def __init__(self, og: Any, model: Any, settings: Mapping[str, Any], options: Mapping[str, str]) -> None:
        self._og = og
        self._model = model
        self._context = int(settings["model"]["context_length"])
        self._generator: Any = None
        self._info = SessionInfo(
            vocabulary=int(settings["model"]["vocab_size"]),
            arithmetic=None,  # the runtime reports none
            properties={"device_type": str(model.device_type)},
            versions=versions_of((*_BUILDS, "onnxruntime", "onnxruntime-directml")),
            load_options=dict(options),
        )

    @property
    def info(self) -> SessionInfo:
        """What the runtime reports of the loaded model."""
        return self._info

    def reset(self) -> None:
        """Drop the generator; the next tokens begin a new one."""
        self._generator = None

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed `[n]` tokens, return `[n, V]` float32 logits."""
        if self._generator is None:
            self._generator = self._new_generator(self._context)
        self._generator.append_tokens(tokens.astype(np.int32))
        return np.array(self._generator.get_output("logits")[0], dtype=np.float32)

    def generate(
        self,
        prompt: NDArray[np.int64],
        max_new_tokens: int,
        end_tokens: Sequence[int],  # noqa: ARG002 - the artifact's genai_config.json names its own, and is judged by them
    ) -> list[int]:
        """Greedy decoding by the runtime's own loop, which stops at the artifact's own end tokens."""
        self.reset()
        generator = self._new_generator(min(self._context, prompt.size + max_new_tokens))
        generator.append_tokens(prompt.astype(np.int32))
        tokens: list[int] = []
        while not generator.is_done() and len(tokens) < max_new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
        return tokens

    def evidence(self) -> Evidence:
        """`Model.device_type`. On a GPU it names the provider asked for, and says nothing of where nodes ran."""
        device = str(self._model.device_type).lower()
        kind = _KINDS.get(device)
        kinds = () if kind is None else (kind,)
        level = EvidenceLevel.BY_CONSTRUCTION if kind is DeviceKind.CPU else EvidenceLevel.NONE
        return Evidence(level, kinds, (device,), "Model.device_type")

    def close(self) -> None:
        """Drop generator and model; the runtime frees them when nothing refers to them."""
        self._generator = self._model = None

    def _new_generator(self, max_length: int) -> Any:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, num_beams=1, max_length=max_length)
        return self._og.Generator(self._model, params)


def _read_config(artifact: Path) -> dict[str, Any]:
    path = artifact / "genai_config.json"
    try:
        settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        int(settings["model"]["vocab_size"]), int(settings["model"]["context_length"])
    except FileNotFoundError:
        raise UsageError(
            f"{artifact} is no ONNX Runtime GenAI artifact: it has no genai_config.json",
            "export it with python -m onnxruntime_genai.models.builder",
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} cannot be used: {error!r}", "export the artifact again") from None
    return settings


def _find(device: str) -> DeviceReport | Unavailable:
    base = device.split(".")[0]
    build = next(iter(versions_of(_BUILDS)))
    if base == "cpu":
        return DeviceReport("cpu", {"build": build})
    provides = {"dml": ("onnxruntime-genai-winml", "onnxruntime-genai-directml"), "cuda": ("onnxruntime-genai-cuda",)}
    if build not in provides.get(base, ()):
        return Unavailable(f"{build} has no {base} execution provider", _REMEDIES.get(base, "name another device"))
    return _ask_runtime(base, build)


def _ask_runtime(base: str, build: str) -> DeviceReport | Unavailable:
    import onnxruntime_genai as og

    # is_*_available answers True for providers that then fail to load, so only False is believed here:
    # a load that raises is an ERROR(load) with the runtime's own words.
    if not getattr(og, f"is_{base}_available")():
        return Unavailable(f"{build} finds no {base} device", _REMEDIES[base])
    return DeviceReport(base, {"build": build})
