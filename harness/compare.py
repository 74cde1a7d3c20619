"""Judging: outcomes, verdicts, and the sentences that a failing verdict prints.

Nothing here knows a device or a runtime. A comparison takes arrays and the limits of a *compute class*
and gives a `Verdict`: an outcome, the raw numbers it rests on, the limits, and a message for people.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.attest import attest, required_rank
from harness.policy import GreedyLimits, Limit, LogitLimits, Policy, SuiteLimits
from harness.reference_rows import ReferenceRows, as_rows
from harness.target import DeviceKind, Evidence

Logits = NDArray[np.floating]


class Outcome(str, enum.Enum):
    """What became of a case. All but PASS, UNSUPPORTED and WAIVED fail."""

    PASS = "PASS"
    FAIL = "FAIL"
    WAIVED = "WAIVED"
    UNATTESTED = "UNATTESTED"
    UNSUPPORTED = "UNSUPPORTED"
    NOT_RUN = "NOT_RUN"
    ERROR = "ERROR"


class Verdict(msgspec.Struct, frozen=True):
    """What one comparison concluded. `numbers` and `limits` are raw; `message` is for people."""

    outcome: Outcome
    numbers: dict[str, float]
    limits: dict[str, float]
    message: str = ""


def judge_evidence(evidence: Evidence, kind: DeviceKind, policy: Policy, index: int | None = None) -> Verdict:
    """Whether it is shown that a device of the kind asked for computed, and the one of that index if one was named."""
    found = attest(evidence, kind, policy, index)
    numbers = {"level": found.rank, "contradicted": float(found.contradicted)}
    limits = {"level": required_rank(policy, kind)}
    return Verdict(Outcome.PASS if found.sufficient else Outcome.UNATTESTED, numbers, limits, found.reason)


class Rows(msgspec.Struct, frozen=True):
    """Device logits that were compared with reference logits: errors a position, and where the rows begin.

    `first` is the position of the first row in the sequence: 0, or n - 1 where only the last token of an
    n-token prompt has logits.
    """

    errors: metrics.RowErrors
    first: int


def compare_logits(
    reference: Logits | ReferenceRows, device: Logits, prompt_length: int, *, whole_prompt: bool
) -> Rows | Verdict:
    """Compare n + m reference rows, or `[n + m, V]` logits, with what the device gave.

    A wrong shape, NaN or Inf is a failing verdict: such logits are never compared.
    """
    first = 0 if whole_prompt else prompt_length - 1
    expected = (reference.shape[0] - first, reference.shape[1])
    if device.shape != expected:
        hint = ""
        if whole_prompt and device.ndim and device.shape[0] == expected[0] - prompt_length + 1:
            hint = "; the prompt has logits for its last token only"
        return Verdict(Outcome.FAIL, {}, {}, f"logits of shape {device.shape} where {expected} were due{hint}")
    bad = metrics.first_non_finite(device)
    if bad is not None:
        row, column = bad
        value = float(device[row, column])
        return Verdict(
            Outcome.FAIL, {}, {}, f"{value} among the logits: position {first + row}, vocabulary entry {column}"
        )
    return Rows(as_rows(reference)[first:].compare(device), first)


def judge_logits(rows: Rows, limits: LogitLimits, prompt_length: int) -> Verdict:
    """Hold mean and worst KL and centred relative error of one prompt against their limits; all of them gate.

    Where they are estimates, the worst is of what they are at least: see `harness.metrics.SURELY`.
    """
    kl, relative = rows.errors.kl, rows.errors.centred_relative
    surely = {"kl": rows.errors.kl_surely, "relative": rows.errors.relative_surely}
    numbers = {
        "positions": float(kl.size),
        "kl_mean": float(kl.mean()),
        "kl_worst": float(surely["kl"].max()),
        "relative_mean": float(relative.mean()),
        "relative_worst": float(surely["relative"].max()),
        "centred_rms_mean": float(rows.errors.centred_rms.mean()),
        "centred_rms_worst": float(rows.errors.centred_rms.max()),
        "top1": float(rows.errors.top1_agrees.mean()),
    }
    lines = []
    for key, name in (
        ("kl_mean", "mean KL"),
        ("kl_worst", "worst-token KL"),
        ("relative_mean", "mean centred relative error"),
        ("relative_worst", "worst centred relative error"),
    ):
        limit: Limit = getattr(limits, key)
        if not numbers[key] <= limit.limit:
            unit = " nat" if key.startswith("kl") else ""
            place = _place(surely[key.split("_")[0]], rows.first, prompt_length) if "worst" in key else ""
            lines.append(f"{name} {numbers[key]:.3g}{unit}{place}; allowed: {limit.limit:.3g}{unit} ({limit.origin})")
    bounds = {key: getattr(limits, key).limit for key in ("kl_mean", "kl_worst", "relative_mean", "relative_worst")}
    return Verdict(Outcome.FAIL if lines else Outcome.PASS, numbers, bounds, "\n".join(lines))


def _place(values: NDArray[np.float64], first: int, prompt_length: int) -> str:
    position = first + int(values.argmax())
    total = first + values.size
    part = "prefill" if position < prompt_length else "decode"
    return f" at position {position} of {total} ({part})"


def judge_form(tokens: Sequence[int], max_new_tokens: int, end_tokens: Sequence[int]) -> Verdict:
    """Whether generated tokens end where they may: not empty, no early stop, no overrun, no echo of the prompt."""
    numbers = {"new_tokens": float(len(tokens))}
    limits = {"max_new_tokens": float(max_new_tokens)}

    def fail(message: str) -> Verdict:
        return Verdict(Outcome.FAIL, numbers, limits, message)

    if not tokens:
        return fail("no tokens and no error")
    if len(tokens) > max_new_tokens:
        return fail(f"overrun: {len(tokens)} new tokens; {max_new_tokens} were asked for")
    ends = [index for index, token in enumerate(tokens) if token in end_tokens]
    if ends and ends[0] < len(tokens) - 1:
        return fail(f"overrun: {len(tokens) - 1 - ends[0]} tokens follow the end token at {ends[0]}")
    if not ends and len(tokens) < max_new_tokens:
        return fail(f"early stop: {len(tokens)} of {max_new_tokens} new tokens and no end token")
    return Verdict(Outcome.PASS, numbers, limits)


def is_echo(
    prompt: Sequence[int], tokens: Sequence[int], golden: Sequence[int], end_tokens: Sequence[int] = ()
) -> bool:
    """Whether an answer is the prompt over again, or its beginning and an end token, which the golden's answer is not.

    Eight tokens are asked for, so that a short answer that happens to begin like its prompt is none.
    """
    if tokens and tokens[-1] in end_tokens:
        tokens = tokens[:-1]
    span = min(len(prompt), len(tokens))
    return span >= 8 and list(tokens[:span]) == list(prompt[:span]) and list(golden[:span]) != list(prompt[:span])


def judge_match(
    golden: Sequence[int],
    tokens: Sequence[int],
    reference: Logits | ReferenceRows,
    limits: GreedyLimits,
    ask: Callable[[], Logits] | None = None,
) -> Verdict:
    """Token for token against the golden: a first divergence must lie where the golden hardly prefers its own.

    `reference`: `[m, V]` or m rows, the golden's at the positions that chose its m tokens. Compact rows may lack the
    logit of the device's token and know how far below the best it lies at least. Where that is not beyond the limit,
    `ask` is to give the whole rows.
    """
    bound = limits.divergence_margin
    if not golden or not tokens:
        message = f"{len(tokens)} new tokens, where the golden has {len(golden)}"
        return Verdict(Outcome.FAIL, {"match": 0.0}, {"divergence_margin": bound.limit}, message)
    at = metrics.first_divergence(list(golden), list(tokens))
    numbers = {"match": float(at is None), "matched_tokens": float(len(golden) if at is None else at)}
    limit = {"divergence_margin": bound.limit}
    if at is None:
        return Verdict(Outcome.PASS, numbers, limit)
    if at >= len(tokens) or at >= len(golden):
        return Verdict(
            Outcome.FAIL, numbers, limit, f"{len(tokens)} new tokens, all as in the golden, which has {len(golden)}"
        )
    if not 0 <= tokens[at] < reference.shape[1]:
        return Verdict(Outcome.FAIL, numbers, limit, f"token id {tokens[at]} is outside the vocabulary")
    margin, known = _margin(as_rows(reference)[at : at + 1], tokens[at])
    if not known and margin <= bound.limit and ask is not None:
        margin, known = _margin(as_rows(ask())[at : at + 1], tokens[at])
    numbers["divergence_margin"] = margin
    if not known and margin <= bound.limit:
        said = (
            f"first divergence at token {at} of {len(golden)}, at a token of which the compact golden knows too little"
        )
        return Verdict(Outcome.FAIL, {**numbers, "token": float(at)}, limit, said)
    if margin <= bound.limit:
        return Verdict(Outcome.PASS, numbers, limit, f"first divergence at token {at} of {len(golden)}")
    message = (
        f"first divergence at token {at} of {len(golden)}: the golden prefers its own token by "
        f"{'' if known else 'at least '}{margin:.3g} of its logits' RMS; allowed: {bound.limit:.3g} ({bound.origin})"
    )
    return Verdict(Outcome.FAIL, {**numbers, "token": float(at)}, limit, message)


def _margin(row: ReferenceRows, token: int) -> tuple[float, bool]:
    """How far a row prefers its best to a token, in units of its RMS; whether it is that, or that at least."""
    found = row.regret([token])
    return float(found.least[0] / row.scale()[0]), bool(found.known[0])


def judge_regret(reference: Logits | ReferenceRows, tokens: Sequence[int], limits: GreedyLimits) -> Verdict:
    """Every token the device chose must be, for the reference on the device's own text, nearly its best.

    `reference`: `[m, V]` or m rows, row t is the reference teacher-forced on the device's tokens before t. Compact rows
    know the logits of the tokens that follow them in their text, which is the device's where they are asked.
    """
    rows = as_rows(reference)
    bound = limits.regret_worst
    limit = {"regret_worst": bound.limit}
    outside = [token for token in tokens if not 0 <= token < reference.shape[1]]
    if outside:
        return Verdict(Outcome.FAIL, {}, limit, f"token id {outside[0]} is outside the vocabulary")
    absolute, known = rows.regret(tokens)
    if not known.all():
        return Verdict(
            Outcome.FAIL, {}, limit, "the compact golden is of another text: it has no logits of these tokens"
        )
    relative = absolute / rows.scale()
    worst = int(relative.argmax())
    numbers = {
        "regret_worst": float(relative[worst]),
        "regret_mean": float(relative.mean()),
        "regret_worst_logits": float(absolute[worst]),
        "token": float(worst),
        "chosen": float(tokens[worst]),
        "preferred": float(rows.best()[worst]),
    }
    if numbers["regret_worst"] <= bound.limit:
        return Verdict(Outcome.PASS, numbers, limit)
    before = f"; regret before it: at most {relative[:worst].max():.3g}" if worst else ""
    message = (
        f"token {worst} of {len(tokens)}: the reference, on the device's own text, prefers another by "
        f"{absolute[worst]:.3g} logits, {relative[worst]:.3g} of their RMS; allowed: {bound.limit:.3g} "
        f"({bound.origin}){before}"
    )
    return Verdict(Outcome.FAIL, numbers, limit, message)


def judge_suite(errors: Sequence[metrics.RowErrors], limits: SuiteLimits) -> Verdict:
    """Mean KL and top-1 agreement over all positions of a suite."""
    kl = np.concatenate([rows.kl for rows in errors]) if errors else np.empty(0)
    if kl.size == 0:
        return Verdict(Outcome.FAIL, {}, {}, "zero positions were compared")
    agrees = np.concatenate([rows.top1_agrees for rows in errors])
    numbers = {"prompts": float(len(errors)), "positions": float(kl.size)}
    worst = max(float(rows.kl_surely.max()) for rows in errors)
    numbers |= {"kl_mean": float(kl.mean()), "kl_worst": worst, "top1": float(agrees.mean())}
    numbers["top1_upper"] = metrics.wilson_upper(int(agrees.sum()), agrees.size)
    lines = []
    if not numbers["kl_mean"] <= limits.kl_mean.limit:
        lines.append(_beyond("mean KL", numbers["kl_mean"], " nat", limits.kl_mean))
    # A session without whole-prompt logits compares a few dozen positions, of which one or two prove nothing.
    if not numbers["top1_upper"] >= limits.top1_min.limit:
        lines.append(_beyond("top-1 agreement", numbers["top1"], "", limits.top1_min))
    bounds = {"kl_mean": limits.kl_mean.limit, "top1": limits.top1_min.limit}
    return Verdict(Outcome.FAIL if lines else Outcome.PASS, numbers, bounds, "\n".join(lines))


def judge_agreement(matches: Sequence[bool], limits: SuiteLimits) -> Verdict:
    """The share of prompts whose greedy tokens equal the golden's."""
    if not matches:
        return Verdict(Outcome.FAIL, {}, {}, "zero prompts were compared")
    share = sum(matches) / len(matches)
    numbers = {"prompts": float(len(matches)), "greedy_match": share}
    bound = limits.greedy_match_min
    message = "" if share >= bound.limit else _beyond("greedy match", share, "", bound)
    return Verdict(Outcome.FAIL if message else Outcome.PASS, numbers, {"greedy_match": bound.limit}, message)


def _beyond(name: str, value: float, unit: str, limit: Limit) -> str:
    return f"{name} {value:.4g}{unit}; allowed: {limit.limit:.4g}{unit} ({limit.origin})"
