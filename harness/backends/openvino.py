"""OpenVINO through optimum-intel: exported with optimum-cli, loaded with OVModelForCausalLM."""

from __future__ import annotations

import contextlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic, CachePrecision, Weights, caches_up_to
from harness.backend import (
    Capabilities,
    DeviceReport,
    Recipe,
    Session,
    SessionInfo,
    check_options,
    pick_recipe,
    versions_of,
)
from harness.backends import openvino_cache, openvino_devices, openvino_products, openvino_states
from harness.backends import openvino_npuw as npuw
from harness.backends.causal_lm import CausalLMSession
from harness.backends.openvino_cancel import cancel_request
from harness.backends.openvino_contents import MARK, read_contents
from harness.backends.openvino_operators import OpenVinoBench
from harness.backends.openvino_recipes import NPU_DEFAULTS, RECIPES, smaller_groups
from harness.backends.openvino_tokenizer import OpenVinoTokenizer
from harness.backends.openvino_weights import OpenVinoWeights
from harness.contents import Contents
from harness.endurance import Cancelled
from harness.errors import Unsupported, UsageError
from harness.operators.bench import Bench
from harness.products import Products
from harness.states import States, gather
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable
from harness.weights import ArtifactWeights

_KINDS = {"cpu": DeviceKind.CPU, "gpu": DeviceKind.GPU, "npu": DeviceKind.NPU}
_DEVICES = {**_KINDS, npuw.REHEARSAL: DeviceKind.CPU}

_READ_BACK = (
    "EXECUTION_DEVICES",
    "INFERENCE_PRECISION_HINT",
    "EXECUTION_MODE_HINT",
    "KV_CACHE_PRECISION",
    "KEY_CACHE_PRECISION",
    "VALUE_CACHE_PRECISION",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE",
    "PERFORMANCE_HINT",
    "INFERENCE_NUM_THREADS",
    *npuw.READ_BACK,
)
_ARITHMETIC = {"f32": Precision.FP32, "bf16": Precision.BF16, "f16": Precision.FP16}
_KNOWN_OPTIONS: dict[str, Sequence[str] | re.Pattern[str]] = {
    "INFERENCE_PRECISION_HINT": ("f32", "bf16", "f16"),
    "EXECUTION_MODE_HINT": ("ACCURACY", "PERFORMANCE"),
    "INFERENCE_NUM_THREADS": re.compile("[1-9][0-9]*"),
}
# Larger group sizes of dynamic quantisation stand for a whole row, on devices that this was never run on.
_WHOLE_ROW = 1 << 16


class OpenVinoBackend:
    """Phi-3 in OpenVINO on cpu, gpu and npu; on npuw-cpu as on npu, but with the parts on the CPU."""

    name = "openvino"
    distributions = ("openvino", "optimum-intel", "nncf", "transformers", "torch")
    install = "python -m pip install -e .[openvino]"
    devices: Mapping[str, DeviceKind] = _DEVICES
    artifact_mark = MARK

    def targets(self) -> Sequence[Target]:
        """cpu at all precisions but BF16; the others without FP32, which an NPU or GPU does not compute in."""
        halves = (Precision.FP16, Precision.INT8, Precision.INT4)
        by_device = {"cpu": (Precision.FP32, *halves), "gpu": halves, "npu": halves, npuw.REHEARSAL: halves}
        return [Target(self.name, device, p) for device, precisions in by_device.items() for p in precisions]

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        """The named recipe of the target's precision, else the device's default."""
        if name is None and npuw.is_npuw(target.base_device):
            name = NPU_DEFAULTS.get(target.precision)
        return pick_recipe(self.name, RECIPES, target.precision, name)

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        """Ask OpenVINO's core for each device."""
        import openvino

        core = openvino.Core()
        return {device: openvino_devices.find(openvino, core, device) for device in devices}

    def device_memory(self, device: str) -> int | None:
        """See `harness.endurance.TellsDeviceMemory`."""
        import openvino

        return openvino_devices.memory_in_use(openvino.Core(), device)

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """Run optimum-cli in a process of its own."""
        command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "openvino"]
        command += ["--model", str(checkpoint), "--task", "text-generation-with-past", *recipe.options]
        command += [*smaller_groups(checkpoint, recipe), str(out)]
        command += ["--trust-remote-code"] if trust_remote_code else []
        subprocess.run([command[0], "-m", "harness.exporter_main", *command[2:]], check=True, stdin=subprocess.DEVNULL)
        return ["optimum-cli", *command[3:]]

    def dequantized_weights(self, artifact: Path, config: Mapping[str, Any]) -> ArtifactWeights:
        """Read an artifact without OpenVINO. Raises ArtifactError, see `OpenVinoWeights`."""
        return OpenVinoWeights(artifact, config)

    def contents(self, artifact: Path) -> Contents:
        """See `harness.contents.TellsContents`."""
        return read_contents(artifact)

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        """Compile the IR on the device named, never AUTO or HETERO."""
        from optimum.intel import OVModelForCausalLM

        known = {**_KNOWN_OPTIONS, **(npuw.LOAD_OPTIONS if npuw.is_npuw(target.base_device) else {})}
        check_options(self.name, options, known)
        for file in ("openvino_model.xml", "openvino_model.bin", "config.json"):
            if not (artifact / file).is_file():
                raise UsageError(f"{artifact} is no OpenVINO artifact: it has no {file}", "export it with optimum-cli")
        device, config = self.compile_for(target, options)
        model = OVModelForCausalLM.from_pretrained(
            str(artifact), device=device, ov_config=config, trust_remote_code=trust_remote_code, local_files_only=True
        )
        return OpenVinoSession(model, _info(model, target, options), artifact)

    def threads_option(self, target: Target) -> str:
        """See `harness.backend.TakesThreads`: a property of the CPU plugin."""
        if target.base_device == npuw.REHEARSAL:
            raise Unsupported("the rehearsal stands for an NPU, which takes no threads of the processor")
        if target.base_device != "cpu":
            raise Unsupported(f"the processor's threads have no part in what {target.base_device} computes")
        return "INFERENCE_NUM_THREADS"

    def operators(self, target: Target) -> Bench:
        """See `harness.operators.bench.RunsOperators`."""

        def read(core: Any, compiled: Any) -> tuple[Precision | None, tuple[Arithmetic, ...]]:
            properties = _compiled_properties(compiled)
            if target.base_device == npuw.REHEARSAL:
                group = str(core.get_property("CPU", "DYNAMIC_QUANTIZATION_GROUP_SIZE"))
                properties |= {"DYNAMIC_QUANTIZATION_GROUP_SIZE": group, "KV_CACHE_PRECISION": "f32"}
                arithmetic = npuw.arithmetic(core, target.base_device, properties, {})
            else:
                arithmetic = _ARITHMETIC.get(properties.get("INFERENCE_PRECISION_HINT", ""))
            return arithmetic, _permitted(properties, arithmetic)

        device, config = self.compile_for(target, {})
        if npuw.is_npuw(target.base_device):
            config = npuw.alone(target.base_device)
        return OpenVinoBench(target, device, config, read)

    def compile_for(self, target: Target, options: Mapping[str, str]) -> tuple[str, dict[str, str]]:
        """The device and the properties that a target is compiled with: a device by name, never AUTO or HETERO."""
        base = target.base_device
        if not npuw.is_npuw(base):
            # optimum-intel caches compiled GPU blobs in the artifact; a blob of another driver must never be reused.
            return target.device.upper(), {"CACHE_DIR": "", **options}
        import openvino

        # A diagnostic session is compiled anew: NPUW takes a blob of another precision for its own.
        cache = None if options else npuw.compile_cache(openvino.Core(), versions_of(["openvino"])["openvino"], base)
        return "NPU", {"CACHE_DIR": str(cache or ""), **npuw.config(base, options)}


# What optimum-intel gives for the past of a stateful model, whose state is in its request.
_STATEFUL = ((),)


class OpenVinoSession(CausalLMSession):
    """A compiled IR."""

    def __init__(self, model: Any, info: SessionInfo, artifact: Path) -> None:
        super().__init__(model, info)
        self._artifact = artifact
        self._requests: dict[int, dict[str, Any]] = {}

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed `[n]` tokens, return `[n, V]` float32 logits; `[1, V]` from NPUW, unless loaded with whole-prompt."""
        logits = super().append(tokens)
        if self.info.capabilities.whole_prompt_logits and logits.shape[0] > tokens.size:
            return logits[-tokens.size :]  # NPUW gives its whole window, the prompt aligned to the right
        return logits

    def rewind(self, length: int) -> None:
        """Trim the variables of the request: see `harness.backends.openvino_cache`. Raises Unsupported for NPUW."""
        self._refuse_state("lower position ids after higher ones give wrong logits without an error")
        openvino_cache.rewind(self._model.request, length)
        self._model._past_length = self._count = length

    def fork(self) -> Any:
        """A copy of the variables. Raises Unsupported for NPUW."""
        self._refuse_state("its state is in parts of its own")
        return openvino_cache.copy_of(self._model.request, self._count, self._model.next_beam_idx)

    def resume(self, state: Any) -> None:
        """Set the variables to a copy of them."""
        openvino_cache.restore(self._model.request, state)
        self._model._past_length = self._count = state.fed
        self._model.next_beam_idx = state.beams
        self._past = _STATEFUL if state.fed else None

    def switch(self, text: int) -> None:
        """Each text has an infer request of the one compiled model."""
        model, own = self._model, self._requests.setdefault(self._text, {})
        own.update(request=model.request, _past_length=model._past_length, next_beam_idx=model.next_beam_idx)
        found = self._requests.setdefault(text, {})
        if not found:
            request = model.request.get_compiled_model().create_infer_request()
            found.update(request=request, _past_length=0, next_beam_idx=None)
        for name, value in found.items():
            setattr(model, name, value)
        super().switch(text)

    def batch(
        self, prompts: Sequence[NDArray[np.int64]], continuations: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """See `harness.steps.Batches`. Raises Unsupported for NPUW, which ends the process."""
        if "NPUW_DEVICES" in self.info.properties:
            raise Unsupported("NPUW computes one text at a time: a batch above one ends the process")
        return super().batch(prompts, continuations)

    def ways_to_cancel(self) -> Sequence[str]:
        """See `harness.endurance.Cancels`."""
        return (*super().ways_to_cancel(), "infer-request")

    def cancel(self, way: str, prompt: NDArray[np.int64], max_new_tokens: int, after: int) -> Cancelled:
        """See `harness.endurance.Cancels` and `harness.backends.openvino_cancel`."""
        if way != "infer-request":
            return super().cancel(way, prompt, max_new_tokens, after)
        self.reset()

        def generate(told: Callable[[], None]) -> int:
            def more(_: int) -> bool:
                told()
                return True

            told()
            return self._generate_while(prompt, max_new_tokens, more)

        return cancel_request(self._model.request, generate, after)

    def close(self) -> None:
        """Drop model and requests."""
        self._requests.clear()
        super().close()

    def _refuse_state(self, why: str) -> None:
        if "NPUW_DEVICES" in self.info.properties:
            raise Unsupported(f"NPUW has no access to its cache: {why}", "reset and feed the tokens again")

    def tokenizer(self) -> OpenVinoTokenizer:
        """See `harness.tokenization.GivesTokenizer`."""
        return OpenVinoTokenizer(self._artifact)

    def residual_states(self, tokens: list[int], prefill: int) -> States:
        """See `harness.states.GivesStates`. Raises Unsupported for NPUW, which gives no inner values."""
        if "NPUW_DEVICES" in self.info.properties:
            raise Unsupported(
                "NPUW gives no inner values of a model", "localise with openvino:cpu of the same artifact"
            )
        with openvino_states.watched(self._model) as read:
            return gather(self, tokens, prefill, read)

    def products(self) -> Products:
        """See `harness.products.GivesProducts`. Raises Unsupported for NPUW, which compiles parts of its own."""
        if "NPUW_DEVICES" in self.info.properties:
            raise Unsupported("NPUW compiles no product as it compiles its parts", "probe openvino:cpu instead")
        return openvino_products.products(self._model)

    def evidence(self) -> Evidence:
        """EXECUTION_DEVICES, which is right for ordinary models; NPUW_DEVICES for those of an NPU."""
        properties = self.info.properties
        if "NPUW_DEVICES" in properties:
            return npuw.evidence(properties)
        devices = tuple(properties.get("EXECUTION_DEVICES", "").split())
        names = [device.split(".")[0].lower() for device in devices]
        kinds = tuple(sorted({_KINDS[name] for name in names if name in _KINDS}))
        if not devices or not set(names) <= set(_KINDS) or DeviceKind.NPU in kinds:
            source = "EXECUTION_DEVICES, not to be believed of an NPU" if devices else "nothing read back"
            return Evidence(EvidenceLevel.NONE, kinds, devices, source)
        return Evidence(EvidenceLevel.BY_CONSTRUCTION, kinds, devices, "EXECUTION_DEVICES of the compiled model")


def _properties(model: Any) -> dict[str, str]:
    return _compiled_properties(
        model.request.get_compiled_model() if hasattr(model.request, "get_compiled_model") else model.request
    )


def _compiled_properties(compiled: Any) -> dict[str, str]:
    found = {}
    for key in _READ_BACK:
        with contextlib.suppress(Exception):  # each device supports some keys, and refuses others in its own way
            value = compiled.get_property(key)
            found[key] = " ".join(map(str, value)) if isinstance(value, (list, tuple, set)) else _plain(value)
    return found


def _plain(value: Any) -> str:
    """`f32` for <Type: 'float32'>, the value's own text otherwise."""
    to_string = getattr(value, "to_string", None)
    if to_string is not None:
        return str(to_string())
    return str(getattr(value, "name", value))  # ACCURACY for ExecutionMode.ACCURACY


def _info(model: Any, target: Target, options: Mapping[str, str]) -> SessionInfo:
    properties = _properties(model)
    arithmetic = _ARITHMETIC.get(properties.get("INFERENCE_PRECISION_HINT", ""))
    capabilities = Capabilities(recomputes_past=0)  # by optimum-intel's `OVPhi3ForCausalLM`
    if "NPUW_DEVICES" in properties:
        import openvino

        arithmetic = npuw.arithmetic(openvino.Core(), target.base_device, properties, options)
        capabilities = npuw.capabilities(properties, options)
    is_npu = "NPUW_DEVICES" in properties
    cpu = _DEVICES[target.base_device] is DeviceKind.CPU
    return SessionInfo(
        vocabulary=int(model.config.vocab_size),
        arithmetic=arithmetic,
        properties=properties,
        versions=versions_of(
            ("openvino", "optimum-intel", "transformers", "torch", "openvino-tokenizers", "openvino-genai")
        ),
        capabilities=msgspec.structs.replace(capabilities, repeats_exactly=cpu),
        load_options=dict(options),
        permitted=npuw.permitted(arithmetic) if is_npu else _permitted(properties, arithmetic),
    )


def _permitted(properties: Mapping[str, str], arithmetic: Precision | None) -> tuple[Arithmetic, ...]:
    """What the plugin may do by the properties read back, each of which it may also leave undone.

    DYNAMIC_QUANTIZATION_GROUP_SIZE reads back 32 on processors where it has no effect. "dynamic", as the precision of
    ACCURACY mode, means that nothing is computed below FP32.
    """
    stated = {cache.value: cache for cache in CachePrecision}.get(properties.get("KV_CACHE_PRECISION", ""))
    caches = caches_up_to(stated) if stated is not None else tuple(CachePrecision)
    size = properties.get("DYNAMIC_QUANTIZATION_GROUP_SIZE", "0")
    operators = arithmetic or Precision.FP32
    blocks = (0, int(size)) if size.isdigit() and 0 < int(size) < _WHOLE_ROW else (0,)
    roundings = {Precision.FP16: (Weights.EXACT, Weights.F16), Precision.BF16: (Weights.EXACT, Weights.BF16)}
    return tuple(
        Arithmetic(operators, block, cache, weights)
        for block, cache, weights in itertools.product(blocks, caches, roundings.get(operators, (Weights.EXACT,)))
    )
