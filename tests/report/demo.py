"""Records that look like those of real runs, made up: in `tests/`, `python -m report.demo OUT.json` writes one.

Every target has a story (see `STORIES`), so that a page made from the record has one of everything: kernels that go
wrong past the window, a quantisation that is too coarse, a driver that crashes, NaN, a device that nothing attests.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.accelerators import Accelerator
from harness.backend import Capabilities, DeviceReport, SessionInfo
from harness.checkpoint import Fingerprint
from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.localise import Localisation, Sublayer
from harness.record import (
    ArtifactRecord,
    CaseRecord,
    CheckpointRecord,
    PromptRecord,
    Repeat,
    RunRecord,
    SessionRecord,
    Speed,
    Timings,
    Tops,
    WaiverRecord,
    write_record,
)
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Reading, Target, Unavailable
from report.demo_cases import Story, cases_of, skipped

Floats = NDArray[np.float64]

WINDOW = 64
STORIES = {
    "pytorch:cpu:fp32": Story(),
    "pytorch:cpu:bf16": Story(),
    "openvino:cpu:fp16": Story(),
    "openvino:cpu:int8": Story(),
    "openvino:cpu:int4": Story(),
    "openvino:gpu:fp16": Story(),
    "openvino:npu:int4": Story(fault="window"),
    "openvino:npu:int8": Story(fault="unattested"),
    "ort-genai:cpu:int4": Story(fault="waived"),
    "ort-genai:dml:fp16": Story(fault="nan"),
    "ort-genai:dml:int4": Story(fault="coarse"),
    "npu-library:npu:int8": Story(fault="crash"),
}
ABSENT = {
    "ort-genai:cuda:fp16": ("onnxruntime-genai has no cuda execution provider", "needs an NVIDIA GPU and its build"),
    "ort-genai:cuda:int4": ("onnxruntime-genai has no cuda execution provider", "needs an NVIDIA GPU and its build"),
    "pytorch:cuda:bf16": ("torch 2.14.1 finds no CUDA device", "needs an NVIDIA GPU with its driver"),
    "pytorch:mps:fp16": ("torch 2.14.1 has no MPS", "needs a Mac with Apple silicon"),
}
_TEXTS = {
    "introduce-yourself": (
        "core", "The first thing anybody asks a chat model; garbage shows at once.",
        "<|user|>\nCan you introduce yourself?<|end|>\n<|assistant|>\n",
        "I am a small language model, and I can answer questions, write text and help with code.<|end|>",
    ),
    "capital-of-hungary": (
        "core", "A fact with one right word: plausible but wrong words show in it.",
        "<|user|>\nWhat is the capital of Hungary?<|end|>\n<|assistant|>\n",
        "The capital of Hungary is Budapest, which lies on both banks of the Danube.<|end|>",
    ),
    "single-token": ("core", "The shortest prompt there is.", "A", " story about a cat that could not sleep at night."),
    "code": (
        "core", "Indentation and symbols: rare tokens in a strict order.",
        "<|user|>\nWrite a function that adds two numbers.<|end|>\n<|assistant|>\n",
        "def add(a, b):\n    # the sum of both\n    return a + b\n<|end|>",
    ),
    "chinese": (
        "core", "Bytes of several tokens to a letter.",
        "<|user|>\n你好，世界！<|end|>\n<|assistant|>\n", "你好！很高兴见到你。<|end|>",
    ),
    "remembered-name": (
        "core", "The answer stands in the first turn: attention must reach back.",
        "<|user|>\nMy name is Clara.<|end|>\n<|assistant|>\nNice to meet you, Clara!<|end|>\n"
        "<|user|>\nWhat is my name?<|end|>\n<|assistant|>\n",
        "Your name is Clara, as you told me.<|end|>",
    ),
    "window-plus-one": (
        "long", "One token more than the window holds: the first that is masked.",
        "The rain had not stopped for three days, and the river was higher than anybody in the village could remember. "
        "In the evening the miller went out with a lamp to look at the wheel. It turned slowly, and the water stood "
        "nearly at the door, so that he could not",
        " go back the way he had come. He waited on the bridge until the morning.",
    ),
    "window-twice": (
        "long", "Twice the window: most of the prompt is out of reach of its end.",
        "A table of results is read from the left. The first column names the target, and the second says whether it "
        "passed. Every other column is one suite: how many cases there were, and how many of them failed. A cell that "
        "is empty was not judged; a cell with a question mark could not be judged, since the device was not there. "
        "Below the table stands every failure with its reason, and what to do about it. If a driver was changed "
        "between two runs, compare",
        " both records: what is new stands first, and what is mended stands last.",
    ),
}  # fmt: skip


class Vocabulary:
    """Ids of the pieces of texts, as a tokenizer would cut them."""

    def __init__(self) -> None:
        self.words: dict[str, str] = {}
        self._ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        pieces = re.findall(r"<\|\w+\|>|\n| {2,}| ?[A-Za-z]+| ?\d|.", text)
        return [self._ids.setdefault(piece, 1000 + len(self._ids)) for piece in pieces]

    def close(self) -> list[int]:
        self.words = {str(number): piece for piece, number in self._ids.items()}
        return list(self._ids.values())


def demo_record(
    stories: dict[str, Story] | None = None, copies: int = 1, seed: int = 7, **changes: object
) -> RunRecord:
    """A record of the stories' targets on all prompts, each prompt `copies` times; `changes` replace fields."""
    rng = np.random.default_rng(seed)
    stories = STORIES if stories is None else stories
    prompts, words = _prompts(rng, copies)
    cases: list[CaseRecord] = []
    for target, story in stories.items():
        cases += cases_of(rng, target, story, prompts, WINDOW)
    absent = {target: why for target, why in ABSENT.items() if target not in stories}
    for target, (reason, remedy) in absent.items():
        cases += skipped(target, prompts, f"{reason}; {remedy}")
    failed = any(case.outcome not in ("PASS", "WAIVED", "UNSUPPORTED") for case in cases)
    fields: dict[str, object] = {
        "schema": 2,
        "harness": "0.1.0",
        "started": "2026-11-25T13:39:35+00:00",
        "finished": "2026-11-25T13:52:02+00:00",
        "complete": True,
        "exit_status": int(failed),
        "command": ["pytest", "-c", "./pyproject.toml", "--record=./records/demo.json"],
        "machine": MACHINE,
        "checkpoint": CheckpointRecord("phi-3-demo", Fingerprint("a1" * 32, "b2" * 32, "c3" * 32), WINDOW),
        "suites": {"core": "0e85a3f1" * 8, "long": "633488b3" * 8},
        "policy_sha256": "5f" * 32,
        "waivers_sha256": "6a" * 32,
        "sessions": [_session(rng, target, story) for target, story in stories.items() if story.fault != "crash"],
        "cases": cases,
        "runtimes": _RUNTIMES,
        "prompts": prompts,
        "words": words,
        "environment": {"OMP_NUM_THREADS": "1", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"},
        "waivers": _WAIVERS,
    }
    return RunRecord(**{**fields, **changes})  # type: ignore[arg-type]


MACHINE = Machine(
    system="Windows",
    release="11 (10.0.26100)",
    architecture="AMD64",
    processor="Intel(R) Core(TM) Ultra 7 258V",
    cores=8,
    memory_bytes=34_083_000_000,
    python="3.12.8",
    accelerators=(
        Accelerator(DeviceKind.GPU, "Intel(R) Arc(TM) 140V GPU", "igdkmd64", "32.0.101.6299"),
        Accelerator(DeviceKind.NPU, "Intel(R) AI Boost", "npu", "32.0.100.4023", firmware="20260912"),
    ),
)
_RUNTIMES = [
    RuntimeReport(
        "openvino", None, "3.12.8", {"openvino": "2026.4.1", "optimum-intel": "2.2.0"},
        {"cpu": DeviceReport("Intel(R) Core(TM) Ultra 7 258V"), "npu": DeviceReport("Intel(R) AI Boost")},
    ),
    RuntimeReport(
        "ort-genai", None, "3.12.8", {"onnxruntime-genai-winml": "0.18.0"},
        {"dml": DeviceReport("Intel(R) Arc(TM) 140V GPU"), "cuda": Unavailable(*ABSENT["ort-genai:cuda:fp16"])},
    ),
]  # fmt: skip
_WAIVERS = [
    WaiverRecord(
        "ort-genai-window-wrong",
        "GroupQueryAttention ignores the sliding window once the cache is full.",
        "https://github.com/microsoft/onnxruntime-genai/issues/552",
        "conformance team",
        "2027-03-01",
    )
]


def _prompts(rng: np.random.Generator, copies: int) -> tuple[list[PromptRecord], dict[str, str]]:
    vocabulary = Vocabulary()
    cut = {
        f"{name}-{copy}" if copy else name: (suite, about, vocabulary.encode(asked), vocabulary.encode(answer))
        for copy in range(copies)
        for name, (suite, about, asked, answer) in _TEXTS.items()
    }
    ids = np.array(vocabulary.close())
    prompts = []
    for name, (suite, about, asked, answer) in cut.items():
        tokens = asked + answer
        margins = rng.gamma(1.6, 1.4, len(tokens)).round(3)
        prompts.append(PromptRecord(suite, name, about, tokens, len(asked), _tops(rng, tokens, ids), margins.tolist()))
    return prompts, vocabulary.words


def _tops(rng: np.random.Generator, tokens: list[int], ids: NDArray[np.int64]) -> Tops:
    followers = [*tokens[1:], int(ids[0])]
    others = rng.choice(ids, (len(tokens), 2))
    first = rng.beta(3, 1.5, len(tokens))
    second = (1 - first) * rng.beta(3, 2, len(tokens))
    third = (1 - first - second) * rng.beta(2, 3, len(tokens))
    shares = np.stack([first, second, third], axis=1).round(4)
    rows = [[follower, int(a), int(b)] for follower, (a, b) in zip(followers, others, strict=True)]
    return Tops(rows, shares.tolist())


def _session(rng: np.random.Generator, target: str, story: Story) -> SessionRecord:
    parsed = Target.parse(target)
    kind = {"gpu": DeviceKind.GPU, "dml": DeviceKind.GPU, "npu": DeviceKind.NPU}.get(parsed.base_device, DeviceKind.CPU)
    measured = kind is not DeviceKind.CPU and story.fault != "unattested"
    reading = Reading(
        "npu_busy_time_us" if kind is DeviceKind.NPU else "GPU Engine Running Time", True, 0.01, 2.31, 3.4, 3.1
    )
    evidence = Evidence(
        level=EvidenceLevel.MEASURED if measured else EvidenceLevel.BY_CONSTRUCTION,
        kinds=(kind,),
        devices=(parsed.device.upper(),),
        source="EXECUTION_DEVICES of the compiled model",
        readings=(reading,) if measured else (),
        unread="" if measured else "the operating system counts no work of this device",
    )
    pace = {"fp32": 4.0, "bf16": 2.2, "fp16": 2.0, "int8": 1.3, "int4": 1.0}[parsed.precision.value]
    pace *= {DeviceKind.CPU: 3.0, DeviceKind.GPU: 0.8, DeviceKind.NPU: 1.0}[kind]
    first_bad = "first bad: model.layers.3.self_attn, in decode only, position 67" if story.fault == "window" else ""
    return SessionRecord(
        target=target,
        kind=kind,
        compute_class=Precision.FP16 if parsed.precision is Precision.INT4 else parsed.precision,
        info=SessionInfo(
            2048, Precision.FP16, {"INFERENCE_PRECISION_HINT": "f16", "KV_CACHE_PRECISION": "f16"},
            {parsed.backend: "2026.4.1" if parsed.backend == "openvino" else "0.18.0"}, Capabilities(),
        ),
        artifact=ArtifactRecord("exported", f"{parsed.precision.value}-sym", "ab" * 32, int(4.1e6 * pace), {}, []),
        evidence=evidence,
        arithmetic="fp16 operators, f16 cache",
        distances={"fp16 operators, f16 cache": 0.0031, "fp16 operators": 0.0088},
        first_bad=first_bad,
        localisation=_localisation(rng, target) if first_bad else None,
        timings=Timings(float(20 * pace * rng.uniform(0.8, 1.2)), float(1.4 * pace)),
        speed=tuple(_speed(rng, length, pace) for length in (16, 64, 256, 1024)),
        peak_memory_bytes=int(6e8 + 3e8 * pace),
        repeats=(
            Repeat("introduce-yourself", story.fault != "window", 0.0, 0.0, 0.0),
            Repeat("window-twice", kind is DeviceKind.CPU, 0.0 if kind is DeviceKind.CPU else 3e-6, 1.1e-5, 2e-11),
        ),
    )  # fmt: skip


def _speed(rng: np.random.Generator, length: int, pace: float) -> Speed:
    first = pace * (4 + 0.22 * length) * rng.uniform(0.97, 1.06, 5)
    token = pace * (3.1 + 0.002 * length) * rng.uniform(0.97, 1.05, 5)
    return Speed(length, 32, tuple(first.round(3).tolist()), tuple(token.round(3).tolist()))


def _localisation(rng: np.random.Generator, target: str) -> Localisation:
    places = ["model.embed_tokens"]
    places += [f"model.layers.{layer}.{part}" for layer in range(6) for part in ("self_attn", "mlp")] + ["model.norm"]
    sublayers = []
    for place in places:
        for phase in ("prefill", "decode"):
            broken = phase == "decode" and place == "model.layers.3.self_attn"
            yardstick = 4e-4 * float(rng.uniform(0.8, 1.2))
            typical = yardstick * (38.0 if broken else float(rng.uniform(0.5, 1.6)))
            worst = typical * float(rng.uniform(1.5, 2.2))
            drift = 9e-4 if place < "model.layers.3.self_attn" or phase == "prefill" else 2.4e-2
            position = 67 if broken else int(rng.integers(0, 60))
            first = position if broken else None
            sublayers.append(
                Sublayer(place, phase, typical, worst, position, yardstick, 2 * yardstick, drift, first)
            )  # fmt: skip
    distances = {"fp16 operators, f16 cache": 0.0031}
    return Localisation(target, "window-twice", "fp16 operators, f16 cache", distances, tuple(sublayers), 0.0)


if __name__ == "__main__":
    write_record(Path(sys.argv[1]), demo_record())
