"""Plain PyTorch through transformers; also the engine of the golden reference."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic, CachePrecision, Weights
from harness.backend import Capabilities, DeviceReport, Recipe, Session, SessionInfo, check_options, versions_of
from harness.backends.causal_lm import CausalLMSession
from harness.backends.checkpoint_weights import CheckpointWeights
from harness.backends.hf_tokenizer import HfTokenizer
from harness.backends.pytorch_operators import TorchBench
from harness.backends.torch_states import watched
from harness.errors import Unsupported, UsageError
from harness.operators.bench import Bench
from harness.states import States, gather
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable
from harness.weights import ArtifactWeights

# What the golden is recorded with. Eager attention is one fixed order of operations, and deterministic
# algorithms without TF32 make the FP32 result the same from run to run on one machine.
REFERENCE_OPTIONS = {"attention": "eager", "deterministic": "yes"}

_KNOWN_OPTIONS: dict[str, Sequence[str] | re.Pattern[str]] = {
    "attention": ("eager", "sdpa"),
    "deterministic": ("yes",),
    "threads": re.compile("[1-9][0-9]*"),
}
_KINDS = {"cpu": DeviceKind.CPU, "cuda": DeviceKind.GPU, "xpu": DeviceKind.GPU, "mps": DeviceKind.GPU}
# Weights and cache are of the model's dtype.
_PERMITTED = {
    Precision.FP32: (Arithmetic(),),
    Precision.FP16: (Arithmetic(Precision.FP16, 0, CachePrecision.F16, Weights.F16),),
    Precision.BF16: (Arithmetic(Precision.BF16, 0, CachePrecision.BF16, Weights.BF16),),
}
_REMEDIES = {
    "cuda": "needs an NVIDIA GPU, its driver and a CUDA build of torch: python -m pip install torch",
    "xpu": "needs an Intel GPU, its driver and an XPU build of torch (see pytorch.org, 'Intel GPU')",
    "mps": "needs a Mac with Apple silicon",
}


class PyTorchBackend:
    """Phi-3 in PyTorch on cpu, cuda, xpu and mps, in FP32, BF16 and FP16."""

    name = "pytorch"
    distributions = ("torch", "transformers")
    install = "python -m pip install -e .[pytorch]"
    devices: Mapping[str, DeviceKind] = _KINDS

    def __init__(self) -> None:
        self._threads: int | None = None
        """How many threads torch takes by default, once a session has been loaded with another number."""

    def targets(self) -> Sequence[Target]:
        """All devices at the three float precisions (mps has no use for BF16)."""
        floats = (Precision.FP32, Precision.BF16, Precision.FP16)
        return [
            Target(self.name, device, precision)
            for device in _KINDS
            for precision in floats
            if not (device == "mps" and precision is Precision.BF16)
        ]

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        """Nothing is exported: the checkpoint is the artifact."""
        if name is not None:
            raise UsageError(f"{target} has no recipe {name!r}: the checkpoint itself is loaded", "leave --recipe out")
        return None

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        """Ask torch for each device."""
        import torch

        return {device: _find(torch, device) for device in devices}

    def device_memory(self, device: str) -> int | None:
        """See `harness.endurance.TellsDeviceMemory`; what this process has allocated. Never yet run on a GPU."""
        import torch

        base, _, index = device.partition(".")
        allocated = getattr(getattr(torch, base, None), "memory_allocated", None)
        return None if allocated is None else int(allocated(int(index or 0)))

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """Never called: `recipe` gives none."""
        raise NotImplementedError(f"pytorch loads {checkpoint} as it is; there is no {recipe.name} to write to {out}")

    def dequantized_weights(self, artifact: Path, config: Mapping[str, Any]) -> ArtifactWeights:
        """The checkpoint's own tensors. Raises ArtifactError, see `CheckpointWeights`."""
        return CheckpointWeights(artifact, config)

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        """Load the checkpoint with `from_pretrained` at the target's precision."""
        import torch
        from transformers import AutoModelForCausalLM

        check_options(self.name, options, _KNOWN_OPTIONS)
        if options.get("deterministic") == "yes":
            _make_deterministic(torch)
        self._set_threads(torch, options.get("threads"))
        dtype = {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}
        attention = {"attn_implementation": options["attention"]} if "attention" in options else {}
        model = AutoModelForCausalLM.from_pretrained(
            artifact,
            dtype=dtype[target.precision],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            **attention,
        )
        model.eval().to(_torch_device(target))
        return PyTorchSession(model, _info(torch, model, options), artifact, trust_remote_code)

    def _set_threads(self, torch: Any, asked: str | None) -> None:
        """Have all of torch in this process take so many threads, or as many as by default."""
        if asked is not None:
            self._threads = self._threads or torch.get_num_threads()
            torch.set_num_threads(int(asked))
        elif self._threads is not None:
            torch.set_num_threads(self._threads)

    def threads_option(self, target: Target) -> str:
        """See `harness.backend.TakesThreads`."""
        if target.base_device != "cpu":
            raise Unsupported(f"the processor's threads have no part in what {target.base_device} computes")
        return "threads"

    def operators(self, target: Target) -> Bench:
        """See `harness.operators.bench.RunsOperators`."""
        return TorchBench(target, _torch_device(target))


class PyTorchSession(CausalLMSession):
    """A session that can also record the golden: render prompts, one stateless pass, hidden states."""

    def __init__(self, model: Any, info: SessionInfo, artifact: Path, trust_remote_code: bool) -> None:
        super().__init__(model, info)
        self._artifact = artifact
        self._trust_remote_code = trust_remote_code
        self._tokenizer: HfTokenizer | None = None

    def evidence(self) -> Evidence:
        """Torch raises when operands lie on different devices, so parameters' devices are where it computed."""
        devices = {parameter.device for parameter in self._model.parameters()}
        types = {device.type for device in devices}
        fallback = "mps" in types and os.environ.get("PYTORCH_ENABLE_MPS_FALLBACK") == "1"
        proven = types <= set(_KINDS) and not fallback
        return Evidence(
            level=EvidenceLevel.BY_CONSTRUCTION if proven else EvidenceLevel.NONE,
            kinds=tuple(sorted({_KINDS[device] for device in types if device in _KINDS})),
            devices=tuple(sorted(map(str, devices))),
            source="device of every parameter",
        )

    def tokenizer(self) -> HfTokenizer:
        """See `harness.tokenization.GivesTokenizer`."""
        return HfTokenizer(self._artifact, trust_remote_code=self._trust_remote_code)

    def residual_states(self, tokens: list[int], prefill: int) -> States:
        """See `harness.states.GivesStates`."""
        with watched(self._model) as seen:
            return gather(self, tokens, prefill, lambda: seen)

    def whole_logits(self, tokens: list[int]) -> NDArray[np.float32]:
        """Logits `[n, V]` float32 of one pass over `n` tokens without a cache."""
        import torch

        with torch.inference_mode():
            output = self._model(input_ids=self._ids(np.asarray(tokens, dtype=np.int64)), use_cache=False)
        logits: NDArray[np.float32] = output.logits[0].to(dtype=torch.float32, device="cpu").numpy()
        return logits

    def hidden_states(self, tokens: list[int]) -> NDArray[np.float32]:
        """Residual stream `[L + 1, n, H]` float32: embedding, then after each layer; the last after the final norm."""
        import torch

        ids = self._ids(np.asarray(tokens, dtype=np.int64))
        with torch.inference_mode():
            output = self._model(input_ids=ids, use_cache=False, output_hidden_states=True)
        stacked = torch.stack([state[0] for state in output.hidden_states])
        states: NDArray[np.float32] = stacked.to(dtype=torch.float32, device="cpu").numpy()
        return states

    def render(self, messages: list[dict[str, str]] | None, text: str | None, continuation: str = "") -> list[int]:
        """Token ids of a chat under the checkpoint's own template, or of raw text as the tokenizer gives it.

        A continuation is tokenised with what it continues, as one text.
        """
        if self._tokenizer is None:
            self._tokenizer = self.tokenizer()
        return self._tokenizer.tokens(messages, text, continuation)


def _info(torch: Any, model: Any, options: Mapping[str, str]) -> SessionInfo:
    arithmetic = {torch.float32: Precision.FP32, torch.bfloat16: Precision.BF16, torch.float16: Precision.FP16}
    properties = {
        "attention": str(model.config._attn_implementation),
        "threads": str(torch.get_num_threads()),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
    }
    if model.device.type == "cuda":
        with contextlib.suppress(AttributeError):  # the names are recent
            found = torch.cuda.get_device_properties(model.device)
            properties["pci"] = f"{found.pci_domain_id:04x}:{found.pci_bus_id:02x}:{found.pci_device_id:02x}.0"
    return SessionInfo(
        vocabulary=int(model.config.vocab_size),
        arithmetic=arithmetic.get(model.dtype),
        properties=properties,
        versions=versions_of(("torch", "transformers", "tokenizers")),
        load_options=dict(options),
        permitted=_PERMITTED.get(arithmetic.get(model.dtype, Precision.FP32), ()),
        # Recomputed by `Phi3ForCausalLM.prepare_inputs_for_generation`. On accelerators some kernels add in any order.
        capabilities=Capabilities(recomputes_past=0, repeats_exactly=model.device.type == "cpu"),
    )


def _make_deterministic(torch: Any) -> None:
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def _torch_device(target: Target) -> str:
    return target.base_device if target.index is None else f"{target.base_device}:{target.index}"


def _find(torch: Any, device: str) -> DeviceReport | Unavailable:
    base = device.split(".")[0]
    if base == "cpu":
        return DeviceReport("cpu", {"capability": torch.backends.cpu.get_cpu_capability()})
    module = getattr(torch, base, None)
    if base not in _REMEDIES or module is None or not module.is_available():
        return Unavailable(f"torch {torch.__version__} finds no {base} device", _REMEDIES.get(base, "name another"))
    if base == "mps":
        return DeviceReport("mps")
    index = int(device.partition(".")[2] or 0)
    if index >= module.device_count():
        return Unavailable(f"torch finds {module.device_count()} {base} devices, not {device}", "name one of them")
    return DeviceReport(module.get_device_name(index))
