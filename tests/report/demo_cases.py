"""The cases of one target of a made-up run, with figures that belong together: details, numbers, limits, messages."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.record import CaseRecord, Detail, PromptRecord, Tops
from harness.target import Target

Floats = NDArray[np.float64]

# Typical quantisation errors and yardsticks in logits; honest implementations lie at about the yardstick.
_QUANTISATION = {"fp32": 1.7e-6, "bf16": 1.7e-6, "fp16": 4e-4, "int8": 2.4e-2, "int4": 0.21}
_YARDSTICK = {"fp32": 2.4e-6, "bf16": 1.9e-2, "fp16": 2.6e-3, "int8": 1.6e-2, "int4": 1.7e-2}
_KL_LIMIT = {"fp32": 2.5e-7, "bf16": 2.5e-7, "fp16": 1e-4, "int8": 4.5e-3, "int4": 0.25}
_RATIO_LIMITS = {"ratio_mean": 3.5, "ratio_worst": 4.5}
_RMS = 2.6


class Story(msgspec.Struct, frozen=True):
    """What is wrong with a target: window, unattested, waived, nan, coarse, crash, or nothing."""

    fault: str = ""


def cases_of(
    rng: np.random.Generator, target: str, story: Story, prompts: Sequence[PromptRecord], window: int
) -> list[CaseRecord]:
    """All cases of a target, in the order of judging."""
    if story.fault == "crash":
        message = (
            f"{target}: the worker ended by signal 6 (SIGABRT) while loading\n"
            "  its last words: terminate called without an active exception\n  remedy: load one model to a process"
        )
        return [
            _case(target, test, prompt, "ERROR" if number < 3 else "NOT_RUN", message, stage="load")
            for number, (test, prompt) in enumerate(_all(prompts))
        ]
    cases = [_attestation(target, story), _weights(target, story)]
    for prompt in prompts:
        cases += _of_prompt(rng, target, story, prompt, window)
    for suite in dict.fromkeys(prompt.suite for prompt in prompts):
        own = [c for c in cases if c.test == "test_logits" and c.case in {f"test_logits[{p.id}]" for p in prompts}]
        kl = [c.numbers["kl_mean"] for c in own if math.isfinite(c.numbers.get("kl_mean", math.nan))]
        numbers = {"prompts": float(len(own)), "positions": 400.0, "kl_mean": float(np.mean(kl)), "top1": 0.97}
        cases.append(_case(target, "test_logits_of_suite", suite, "PASS", "", numbers=numbers))
        cases.append(_case(target, "test_greedy_of_suite", suite, "PASS", "", numbers={"greedy_match": 0.93}))
    if story.fault == "unattested":
        why = "the NPU's busy counter was read and did not move: 0.00 s of 3.4 s of work"
        cases = [
            msgspec.structs.replace(c, outcome="UNATTESTED", message=why) if c.outcome == "PASS" else c for c in cases
        ]
    return cases


def skipped(target: str, prompts: Sequence[PromptRecord], message: str) -> list[CaseRecord]:
    """The cases of a target that cannot run here."""
    return [_case(target, test, prompt, "UNSUPPORTED", message) for test, prompt in _all(prompts)]


def _all(prompts: Sequence[PromptRecord]) -> list[tuple[str, str]]:
    per_prompt = ("test_logits", "test_greedy_form", "test_greedy_match", "test_greedy_regret")
    cases = [("test_attestation", ""), ("test_weights", "")]
    return cases + [(test, prompt.id) for test in per_prompt for prompt in prompts]


def _case(
    target: str,
    test: str,
    prompt: str,
    outcome: str,
    message: str,
    *,
    numbers: dict[str, float] | None = None,
    limits: dict[str, float] | None = None,
    stage: str | None = None,
    waiver: str | None = None,
    detail: Detail | None = None,
) -> CaseRecord:
    file = "test_" + test.split("_")[1]
    case = f"{test}[{prompt}]" if prompt else test
    ids = f"{target}-{prompt}" if prompt else target
    return CaseRecord(
        id=f"conformance/{file}.py::{test}[{ids}]", test=test, target=target, case=case, outcome=outcome,
        stage=stage if outcome == "ERROR" else None, numbers=numbers or {}, limits=limits or {}, message=message,
        waiver=waiver, seconds=0.1, detail=detail,
    )  # fmt: skip


def _attestation(target: str, story: Story) -> CaseRecord:
    numbers = {"level": 0.0 if story.fault == "unattested" else 2.0, "contradicted": 0.0}
    return _case(target, "test_attestation", "", "PASS", "", numbers=numbers, limits={"level": 1.0})


def _weights(target: str, story: Story) -> CaseRecord:
    if story.fault != "coarse":
        return _case(
            target, "test_weights", "", "PASS", "", numbers={"tensors": 39.0, "findings": 0.0}, limits={"findings": 0.0}
        )
    message = (
        f"{target}\n  weight audit: model.layers.2.mlp.down_proj.weight: 12 of 256 rows are not the checkpoint's, "
        "from row 16 on: codes differ by 3 and more\n  weight audit: model.layers.4.mlp.down_proj.weight: likewise"
    )
    return _case(
        target,
        "test_weights",
        "",
        "FAIL",
        message,
        numbers={"tensors": 39.0, "findings": 2.0},
        limits={"findings": 0.0},
    )


def _of_prompt(
    rng: np.random.Generator, target: str, story: Story, prompt: PromptRecord, window: int
) -> list[CaseRecord]:
    precision = Target.parse(target).precision.value
    n = len(prompt.tokens)
    yardstick = _YARDSTICK[precision] * rng.uniform(0.8, 1.25, n)
    implementation = yardstick * rng.gamma(9, 1 / 9, n)
    quantisation = _QUANTISATION[precision] * rng.gamma(4, 1 / 4, n) * (9 if story.fault == "coarse" else 1)
    if story.fault in ("window", "waived"):
        beyond = (np.arange(n) >= max(window, prompt.prefill)) * (1.0 if story.fault == "window" else 0.3)
        implementation = implementation + beyond * rng.gamma(5, 0.25, n)
    kl = (quantisation**2 + implementation**2) / 8 * rng.gamma(2, 0.5, n)
    bad = ["nan", "nan", ""][hash_of(prompt.id) % 3] if story.fault == "nan" else ""
    if bad:
        return _not_finite(target, prompt)
    tokens = _answer(rng, prompt, kl)
    detail = Detail(
        logits_sha256=f"{hash_of(target + prompt.id):064x}",
        kl=_short(kl), quantisation=_short(quantisation), implementation=_short(implementation),
        yardstick=_short(yardstick), top=_tops(rng, prompt, kl),
    )  # fmt: skip
    logits = _logits(target, prompt, story, precision, kl, quantisation, implementation, yardstick, detail)
    return [logits, *_greedy(target, prompt, story, tokens, logits.outcome)]


def _logits(
    target: str, prompt: PromptRecord, story: Story, precision: str, kl: Floats, quantisation: Floats,
    implementation: Floats, yardstick: Floats, detail: Detail,
) -> CaseRecord:  # fmt: skip
    total = np.hypot(quantisation, implementation)
    limit = _KL_LIMIT[precision]
    numbers = {"positions": float(kl.size), "kl_mean": kl.mean(), "kl_worst": kl.max(), "top1": 0.97}
    numbers |= {"relative_mean": total.mean() / _RMS, "centred_rms_mean": total.mean()}
    numbers |= {"quantisation_kl_mean": float((quantisation**2).mean() / 8)}
    numbers |= {"quantisation_centred_rms_mean": quantisation.mean()}
    numbers |= {"quantisation_relative_mean": quantisation.mean() / _RMS}
    limits = {"quantisation_kl_mean": limit, "quantisation_relative_mean": 3 * math.sqrt(limit), **_RATIO_LIMITS}
    lines = []
    for phase, rows in (("prefill", slice(0, prompt.prefill)), ("decode", slice(prompt.prefill, None))):
        ratio = implementation[rows].mean() / yardstick[rows].mean()
        worst = implementation[rows].max() / yardstick[rows].max()
        numbers |= {f"implementation_{phase}_mean": implementation[rows].mean(), f"ratio_{phase}_mean": ratio}
        numbers |= {
            f"yardstick_{phase}_mean": yardstick[rows].mean(),
            f"yardstick_{phase}_worst": yardstick[rows].max(),
        }
        numbers |= {f"ratio_{phase}_worst": worst}
        if ratio > 3.5 or worst > 4.5:
            lines.append(
                f"implementation error in {phase}, mean {implementation[rows].mean():.3g} logits, is {ratio:.3g} x the "
                f"yardstick of {yardstick[rows].mean():.3g}; allowed: 3.5 x (1.6 x worst measured 2.2)"
            )
    if numbers["quantisation_kl_mean"] > limit:
        lines.append(
            f"quantisation error: mean KL {numbers['quantisation_kl_mean']:.3g} nat; allowed: {limit:g} nat (product)"
        )
    outcome, waiver = ("FAIL" if lines else "PASS"), None
    if lines and story.fault == "waived":
        outcome, waiver = "WAIVED", "ort-genai-window-wrong"
    then = len(prompt.tokens) - prompt.prefill
    head = f"{target}  prompt '{prompt.id}' of {prompt.suite} ({prompt.prefill} tokens, then {then})"
    if lines and story.fault == "window":
        lines.append("first bad: model.layers.3.self_attn, in decode only, position 67")
    message = "\n  ".join([head, *lines, "the device computes as with fp16 operators (inferred)"]) if lines else ""
    plain = {name: float(value) for name, value in numbers.items()}
    return _case(
        target, "test_logits", prompt.id, outcome, message, numbers=plain, limits=limits, waiver=waiver, detail=detail
    )  # fmt: skip


def _not_finite(target: str, prompt: PromptRecord) -> list[CaseRecord]:
    message = (
        f"{target}  prompt '{prompt.id}' of {prompt.suite}\n  nan among the logits: position 3, vocabulary entry 17"
    )
    numbers = {"kl_mean": math.nan, "kl_worst": math.inf}
    tests = ("test_greedy_form", "test_greedy_match", "test_greedy_regret")
    cases = [_case(target, "test_logits", prompt.id, "FAIL", message, numbers=numbers, limits={"kl_mean": 1e-4})]
    return cases + [_case(target, test, prompt.id, "FAIL", "no tokens and no error") for test in tests]


def _greedy(target: str, prompt: PromptRecord, story: Story, tokens: list[int], outcome: str) -> list[CaseRecord]:
    golden = prompt.tokens[prompt.prefill :]
    common = next((i for i, pair in enumerate(zip(golden, tokens, strict=False)) if pair[0] != pair[1]), len(golden))
    wrong = story.fault == "window" and outcome == "FAIL" and common < len(golden)
    numbers = {"match": float(tokens == golden), "matched_tokens": float(common), "token": float(common)}
    message = f"{target}  prompt '{prompt.id}'\n  token {common}: the reference prefers another by 2.1 logits"
    regret = {"regret_ratio": 61.0 if wrong else 0.4}
    detail = Detail(tokens=tokens)
    length = {"new_tokens": float(len(tokens))}
    return [
        _case(target, "test_greedy_form", prompt.id, "PASS", "", numbers=length, detail=detail),
        _case(target, "test_greedy_match", prompt.id, "PASS", "", numbers=numbers),
        _case(
            target, "test_greedy_regret", prompt.id, "FAIL" if wrong else "PASS", message if wrong else "",
            numbers=regret, limits={"regret_ratio": 5.0},
        ),
    ]  # fmt: skip


def _answer(rng: np.random.Generator, prompt: PromptRecord, kl: Floats) -> list[int]:
    """The golden's answer, left for another of its likeliest tokens where the error is large."""
    golden = list(prompt.tokens[prompt.prefill :])
    for place in range(len(golden)):
        row = prompt.prefill - 1 + place
        if rng.random() < min(0.6, 4 * kl[row]) / (0.3 + prompt.margins[row]):
            rest = [prompt.top.tokens[row + later][min(2, later % 3)] for later in range(1, len(golden) - place)]
            return [*golden[:place], prompt.top.tokens[row][1], *rest]
    return golden


def _tops(rng: np.random.Generator, prompt: PromptRecord, kl: Floats) -> Tops:
    tokens, shares = [], []
    for row, error in enumerate(kl):
        moved = np.array(prompt.top.probabilities[row]) * np.exp(rng.normal(0, 1.5 * math.sqrt(error), 3))
        moved = moved / max(1.0, moved.sum() * 1.0001)
        order = np.argsort(-moved)
        tokens.append([prompt.top.tokens[row][place] for place in order])
        shares.append([round(float(moved[place]), 4) for place in order])
    return Tops(tokens, shares)


def _short(values: Floats) -> list[float]:
    return [float(f"{value:.4g}") for value in values]


def hash_of(text: str) -> int:
    """A number from a text, the same in every process."""
    return sum((place + 1) * ord(letter) for place, letter in enumerate(text))
