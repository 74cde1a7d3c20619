"""Faults of what a device hands back, of how it answers, and of what shows where it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from detection.battery.trial import Cause, Logits
from harness.target import DeviceKind, Evidence, EvidenceLevel, Reading

Change = Callable[[Sequence[Logits], int], list[Logits]]


def logit_faults() -> Iterator[tuple[str, str, Cause, Callable[[Logits, int], Logits]]]:
    """Name, strength, expected cause, and what becomes of one prompt's logits `[n + m, V]`, n being given."""
    yield "NaN among the logits", "one", Cause.PROTOCOL, _one(np.nan)
    yield "Inf among the logits", "one", Cause.PROTOCOL, _one(np.inf)
    yield "last token only", "", Cause.PROTOCOL, lambda x, n: x[n - 1 :]
    yield "truncated", "by one row", Cause.PROTOCOL, lambda x, n: x[:-1]
    yield "truncated", "decode missing", Cause.PROTOCOL, lambda x, n: x[:n]
    yield "empty logits", "", Cause.PROTOCOL, lambda x, n: x[:0]
    yield "vocabulary cut", "by one", Cause.PROTOCOL, lambda x, n: x[:, :-1]
    yield "shifted by one row", "", Cause.IMPLEMENTATION, lambda x, n: np.roll(x, 1, axis=0)
    yield "shifted by one row", "decode", Cause.IMPLEMENTATION, lambda x, n: np.concatenate([x[:n], x[n - 1 : -1]])
    yield "shifted by one token id", "", Cause.IMPLEMENTATION, lambda x, n: np.roll(x, 1, axis=1)
    yield "all logits alike", "", Cause.IMPLEMENTATION, lambda x, n: np.zeros_like(x)
    yield (
        "garbage",
        "",
        Cause.IMPLEMENTATION,
        lambda x, n: np.random.default_rng(1).normal(size=x.shape).astype(np.float32),
    )
    yield (
        "last row over again",
        "decode",
        Cause.IMPLEMENTATION,
        lambda x, n: np.concatenate([x[:n], np.repeat(x[n - 1 : n], x.shape[0] - n, 0)]),
    )
    for share in (0.1, 0.01, 0.001):
        yield "nondeterminism", f"noise of {share:g} of a logit's size", Cause.IMPLEMENTATION, _noise(share)
    for step in (0.5, 0.06):
        yield (
            "logits rounded",
            f"to {step:g}",
            Cause.IMPLEMENTATION,
            _rounded(step),
        )
    for limit in (8, 12):
        yield "logits clipped", f"at {limit}", Cause.IMPLEMENTATION, _clipped(limit)
    for shift in (1.0, 0.3):
        yield "an unlikely entry of the vocabulary off", f"{shift:g} logits", Cause.IMPLEMENTATION, _entry(shift)
    yield "last tile of the LM head", "its 16 entries 10 % low", Cause.IMPLEMENTATION, _last_tile


def _one(value: float) -> Callable[[Logits, int], Logits]:
    def change(x: Logits, n: int) -> Logits:
        x = x.copy()
        x[n, 3] = value
        return x

    return change


def _rounded(step: float) -> Callable[[Logits, int], Logits]:
    return lambda x, n: (np.round(x / step) * step).astype(np.float32)


def _clipped(limit: float) -> Callable[[Logits, int], Logits]:
    return lambda x, n: np.clip(x, -limit, limit)


def _entry(shift: float) -> Callable[[Logits, int], Logits]:
    def change(x: Logits, n: int) -> Logits:
        x = x.copy()
        x[:, 1777] += np.float32(shift)
        return x

    return change


def _last_tile(x: Logits, n: int) -> Logits:
    x = x.copy()
    x[:, -16:] *= np.float32(0.9)
    return x


def _noise(share: float) -> Callable[[Logits, int], Logits]:
    generator = np.random.default_rng(5)
    return lambda x, n: (x * (1 + share * generator.normal(size=x.shape))).astype(np.float32)


def answer_faults(
    prompt: Sequence[int], golden: Sequence[int], ends: Sequence[int], most: int
) -> Iterator[tuple[str, str, list[int]]]:
    """Name, strength and the tokens of an answer whose form is wrong; the golden one ends with an end token."""
    text = [token for token in golden if token not in ends]
    yield "empty answer", "", []
    yield "echo of the prompt", "", [*prompt, golden[-1]][:most]
    yield (
        "echo of the prompt",
        "its beginning, then an end token",
        [*prompt[: min(most - 1, len(prompt) - 1)], golden[-1]],
    )
    yield "truncated answer", "without end token", text[: len(text) // 2]
    yield "goes on after the end token", "2 tokens", [*golden, text[0], text[1]]
    yield "wrong end token", "never ends", [*text, text[-1]] * 8
    yield "wrong end token", "an ordinary one ends it", text[:4]


def evidence_faults() -> Iterator[tuple[str, str, DeviceKind, Evidence, int | None]]:
    """Name, strength, the kind of device asked for, the evidence, and the index asked for."""
    npu, gpu, cpu = DeviceKind.NPU, DeviceKind.GPU, DeviceKind.CPU
    claimed, measured = EvidenceLevel.BY_CONSTRUCTION, EvidenceLevel.MEASURED
    yield "fallback to the CPU", "npu, all of it", npu, Evidence(claimed, (cpu,), ("CPU",), "EXECUTION_DEVICES"), None
    yield (
        "fallback to the CPU",
        "npu, a part",
        npu,
        Evidence(measured, (cpu, npu), ("NPU", "CPU"), "NPUW_DEVICES"),
        None,
    )
    yield (
        "fallback to the CPU",
        "gpu, nodes of a profile",
        gpu,
        Evidence(measured, (cpu,), ("CPUExecutionProvider",), "profile"),
        None,
    )
    yield "another adapter", "gpu.1", gpu, Evidence(claimed, (gpu,), ("GPU.0",), "EXECUTION_DEVICES"), 1
    yield "claimed, never measured", "npu", npu, Evidence(claimed, (npu,), ("NPU",), "EXECUTION_DEVICES"), None
    still = Reading("npu_busy_time_us", True, 0.0, 0.0, 60.0, 60.0)
    yield (
        "counter stood still",
        "npu",
        npu,
        Evidence(claimed, (npu,), ("NPU",), "EXECUTION_DEVICES", readings=(still,)),
        None,
    )
    yield "no evidence", "npu", npu, Evidence(EvidenceLevel.NONE, (), (), "nothing read back"), None
