"""Why cases fail, in the words of somebody who sees the harness for the first time."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import msgspec

from harness.record import CaseRecord
from harness.report.figures import count, number, ratio, share

KINDS = {
    "error": ("could not be run", "It crashed, hung or raised, so there is nothing to judge."),
    "evidence": ("not attested", "Nothing proves that the device asked for computed this."),
    "weights": ("wrong weights", "The artifact does not store what its scheme makes of the checkpoint."),
    "broken": ("broken logits", "Logits are missing, of a wrong shape, or not finite."),
    "implementation": ("implementation error", "Driver or kernels compute something else than the artifact says."),
    "quantisation": ("quantisation error", "Quantisation costs more than the policy allows."),
    "total": ("total error", "It is further from the golden than the policy allows."),
    "form": ("broken answers", "Greedy answers are empty, stop too early, run on or echo the prompt."),
    "regret": ("wrong choices", "It chooses tokens that the reference, on the same text, clearly does not prefer."),
    "match": ("other answers", "Greedy answers leave the golden's where the golden was decided."),
    "other": ("failed", "A check of its own failed."),
}
"""Kinds of causes, gravest first: a label and what it means."""

_STAGES = {
    "discover": "looking for the device",
    "prepare": "preparing the artifact",
    "load": "loading",
    "run": "running",
    "compare": "comparing",
}
_OF_TESTS = {
    "test_logits": "broken",
    "test_logits_of_suite": "broken",
    "test_greedy_form": "form",
    "test_greedy_match": "match",
    "test_greedy_regret": "regret",
}
# How a message begins that names its kind itself; the first is what regret and match say of an answer that is none.
_SAID = {
    "no tokens": "form",
    "implementation error: ": "implementation",
    "quantisation error: ": "quantisation",
    "weight audit: ": "weights",
}
# A number, the limit that it is held against, the kind of cause, its name and its unit.
_UPPER = (
    *((f"ratio_{phase}_{of}", f"ratio_{of}", "implementation", f"in {phase}, {of} position", "×")
      for phase in ("prefill", "decode") for of in ("mean", "worst")),
    ("quantisation_kl_mean", "quantisation_kl_mean", "quantisation", "mean KL", "nat"),
    ("quantisation_kl_worst", "quantisation_kl_worst", "quantisation", "KL at the worst position", "nat"),
    ("quantisation_relative_mean", "quantisation_relative_mean", "quantisation", "mean relative error", ""),
    ("quantisation_relative_worst", "quantisation_relative_worst", "quantisation", "worst relative error", ""),
    ("kl_mean", "kl_mean", "total", "mean KL", "nat"),
    ("kl_worst", "kl_worst", "total", "KL at the worst position", "nat"),
    ("relative_mean", "relative_mean", "total", "mean relative error", ""),
    ("relative_worst", "relative_worst", "total", "worst relative error", ""),
    ("regret_ratio", "regret_ratio", "regret", "worst regret", "×"),
    ("regret_worst", "regret_worst", "regret", "worst regret, relative", ""),
    ("divergence_margin", "divergence_margin", "match", "the golden preferred its own token by, relative", ""),
    ("findings", "findings", "weights", "findings", ""),
)  # fmt: skip
_LOWER = (
    ("top1", "top1", "total", "top-1 agreement"),
    ("greedy_match", "greedy_match", "match", "prompts answered as by the golden"),
)


class Cause(msgspec.Struct, frozen=True):
    """One reason why a case fails: its kind, a sentence, and by what factor a limit is exceeded (inf where none is)."""

    kind: str
    text: str
    excess: float = math.inf

    @property
    def label(self) -> str:
        """The kind in two words."""
        return KINDS[self.kind][0]

    @property
    def meaning(self) -> str:
        """What the kind means, as a sentence."""
        return KINDS[self.kind][1]


class Blame(msgspec.Struct, frozen=True):
    """All failures of one kind on one target: the gravest cause, the case it comes from, and all cases."""

    cause: Cause
    case: CaseRecord
    cases: tuple[CaseRecord, ...]


def causes(case: CaseRecord) -> list[Cause]:
    """Why a case fails, one cause of a kind, the gravest kind first; at least one."""
    if case.outcome == "ERROR":
        doing = _STAGES.get(case.stage or "", case.stage or "running")
        return [Cause("error", f"error while {doing}: {_first_line(case)}")]
    if case.outcome == "NOT_RUN":
        return [Cause("error", f"not run: {_first_line(case)}")]
    if case.outcome == "UNATTESTED":
        return [Cause("evidence", _first_line(case))]
    return _exceeded(case) or [_said(case)]


def blame(cases: Iterable[CaseRecord]) -> list[Blame]:
    """The failures of one target by kind, the gravest kind first."""
    kinds: dict[str, list[tuple[Cause, CaseRecord]]] = {}
    for case in cases:
        for cause in causes(case):
            kinds.setdefault(cause.kind, []).append((cause, case))
    found = []
    for kind in KINDS:
        if kind in kinds:
            # A prompt's case says more than that of its suite, whose figures it is part of.
            of_prompts = [pair for pair in kinds[kind] if "_of_suite" not in pair[1].test] or kinds[kind]
            cause, case = max(of_prompts, key=lambda pair: pair[0].excess)
            found.append(Blame(cause, case, tuple(case for _, case in kinds[kind])))
    return found


def _said(case: CaseRecord) -> Cause:
    """The cause that the message names."""
    line = _first_line(case)
    for beginning, kind in _SAID.items():
        if line.startswith(beginning):
            return Cause(kind, line.removeprefix(beginning) if beginning.endswith(": ") else line)
    return Cause(_OF_TESTS.get(case.test, "other"), line)


def _exceeded(case: CaseRecord) -> list[Cause]:
    found: list[Cause] = []
    for name, bound, kind, what, unit in _UPPER:
        if name in case.numbers and bound in case.limits and not case.numbers[name] <= case.limits[bound]:
            value, limit = case.numbers[name], case.limits[bound]
            if kind == "weights":
                text = f"{count(int(value), 'finding')}: {_said(case).text}" if math.isfinite(value) else what
                found.append(Cause(kind, text))
                continue
            if math.isfinite(value):
                found.append(Cause(kind, f"{what}: {_against(value, limit, unit)}", _excess(value, limit)))
            else:
                found.append(Cause("broken", _first_line(case)))
    for name, bound, kind, what in _LOWER:
        if name in case.numbers and bound in case.limits and not case.numbers[name] >= case.limits[bound]:
            value, limit = case.numbers[name], case.limits[bound]
            text = f"{what}: {share(value)}, at least {share(limit)} wanted"
            found.append(Cause(kind, text, _excess(1 - value, 1 - limit)))
    return [max(same, key=lambda cause: cause.excess) for same in _by_kind(found)]


def _by_kind(found: Sequence[Cause]) -> list[list[Cause]]:
    groups = [[cause for cause in found if cause.kind == kind] for kind in KINDS]
    return [group for group in groups if group]


def _against(value: float, limit: float, unit: str) -> str:
    if unit == "×":
        return f"{ratio(value)} the yardstick, {ratio(limit)} allowed"
    of = f" {unit}" if unit and math.isfinite(value) else ""
    return f"{number(value)}{of}, {number(limit)} allowed"


def _excess(value: float, limit: float) -> float:
    return value / limit if math.isfinite(value) and limit > 0 else math.inf


def _first_line(case: CaseRecord) -> str:
    """The first line of a message that says something: the one after the line that names target and prompt."""
    lines = [line.strip() for line in case.message.splitlines() if line.strip()]
    if len(lines) > 1 and (lines[0] == case.target or lines[0].startswith(f"{case.target}  ")):
        lines = lines[1:]
    return lines[0].removeprefix(f"{case.target}: ") if lines else "it says nothing of why"
