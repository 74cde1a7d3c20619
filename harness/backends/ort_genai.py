"""ONNX Runtime GenAI: exported with its model builder, run on cpu, DirectML and CUDA."""

from __future__ import annotations

import gc
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import dxgi
from harness.arithmetic import Arithmetic, CachePrecision, Weights
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
from harness.backends import ort_batch, ort_cancel, ort_devices, ort_states
from harness.backends.ort_artifact import check_export, providers, read_config
from harness.backends.ort_contents import MARK, read_contents
from harness.backends.ort_devices import BUILDS
from harness.backends.ort_graph import Graph, whole
from harness.backends.ort_operators import OrtBench
from harness.backends.ort_profile import evidence_of, read_profile
from harness.backends.ort_tokenizer import OrtTokenizer
from harness.backends.ort_weights import OrtWeights
from harness.contents import Contents
from harness.endurance import Cancelled
from harness.errors import ArtifactError, Unsupported
from harness.operators.bench import Bench
from harness.states import States, gather
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable
from harness.weights import ArtifactWeights

_KINDS = {"cpu": DeviceKind.CPU, "dml": DeviceKind.GPU, "cuda": DeviceKind.GPU}
_PROVIDERS = {"dml": "DML", "cuda": "cuda"}
_EXPORTER = (*BUILDS, "onnxruntime", "onnx-ir", "transformers", "torch")
_PRECISIONS = {
    "cpu": (Precision.FP32, Precision.INT8, Precision.INT4),
    "dml": (Precision.FP16, Precision.INT4),
    "cuda": (Precision.FP32, Precision.BF16, Precision.FP16, Precision.INT8, Precision.INT4),
}
# Tokens that a generator's cache holds to begin with; it is made anew, twice as long, for more.
_ROOM = 4096
# By `Generator::GenerateNextToken`: at 4,097 tokens, and not on DirectML. The number is in the code, not the model's.
_RECOMPUTED = {"cpu": 4096, "cuda": 4096}
# Graph capture is on by default in both; captured graphs have given wrong logits on some devices.
# MatMulNBits' accuracy_level at which ONNX Runtime takes int8 activations.
_INT8_ACTIVATIONS = 4
_THREADS = "intra_op_num_threads"
_LOAD_OPTIONS: dict[str, dict[str, Sequence[str] | re.Pattern[str]]] = {
    "cpu": {_THREADS: re.compile("[1-9][0-9]*")},
    "dml": {"enable_graph_capture": ("0", "1"), "disable_metacommands": ("0", "1")},
    "cuda": {"enable_cuda_graph": ("0", "1")},
}


class OrtGenAIBackend:
    """Phi-3 in ONNX Runtime GenAI."""

    name = "ort-genai"
    distributions = ("|".join(BUILDS),)
    install = "python -m pip install -e .[ort-genai]  (Python 3.11 or later)"
    devices: Mapping[str, DeviceKind] = _KINDS
    artifact_mark = MARK
    # All builds have one module name, so each has an environment of its own.
    environments: Mapping[str, Sequence[str]] = {"dml": ("ort-genai-winml", "ort-genai-directml")}

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
        return {device: ort_devices.find(device) for device in devices}

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """Run the model builder in a process of its own."""
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(out)]
        cache = out.with_name(out.name + "-builder-cache")
        command += [*recipe.options, "-c", str(cache)]
        command += ["--extra_options", "hf_remote=true"] if trust_remote_code else []
        subprocess.run([command[0], "-m", "harness.exporter_main", *command[2:]], check=True, stdin=subprocess.DEVNULL)
        provider = recipe.name.rpartition("-")[2]
        check_export(out, provider, quantised=recipe.precision in (Precision.INT8, Precision.INT4))
        return ["python", *command[1:]]

    def dequantized_weights(self, artifact: Path, config: Mapping[str, Any]) -> ArtifactWeights:
        """Read an artifact without the runtime. Raises ArtifactError, see `OrtWeights`."""
        return OrtWeights(artifact, config)

    def contents(self, artifact: Path) -> Contents:
        """See `harness.contents.TellsContents`."""
        return read_contents(artifact)

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

        check_options(self.name, options, _LOAD_OPTIONS.get(target.base_device, {}))
        settings = read_config(artifact)
        device = _provider_options(target)

        def configure(folder: Path = artifact) -> Any:
            config, given = og.Config(str(folder)), {**device, **options}
            threads = given.pop(_THREADS, None)
            self.choose_provider(config, target, settings, given)
            if threads is not None:
                asked = {"session_options": {_THREADS: int(threads)}}
                config.overlay(json.dumps({"model": {"decoder": asked}}))
            return config

        permitted = _permitted(artifact, target)
        kind = self.devices[target.base_device]
        placed = None if kind is DeviceKind.CPU else _profile(og, configure(), target.index)
        session = OrtGenAISession(og, og.Model(configure()), settings, {**device}, placed, options, permitted)
        session.load_marked = lambda out: (ort_states.copy_marked(artifact, out), og.Model(configure(out)))
        return session

    def threads_option(self, target: Target) -> str:
        """See `harness.backend.TakesThreads`: one of the session options of genai_config.json."""
        if target.base_device != "cpu":
            raise Unsupported(f"the processor's threads have no part in what {target.base_device} computes")
        return _THREADS

    def operators(self, target: Target) -> Bench:
        """See `harness.operators.bench.RunsOperators`."""
        # GenAI counts adapters by their LUID, ONNX Runtime by DXGI's own number; it is unproven that these agree.
        options = {} if target.index is None else {"device_id": str(target.index)}
        return OrtBench(target, options)

    def choose_provider(
        self, config: Any, target: Target, settings: Mapping[str, Any], options: Mapping[str, str]
    ) -> None:
        """Have a configuration name exactly one execution provider; for the CPU none, which is the CPU.

        One that does so already is left as it was exported: its options, such as DirectML's graph capture, are
        the defaults that users get.
        """
        provider = _PROVIDERS.get(target.base_device)
        if providers(dict(settings)) != ([] if provider is None else [provider.lower()]):
            config.clear_providers()
            if provider is not None:
                config.append_provider(provider)
        for name, value in options.items():
            config.set_provider_option(provider, name, value)


class OrtGenAISession:
    """A model and the generator of the prompt being fed.

    `placed` is the evidence of a profile taken of the same artifact on the same device, None on the CPU.
    """

    def __init__(
        self,
        og: Any,
        model: Any,
        settings: Mapping[str, Any],
        device: Mapping[str, str],
        placed: Evidence | None,
        options: Mapping[str, str],
        permitted: tuple[Arithmetic, ...] = (),
    ) -> None:
        self._og = og
        self._model = model
        self._placed = placed
        self._context = int(settings["model"]["context_length"])
        self._generator: Any = None
        self._fed: list[int] = []
        self._room = 0
        self._last = 0
        self._text = 0
        self._others: dict[int, tuple[Any, list[int], int]] = {}
        self._pad = ort_batch.padding(settings)
        self.load_marked: Callable[[Path], tuple[dict[str, str], Any]] | None = None
        """Loads, from the folder it is given to write, the model with more outputs, whose names come first."""
        self._info = SessionInfo(
            vocabulary=int(settings["model"]["vocab_size"]),
            arithmetic=None,  # the runtime reports none
            properties={"device_type": str(model.device_type), **device},
            versions=versions_of((*BUILDS, "onnxruntime", "onnxruntime-directml")),
            load_options=dict(options),
            permitted=permitted,
            capabilities=Capabilities(
                recomputes_past=_RECOMPUTED.get(str(model.device_type).lower()),
                own_end_tokens=_end_tokens(settings),
                repeats_exactly=str(model.device_type).lower() == "cpu",
            ),
        )

    @property
    def info(self) -> SessionInfo:
        """What the runtime reports of the loaded model."""
        return self._info

    def reset(self) -> None:
        """Drop the generator; the next tokens begin a new one."""
        self._generator = None
        self._fed = []

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed `[n]` tokens, return `[n, V]` float32 logits."""
        self._make_room(len(self._fed) + tokens.size)
        self._fed += [int(token) for token in tokens]
        self._last = int(tokens.size)
        self._generator.append_tokens(tokens.astype(np.int32))
        return np.array(self._generator.get_output("logits")[0], dtype=np.float32)

    def rewind(self, length: int) -> None:
        """Let the generator go back: see `harness.steps.Rewinds`."""
        self._generator.rewind_to(length)
        del self._fed[length:]

    def switch(self, text: int) -> None:
        """Each text has a generator of the one model: see `harness.steps.Interleaves`."""
        self._others[self._text] = (self._generator, self._fed, self._room)
        self._generator, self._fed, self._room = self._others.pop(text, (None, [], 0))
        self._text = text

    def batch(
        self, prompts: Sequence[NDArray[np.int64]], continuations: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """Several prompts in one generator: see `harness.steps.Batches`."""
        self.reset()
        longest = max(prompt.size for prompt in prompts) + continuations[0].size
        generator = self._new_generator(min(self._context, longest + 1), len(prompts))
        return ort_batch.teacher_force(generator, prompts, continuations, self._pad)

    def tokenizer(self) -> OrtTokenizer:
        """See `harness.tokenization.GivesTokenizer`."""
        return OrtTokenizer(self._og, self._model)

    def residual_states(self, tokens: list[int], prefill: int) -> States:
        """See `harness.states.GivesStates`. A second model is loaded beside the plain one."""
        if self.load_marked is None:
            raise Unsupported("the session does not know which artifact it was loaded from")
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows may still hold it
            plain = self._model
            try:
                names, self._model = self.load_marked(Path(folder) / "marked")
                return gather(self, tokens, prefill, lambda: ort_states.read(self._generator, names, self._last))
            finally:
                self.reset()
                self._model = plain

    def _make_room(self, length: int) -> None:
        """Have a generator that holds `length` tokens: its cache is made at once, and a whole context may be 50 GB."""
        if self._generator is not None and length <= self._room:
            return
        self._room = min(self._context, max(_ROOM, 2 * length))
        self._generator = self._new_generator(self._room)
        if self._fed:
            self._generator.append_tokens(np.asarray(self._fed, dtype=np.int32))

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

    def ways_to_cancel(self) -> Sequence[str]:
        """See `harness.endurance.Cancels`."""
        return ort_cancel.WAYS

    def cancel(self, way: str, prompt: NDArray[np.int64], max_new_tokens: int, after: int) -> Cancelled:
        """See `harness.endurance.Cancels` and `harness.backends.ort_cancel`."""
        self.reset()
        generator = self._new_generator(min(self._context, prompt.size + max_new_tokens))
        return ort_cancel.cancel(generator, way, prompt, max_new_tokens, after)

    def evidence(self) -> Evidence:
        """The profile; on the CPU, which leaves nothing to fall back to, `Model.device_type`."""
        if self._placed is not None:
            return self._placed
        device = str(self._model.device_type).lower()
        kind = _KINDS.get(device)
        level = EvidenceLevel.BY_CONSTRUCTION if kind is DeviceKind.CPU else EvidenceLevel.NONE
        return Evidence(level, () if kind is None else (kind,), (device,), "Model.device_type")

    def close(self) -> None:
        """Drop generators and model; the runtime frees them when nothing refers to them."""
        self._others.clear()
        self._generator = self._model = None

    def _new_generator(self, max_length: int, batch: int = 1) -> Any:
        params = self._og.GeneratorParams(self._model)
        params.set_search_options(do_sample=False, num_beams=1, max_length=max_length, batch_size=batch)
        return self._og.Generator(self._model, params)


def _end_tokens(settings: Mapping[str, Any]) -> tuple[int, ...]:
    found = settings["model"].get("eos_token_id", ())
    return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)


def _permitted(artifact: Path, target: Target) -> tuple[Arithmetic, ...]:
    """FP32 on the CPU, with int8 activations by block where products state accuracy level 4; half precision on a GPU.

    Empty where the graph cannot be read: the session is judged by its total error then.
    """
    if target.base_device != "cpu":
        operators = target.precision if target.precision in (Precision.FP32, Precision.BF16) else Precision.FP16
        roundings = (Weights.EXACT, Weights.F16) if operators is Precision.FP16 else (Weights.EXACT,)
        caches = (CachePrecision.F32, CachePrecision.F16)
        return tuple(Arithmetic(operators, 0, c, w) for c, w in itertools.product(caches, roundings))
    try:
        nodes = Graph(artifact).nodes
    except ArtifactError:
        return ()
    products = [node for node in nodes if node.op_type == "MatMulNBits"]
    blocks = {whole(node, "block_size") for node in products if whole(node, "accuracy_level", 0) == _INT8_ACTIVATIONS}
    # The runtime makes MatMulNBits of level 4 out of these (session.qdq_matmulnbits_accuracy_level).
    blocks |= {whole(node, "block_size", 0) for node in nodes if node.op_type == "DequantizeLinear"}
    return tuple(Arithmetic(Precision.FP32, block) for block in sorted({0, *blocks}))


def _profile(og: Any, config: Any, index: int | None) -> Evidence:
    """Load a model with profiling, feed it a few tokens at once and one by one, and read where its nodes ran.

    The model that is judged is loaded after this one is gone, without profiling: memory is needed once.
    """
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows may still hold it
        prefix = str(Path(folder) / "profile")
        options = {"enable_profiling": prefix}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        model = og.Model(config)
        params = og.GeneratorParams(model)
        params.set_search_options(do_sample=False, max_length=32)
        generator = og.Generator(model, params)
        generator.append_tokens(np.arange(1, 9, dtype=np.int32))
        for _ in range(3):
            generator.generate_next_token()
        del generator, params, model  # the runtime writes the profile when nothing refers to them
        gc.collect()
        try:
            files = list(Path(folder).glob("profile*.json"))
            if not files:
                raise ValueError("the runtime wrote no profile")
            return evidence_of(read_profile(max(files, key=lambda file: file.stat().st_size)), index)
        except (OSError, ValueError) as error:
            return Evidence(EvidenceLevel.NONE, (), (), f"no profile: {error}")


def _provider_options(target: Target) -> dict[str, str]:
    """What names the adapter of an indexed device: the LUID, since each runtime counts adapters its own way."""
    if target.index is None:
        return {}
    if target.base_device == "dml":
        return {"luid": dxgi.hardware_adapters()[target.index].luid}
    return {"device_id": str(target.index)}
