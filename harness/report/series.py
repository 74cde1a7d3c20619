"""Errors by position and times by length of prompt: what plots of many targets draw."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.record import PromptRecord, RunRecord, SessionRecord
from harness.report.apart import prompt_of
from harness.target import Target

Floats = NDArray[np.float64]

# A panel is about this many points wide; more positions are averaged.
_BINS = 96


class ByPosition(msgspec.Struct, frozen=True):
    """A target's error by position in the sequence, the mean over prompts of what is finite.

    `lines` by name (`prefill`, `decode`, `yardstick`, or `kl` alone where the error was not taken apart): positions and
    errors `[n]`, in logits, or nat for `kl`.
    """

    target: str
    lines: dict[str, tuple[list[float], list[float]]]

    @property
    def apart(self) -> bool:
        """Whether the implementation error is shown, in logits, and not the total in nat."""
        return "kl" not in self.lines


def by_position(record: RunRecord) -> list[ByPosition]:
    """Of every target that has details of logits."""
    prompts = {prompt.id: prompt for prompt in record.prompts}
    rows: dict[str, dict[str, list[tuple[Floats, Floats]]]] = {}
    for case in record.cases:
        detail = case.detail
        if detail is None or not (detail.kl or detail.implementation):
            continue
        prompt = prompts.get(prompt_of(case))
        lines = rows.setdefault(case.target, {})
        if detail.implementation:
            positions, errors = _line(detail.first, detail.implementation)
            start = _prefill(prompt, positions)
            lines.setdefault("prefill", []).append((positions[:start], errors[:start]))
            lines.setdefault("decode", []).append((positions[start:], errors[start:]))
            lines.setdefault("yardstick", []).append(_line(detail.first, detail.yardstick))
        else:
            lines.setdefault("kl", []).append(_line(detail.first, detail.kl))
    return [_averaged(target, lines) for target, lines in rows.items()]


def _line(first: int, values: Iterable[float | None]) -> tuple[Floats, Floats]:
    errors = np.array([math.nan if value is None else value for value in values], dtype=np.float64)
    return np.arange(first, first + errors.size, dtype=np.float64), errors


def _prefill(prompt: PromptRecord | None, positions: Floats) -> int:
    """How many of the rows are the prompt's."""
    return int(np.searchsorted(positions, prompt.prefill)) if prompt is not None else positions.size


def _averaged(target: str, lines: dict[str, list[tuple[Floats, Floats]]]) -> ByPosition:
    if "prefill" in lines:
        lines.pop("kl", None)
    averaged = {name: _mean(parts) for name, parts in lines.items()}
    return ByPosition(target, {name: line for name, line in averaged.items() if line[0]})


def _mean(parts: list[tuple[Floats, Floats]]) -> tuple[list[float], list[float]]:
    positions = np.concatenate([one for one, _ in parts])
    errors = np.concatenate([one for _, one in parts])
    usable = np.isfinite(errors)
    positions, errors = positions[usable], errors[usable]
    if not positions.size:
        return [], []
    width = max(1, math.ceil((positions.max() + 1) / _BINS))
    bins = (positions // width).astype(np.int64)
    sums, counts = np.bincount(bins, weights=errors), np.bincount(bins)
    used = np.flatnonzero(counts)
    return ((used + 0.5) * width - 0.5).tolist(), (sums[used] / counts[used]).tolist()


class Pace(msgspec.Struct, frozen=True):
    """How fast one precision is: lengths of prompts, and for each the median and the least and greatest, in ms."""

    precision: str
    lengths: list[int]
    first_token: list[tuple[float, float, float]]
    token: list[tuple[float, float, float]]


def by_length(sessions: Iterable[SessionRecord]) -> dict[str, list[Pace]]:
    """For each backend and device its precisions, of the sessions that were timed."""
    found: dict[str, list[Pace]] = {}
    for session in sessions:
        speeds = sorted((s for s in session.speed if s.first_token_ms), key=lambda speed: speed.prompt_tokens)
        if speeds:
            target = Target.parse(session.target)
            place = ":".join(part for part in (target.backend, target.device, target.host) if part)
            pace = Pace(
                target.precision.value,
                [speed.prompt_tokens for speed in speeds],
                [spread(speed.first_token_ms) for speed in speeds],
                [spread(speed.token_ms) for speed in speeds],
            )
            found.setdefault(place, []).append(pace)
    return found


def spread(times: Iterable[float]) -> tuple[float, float, float]:
    """Median, least and greatest; NaN where there is no time."""
    values = [value for value in times if math.isfinite(value)]
    return (statistics.median(values), min(values), max(values)) if values else (math.nan,) * 3
