"""How far numbers move from one run to the next when nothing has changed: measured, never assumed.

Two measurements are used, whichever allows more. *Within a session*, each record holds how far a session's second
answer to a prompt lies from its first (`SessionRecord.repeats`). RMS errors obey the triangle inequality, so an error
moves by no more than that distance; KL is quadratic, so its root does. *Between runs*, further records of the same
machine give the spread of every number. Where neither was measured, only the rounding of a float is allowed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from harness.record import CaseRecord, RunRecord, SessionRecord

# Noise was measured on a few prompts or between a few runs: so many times the largest seen is still noise.
FACTOR = 2.0
# Two roundings to float32, of half a unit in the last place each, relative.
ROUNDING = 2 * 2.0**-24
# A number that says what was chosen, not how much: another one is no larger or smaller.
_LABELS = {"token", "chosen", "preferred"}
_SPEED = ("_ms", "_seconds", "_per_second", "_bytes")

Key = tuple[str, str]
"""Target and case."""


class Distance(msgspec.Struct, frozen=True):
    """How far one answer lies from another to the same prompt: RMS in logits, KL in nat."""

    rms_mean: float = 0.0
    rms_worst: float = 0.0
    kl_mean: float = 0.0

    @property
    def kl_worst(self) -> float:
        """KL at the worst position, by its being quadratic in the RMS error."""
        return self.kl_mean * (self.rms_worst / self.rms_mean) ** 2 if self.rms_mean else self.kl_mean


class TargetNoise(msgspec.Struct, frozen=True):
    """What was measured of a target. `repeats` prompts were asked twice in a session, of which `identical` were
    answered with the same bits; `runs` is how many runs of one machine were compared, 0 for none.

    `ratios` are the largest quotients of each number between those runs, `spans` the largest distances where one of
    them was 0, both over all cases; `own` the distances of each case.
    """

    target: str
    repeats: int = 0
    identical: int = 0
    runs: int = 0
    within: Distance = Distance()
    ratios: dict[str, float] = {}
    spans: dict[str, float] = {}
    own: dict[str, dict[str, float]] = {}

    @property
    def measured(self) -> bool:
        """Whether anything was measured at all."""
        return self.repeats > 0 or self.runs > 1

    @property
    def any(self) -> bool:
        """Whether what was measured is more than nothing: a session may repeat itself to the bit."""
        return self.within.rms_worst > 0 or self.runs > 1

    def allowed(self, case: str, name: str, before: float, after: float, numbers: Mapping[str, float]) -> float:
        """By how much a number may differ between two runs and still be noise, in its own unit.

        `numbers` are the case's, for the scale of its logits.
        """
        least, most = sorted((abs(before), abs(after)))
        bound = max(ROUNDING * most, _of_distance(name, most, numbers, _rounding(numbers)))
        if self.repeats:
            bound = max(bound, FACTOR * _of_distance(name, most, numbers, self.within))
        if self.runs > 1:
            bound = max(bound, FACTOR * self.own.get(case, {}).get(name, 0.0), FACTOR * self.spans.get(name, 0.0))
            bound = max(bound, least * (self.ratios.get(name, 1.0) ** FACTOR - 1.0))
        return bound


def compared(name: str, *, same_artifact: bool) -> bool:
    """Whether a number tells something of the device.

    Yardsticks, and ratios to them, move with the processor that the reference runs on, as does the quantisation error
    of the same artifact; speed has a comparison of its own.
    """
    if name in _LABELS or "yardstick" in name or name.startswith("ratio_") or name == "regret_ratio":
        return False
    return not name.endswith(_SPEED) and not (same_artifact and name.startswith("quantisation_"))


def measure(before: RunRecord, after: RunRecord, runs: Sequence[Sequence[RunRecord]]) -> dict[str, TargetNoise]:
    """The noise of every target that both records have a session of.

    `runs` are groups of two or more records, each group of one machine on which nothing changed.
    """
    sessions: dict[str, list[SessionRecord]] = defaultdict(list)
    for session in (*before.sessions, *after.sessions):
        sessions[session.target].append(session)
    groups = [[_cases(record) for record in group] for group in runs if len(group) > 1]
    return {target: _of_target(target, found, groups) for target, found in sessions.items() if len(found) == 2}


def _of_target(
    target: str, sessions: Sequence[SessionRecord], groups: Sequence[Sequence[Mapping[Key, CaseRecord]]]
) -> TargetNoise:
    repeats = [repeat for session in sessions for repeat in session.repeats]
    # Both sides have been disturbed, each by as much as its own noise.
    parts = [_largest(session) for session in sessions]
    noise = TargetNoise(
        target=target,
        repeats=len(repeats),
        identical=sum(repeat.identical for repeat in repeats),
        within=Distance(*(sum(values) for values in zip(*map(msgspec.structs.astuple, parts), strict=True))),
    )
    ratios: dict[str, float] = defaultdict(lambda: 1.0)
    spans: dict[str, float] = defaultdict(float)
    own: dict[str, dict[str, float]] = defaultdict(dict)
    count = 0
    for group in groups:
        keys = [key for key in group[0] if key[0] == target and all(key in cases for cases in group)]
        count += len(group) if keys else 0
        for key in keys:
            for name, values in _values([cases[key].numbers for cases in group]).items():
                least, most = min(map(abs, values)), max(map(abs, values))
                own[key[1]][name] = max(own[key[1]].get(name, 0.0), max(values) - min(values))
                if least:
                    ratios[name] = max(ratios[name], most / least)
                else:
                    spans[name] = max(spans[name], most)
    return msgspec.structs.replace(noise, runs=count, ratios=dict(ratios), spans=dict(spans), own=dict(own))


def _largest(session: SessionRecord) -> Distance:
    found = session.repeats
    return Distance(
        max((repeat.centred_rms_mean for repeat in found), default=0.0),
        max((repeat.centred_rms_worst for repeat in found), default=0.0),
        max((repeat.kl_mean for repeat in found), default=0.0),
    )


def _cases(record: RunRecord) -> dict[Key, CaseRecord]:
    return {(case.target, case.case): case for case in record.cases}


def _values(numbers: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Every number that all have and that is finite in all."""
    found = list(numbers)
    common = [name for name in found[0] if all(name in one for one in found)]
    values = {name: [one[name] for one in found] for name in common}
    return {name: of for name, of in values.items() if all(map(math.isfinite, of))}


def _rounding(numbers: Mapping[str, float]) -> Distance:
    """What rounding the logits to float32 once more may do to a case, whose logits have a centred RMS of `scale`."""
    rms = ROUNDING * _scale(numbers)
    return Distance(rms, rms, 0.5 * rms * rms)


def _scale(numbers: Mapping[str, float]) -> float:
    """The centred RMS of the golden's logits, 1 where the case does not tell."""
    absolute, relative = numbers.get("centred_rms_mean", 0.0), numbers.get("relative_mean", 0.0)
    return absolute / relative if absolute > 0 and relative > 0 else 1.0


def _of_distance(name: str, value: float, numbers: Mapping[str, float], distance: Distance) -> float:
    """By how much a number may move when the logits move by a distance; 0 for one that is no measure of logits."""
    worst = name.endswith("_worst")
    if "kl_" in name:
        kl = distance.kl_worst if worst else distance.kl_mean
        return 2.0 * math.sqrt(max(value, 0.0) * kl) + kl
    if name.startswith("implementation_") or name == "regret_worst_logits":
        return distance.rms_worst  # the mean is over prefill or decode alone, which the whole does not bound
    rms = distance.rms_worst if worst else distance.rms_mean
    if "centred_rms_" in name:
        return rms
    return rms / _scale(numbers) if name.startswith(("relative_", "quantisation_relative_", "regret_")) else 0.0
