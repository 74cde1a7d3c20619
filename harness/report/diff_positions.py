"""The worst regression position by position: the errors of both runs on the same prompt."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from harness.diff.cases import Change
from harness.diff.runs import Diff
from harness.record import CaseRecord, Detail, RunRecord
from harness.report.apart import prompt_of
from harness.report.diff_sections import weight

Line = tuple[list[int], list[float]]
"""Positions and the errors there; NaN where one is not finite."""

_WORST = 10


class At(msgspec.Struct, frozen=True):
    """A position: its token, as text, and the error of the logits after it in both runs, NaN where there is none."""

    position: int
    token: str
    before: float
    after: float


class Both(msgspec.Struct, frozen=True):
    """A case of both runs by position. `what` is implementation or KL, in `unit`; `yardstick` has the second run's.

    `prefill` is the number of the prompt's tokens, 0 where the record does not hold it; `window` the checkpoint's.
    """

    target: str
    prompt: str
    what: str
    unit: str
    before: Line
    after: Line
    yardstick: Line
    prefill: int
    window: int | None
    worst: list[At]


def worst_regression(diff: Diff, before: RunRecord, after: RunRecord) -> Both | None:
    """The weightiest case of logits that regressed and has errors by position in both runs."""
    old, new = _details(before), _details(after)
    cases = {(case.target, case.case): weight(case) for case in diff.of(Change.REGRESSION)}
    both = [key for key in cases if key in old and key in new]
    worst = max(both, key=lambda key: (cases[key], _largest(new[key].detail)), default=None)
    return None if worst is None else _both(old[worst], new[worst], after)


def _largest(detail: Detail | None) -> float:
    errors = (detail.implementation or detail.kl) if detail is not None else []
    return max((error for error in errors if error is not None), default=0.0)


def _details(record: RunRecord) -> dict[tuple[str, str], CaseRecord]:
    with_errors = (c for c in record.cases if c.detail is not None and (c.detail.kl or c.detail.implementation))
    return {(case.target, case.case): case for case in with_errors}


def _both(old: CaseRecord, new: CaseRecord, record: RunRecord) -> Both | None:
    before, after = old.detail, new.detail
    if before is None or after is None:
        return None
    apart = bool(before.implementation and after.implementation)
    lines = [_line(one, one.implementation if apart else one.kl) for one in (before, after)]
    prompt = next((prompt for prompt in record.prompts if prompt.id == prompt_of(new)), None)
    tokens = prompt.tokens if prompt is not None else []
    return Both(
        target=new.target,
        prompt=prompt_of(new),
        what="Implementation error" if apart else "KL from the golden",
        unit="logits" if apart else "nat",
        before=lines[0],
        after=lines[1],
        yardstick=_line(after, after.yardstick if apart else []),
        prefill=prompt.prefill if prompt is not None else 0,
        window=record.checkpoint.window if record.checkpoint is not None else None,
        worst=_worst(lines[0], lines[1], [record.words.get(str(token), "") for token in tokens]),
    )


def _line(detail: Detail, values: Sequence[float | None]) -> Line:
    errors = [math.nan if value is None else value for value in values]
    return list(range(detail.first, detail.first + len(errors))), errors


def _worst(before: Line, after: Line, words: Sequence[str]) -> list[At]:
    """The positions with the largest errors of the second run, those that are not finite first."""
    old = dict(zip(*before, strict=True))
    order = sorted(zip(*after, strict=True), key=lambda one: -one[1] if math.isfinite(one[1]) else -math.inf)
    return [
        At(position, words[position] if position < len(words) else "", old.get(position, math.nan), error)
        for position, error in order[:_WORST]
    ]
