"""A backend in a package of its own, as a third party would write one, with faults to plant.

It computes with the float64 oracle, so it is right unless the environment variable PLANTED_FAULT names a
fault. Its distribution is the folder of this file: put that on PYTHONPATH and it is registered. Its
device `pretender` is of kind npu and never exists: it stands for devices that claim more than they are.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import phi3_float64
from harness.backend import Capabilities, DeviceReport, Recipe, Session, SessionInfo, check_options
from harness.backends.checkpoint_weights import CheckpointWeights
from harness.checkpoint import open_checkpoint
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target, Unavailable
from harness.weights import ArtifactWeights
from planted_cache import PlantedCache, fault
from planted_harm import harm
from planted_operators import PlantedBench
from planted_shapes import Moods, in_batch, of_length
from planted_tokenizer import PlantedTokenizer


class PlantedBackend:
    """Phi-3 in NumPy."""

    name = "planted"
    distributions: tuple[str, ...] = ("numpy",)
    install = "python -m pip install numpy"
    devices: Mapping[str, DeviceKind] = {
        "cpu": DeviceKind.CPU,
        "pretender": DeviceKind.NPU,
        "absent": DeviceKind.GPU,
    }

    def __init__(self) -> None:
        if fault("not-installed"):
            self.distributions = ("no-such-distribution",)

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, device, Precision.FP32) for device in self.devices]

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        exports = fault("exporter-fails") or fault("exporter-hangs")
        return Recipe("copy", Precision.FP32, ("--copy",), ("numpy",)) if exports else None

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        if fault("broken-installation"):
            raise ImportError("libdriver.so: cannot open shared object file")
        found: dict[str, DeviceReport | Unavailable] = {device: DeviceReport(device) for device in devices}
        found["absent"] = Unavailable("no absent device was found", "plug one in")
        return found

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        if fault("exporter-hangs"):
            subprocess.run([sys.executable, "-m", "harness.exporter_main", "planted_exporter"], check=True)
        raise RuntimeError("the exporter does not like this checkpoint")

    def dequantized_weights(self, artifact: Path, config: Mapping[str, Any]) -> ArtifactWeights:
        return CheckpointWeights(artifact, config)

    def operators(self, target: Target) -> PlantedBench:
        return PlantedBench()

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        check_options(self.name, options, {"threads": ("1", "2")})
        harm("load")
        if fault("one-at-a-time") and target.base_device == "pretender":
            occupy(Path(os.environ["PLANTED_MARK"]))
        return PlantedSession(artifact, target, options)

    def threads_option(self, target: Target) -> str:
        return "threads"


class PlantedSession:
    """The float64 oracle, fed token by token."""

    def __init__(self, artifact: Path, target: Target, options: Mapping[str, str] | None = None) -> None:
        self._options = dict(options or {})
        self._moods = Moods()
        self._moods.threads = int(self._options.get("threads", "1"))
        self._checkpoint = open_checkpoint(artifact)
        self._device = "cpu" if fault("silent-fallback") else target.device
        self.cache = PlantedCache(self._checkpoint)
        self._calls = 0
        self._prompts: set[tuple[int, ...]] = set()

    @property
    def info(self) -> SessionInfo:
        return SessionInfo(
            vocabulary=self._checkpoint.vocabulary + fault("other-vocabulary"),
            arithmetic=Precision.INT4 if fault("claims-int4") else Precision.FP32,
            properties={"pid": str(os.getpid()), "parent": str(os.getppid()), "threads": str(self._moods.threads)},
            load_options=self._options,
            versions={"phi3-planted": "1.0"},
            capabilities=Capabilities(whole_prompt_logits=not fault("declares-last-token"), repeats_exactly=True),
        )

    def reset(self) -> None:
        self.cache.reset()

    def rewind(self, length: int) -> None:
        self.cache.rewind(length)

    def fork(self) -> list[int]:
        return self.cache.fork()

    def resume(self, state: list[int]) -> None:
        self.cache.resume(state)

    def switch(self, text: int) -> None:
        self.cache.switch(text)

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.cache.refuse([int(token) for token in tokens])
        self._calls += 1
        _misbehave(self._calls)
        if fault("slow") and tokens.size == 1:
            time.sleep(0.02)
        if not self.cache.tokens:
            self._prompts.add(tuple(int(token) for token in tokens))
        begins = not self.cache.tokens
        if begins or tokens.size == 1:
            harm("prefill" if begins else "decode", len(self._prompts))
        logits = self.cache.feed([int(token) for token in tokens])
        if begins:
            logits = of_length(logits, tokens.size)
        logits = logits * self._moods.factor(self._calls, len(self._prompts))
        return _spoil(logits, len(self.cache.tokens), self._calls).astype(np.float32)

    def batch(
        self, prompts: Sequence[NDArray[np.int64]], continuations: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        rows = in_batch(self._forward, [p.tolist() for p in prompts], [c.tolist() for c in continuations])
        return [found.astype(np.float32) for found in rows]

    def _forward(self, tokens: list[int]) -> NDArray[np.float64]:
        return phi3_float64.forward(self._checkpoint, [tokens])[0]

    def generate(self, prompt: NDArray[np.int64], max_new_tokens: int, end_tokens: Sequence[int]) -> list[int]:
        sequence = [int(token) for token in prompt]
        tokens: list[int] = []
        while len(tokens) < max_new_tokens:
            logits = phi3_float64.forward(self._checkpoint, [sequence + tokens])[0][-1]
            second_best = int(np.argsort(logits)[-2])
            wrong = fault("wrong-word") and len(tokens) == 3
            tokens.append(second_best if wrong else int(logits.argmax()))
            if tokens[-1] in end_tokens and not fault("ignores-end"):
                break
        return _mangle(sequence, tokens, end_tokens)

    def evidence(self) -> Evidence:
        if fault("falls-back-after-restart") and Path(os.environ["PLANTED_MARK"]).exists():
            return Evidence(EvidenceLevel.MEASURED, (DeviceKind.CPU,), ("CPU",), "busy counter")
        if fault("counter"):  # a busy counter: it moves once something was computed
            level = EvidenceLevel.MEASURED if self._calls else EvidenceLevel.NONE
            return Evidence(level, (DeviceKind.NPU,), ("NPU",), "busy counter")
        if fault("other-index"):
            return Evidence(EvidenceLevel.BY_CONSTRUCTION, (DeviceKind.CPU,), ("cpu.0",), "properties")
        if fault("no-evidence"):
            return Evidence(EvidenceLevel.NONE, (DeviceKind.CPU,), ("cpu",), "nothing")
        if self._device == "pretender":  # it says npu, and nothing measured says so too
            return Evidence(EvidenceLevel.BY_CONSTRUCTION, (DeviceKind.NPU,), ("NPU",), "its own word")
        return Evidence(EvidenceLevel.BY_CONSTRUCTION, (DeviceKind.CPU,), ("cpu",), "the only device NumPy has")

    def tokenizer(self) -> PlantedTokenizer:
        return PlantedTokenizer(self._checkpoint.path)

    def half_a_surrogate(self) -> str:
        return chr(0xD800)

    def close(self) -> None:
        harm("close")
        if fault("one-at-a-time") and self._device.startswith("pretender"):
            Path(os.environ["PLANTED_MARK"] + ".in-use").unlink(missing_ok=True)


def occupy(mark: Path) -> None:
    """Take the only device there is, and leave a trace where it is taken already; it is slow to come up."""
    try:
        mark.with_suffix(".in-use").open("x").close()
    except FileExistsError:
        mark.with_suffix(".taken-twice").touch()
    time.sleep(1.0)


def _misbehave(calls: int) -> None:
    if calls == 3:
        if fault("abort"):
            print("driver: assertion failed", file=sys.stderr, flush=True)
            os.abort()
        if fault("exit-silently"):
            os._exit(0)
        if fault("hang"):
            time.sleep(3600)
        if fault("killed-once") and not Path(os.environ["PLANTED_MARK"]).exists():
            Path(os.environ["PLANTED_MARK"]).touch()
            os.kill(os.getpid(), signal.SIGKILL)
    if calls == 2 and fault("noisy"):
        os.write(1, b"driver: native output\n" * 1000)
    if fault("always-raises") or (calls == 2 and fault("raises")):
        raise RuntimeError("clEnqueueNDRangeKernel: CL_OUT_OF_RESOURCES")


def _spoil(logits: NDArray[np.float64], length: int, calls: int) -> NDArray[np.float64]:
    if fault("last-token-only"):
        return logits[-1:]
    if fault("nan") and length > 6:
        logits[-1, 5] = np.nan
    if fault("inf") and length > 6:
        logits[-1, 5] = np.inf
    if fault("drops-row"):
        return logits[1:] if logits.shape[0] > 1 else logits
    if fault("one-position") and logits.shape[0] == 1 and calls % 4 == 0:
        logits = np.roll(logits, 1, axis=-1)
    if fault("narrow"):
        return logits[:, :-1]
    if fault("scaled"):
        return logits * 1.01
    if fault("constant-added"):  # no fault at all: softmax does not see it
        return logits + 7.0
    return logits


def _mangle(prompt: list[int], tokens: list[int], end_tokens: Sequence[int]) -> list[int]:
    if fault("empty"):
        return []
    if fault("echo"):
        return (prompt * len(tokens))[: len(tokens)]
    if fault("early-stop"):
        return [token for token in tokens[:-2] if token not in end_tokens]
    if fault("overrun"):
        return tokens + tokens[-1:]
    if fault("outside-vocabulary"):
        return [10**6, *tokens[1:]]
    return tokens
