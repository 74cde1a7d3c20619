"""The three errors of every target, in logits: what a table shows and a plot draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from harness.record import CaseRecord
from harness.report.overview import HARMLESS, TargetRow

_PHASES = ("prefill", "decode")


class Judged(msgspec.Struct, frozen=True):
    """One error of a target over its prompts, in centred RMS logits.

    `typical`: the median of the prompts' means. `worst`: the mean of the prompt nearest to its limits or furthest
    beyond, which is `prompt`. `limit`: what that mean would be if a limit were just reached, NaN without one; KL
    grows with the square of the error. `exceeded`: whether a prompt is beyond a limit; `waived`: whether all such are.
    """

    typical: float
    worst: float
    limit: float
    prompt: str
    exceeded: bool
    waived: bool


class ErrorsApart(msgspec.Struct, frozen=True):
    """A target's errors. `quantisation` and `implementation` are None where the error was not taken apart.

    `findings`: of the weight audit, None where there was none, among `tensors`. `yardstick`: in logits, that of the
    implementation error's worst prompt; `times` and `allowed` in yardsticks, of its mean or of its worst position,
    whichever is nearer to its limit. `total` in centred RMS logits, `kl_mean`, `kl_worst` in nat and `top1`, a share,
    are of the total error; NaN where there is none. `broken` counts prompts without numbers.
    """

    target: str
    findings: int | None
    tensors: int
    quantisation: Judged | None
    quantisation_kl: float
    implementation: Judged | None
    yardstick: float
    times: float
    allowed: float
    total: float
    kl_mean: float
    kl_worst: float
    top1: float
    broken: int


class _Held(msgspec.Struct, frozen=True):
    """An error of one prompt: its mean in logits, and by what factor it could grow before a limit is reached."""

    case: CaseRecord
    where: str
    mean: float
    room: float


def errors_apart(rows: Iterable[TargetRow]) -> list[ErrorsApart]:
    """The errors of every target that has numbers of prompts or of an audit."""
    found = [_of(row) for row in rows]
    return [one for one in found if one.findings is not None or math.isfinite(one.total)]


def prompt_of(case: CaseRecord) -> str:
    """The prompt or suite of a case, empty where it has none."""
    return case.case.partition("[")[2].removesuffix("]")


def _of(row: TargetRow) -> ErrorsApart:
    prompts = [case for case in row.cases if case.test == "test_logits" and case.outcome != "UNSUPPORTED"]
    compared = [case for case in prompts if _has(case, "centred_rms_mean")]
    audit = next((c.numbers for c in row.cases if c.test == "test_weights" and "findings" in c.numbers), None)
    implementation = [held for case in compared for phase in _PHASES if (held := _implementation(case, phase))]
    worst = min(implementation, key=lambda held: held.room) if implementation else None
    yardstick, times, allowed = _in_yardsticks(worst) if worst is not None else (math.nan,) * 3
    return ErrorsApart(
        target=row.target,
        findings=None if audit is None or not math.isfinite(audit["findings"]) else int(audit["findings"]),
        tensors=int(audit.get("tensors", 0)) if audit is not None else 0,
        quantisation=_judged([held for case in compared if (held := _quantisation(case))]),
        quantisation_kl=_mean(compared, "quantisation_kl_mean"),
        implementation=_judged(implementation),
        yardstick=yardstick,
        times=times,
        allowed=allowed,
        total=_mean(compared, "centred_rms_mean"),
        kl_mean=_mean(compared, "kl_mean"),
        kl_worst=max((c.numbers["kl_worst"] for c in compared if _has(c, "kl_worst")), default=math.nan),
        top1=_mean(compared, "top1"),
        broken=len(prompts) - len(compared),
    )


def _judged(found: Sequence[_Held]) -> Judged | None:
    if not found:
        return None
    worst = min(found, key=lambda held: held.room)
    beyond = [held.case for held in found if held.room < 1]
    return Judged(
        typical=statistics.median(held.mean for held in found),
        worst=worst.mean,
        limit=worst.mean * worst.room if math.isfinite(worst.room) else math.nan,
        prompt=worst.where,
        exceeded=bool(beyond),
        waived=bool(beyond) and all(case.outcome in HARMLESS for case in beyond),
    )


def _quantisation(case: CaseRecord) -> _Held | None:
    if not _has(case, "quantisation_centred_rms_mean"):
        return None
    names = [f"quantisation_{kind}_{of}" for kind in ("kl", "relative") for of in ("mean", "worst")]
    room = min(_room(case, name, name, square="_kl_" in name) for name in names)
    return _Held(case, prompt_of(case), case.numbers["quantisation_centred_rms_mean"], room)


def _implementation(case: CaseRecord, phase: str) -> _Held | None:
    if not _has(case, f"ratio_{phase}_mean", f"implementation_{phase}_mean", f"yardstick_{phase}_mean"):
        return None
    room = min(_room(case, f"ratio_{phase}_{of}", f"ratio_{of}") for of in ("mean", "worst"))
    where = f"{prompt_of(case)}, {phase}"
    return _Held(case, where, case.numbers[f"implementation_{phase}_mean"], room)


def _in_yardsticks(held: _Held) -> tuple[float, float, float]:
    """The yardstick of the mean, and the ratio that is nearest to its limit with that limit."""
    numbers, limits, phase = held.case.numbers, held.case.limits, held.where.rpartition(" ")[2]
    of = min(("mean", "worst"), key=lambda of: _room(held.case, f"ratio_{phase}_{of}", f"ratio_{of}"))
    ratio = numbers.get(f"ratio_{phase}_{of}", math.nan)
    return numbers[f"yardstick_{phase}_mean"], ratio, limits.get(f"ratio_{of}", math.nan)


def _room(case: CaseRecord, name: str, bound: str, *, square: bool = False) -> float:
    """By what factor an error could grow until this limit is reached; inf where it is zero or there is no limit."""
    value, limit = case.numbers.get(name, math.nan), case.limits.get(bound, math.nan)
    if not (value > 0 and limit >= 0):
        return math.inf
    return math.sqrt(limit / value) if square else limit / value


def _mean(cases: Sequence[CaseRecord], name: str) -> float:
    """Over all positions, or NaN where no case has the number."""
    pairs = [(c.numbers[name], _weight(c.numbers)) for c in cases if _has(c, name)]
    weight = sum(positions for _, positions in pairs)
    return sum(value * positions for value, positions in pairs) / weight if weight else math.nan


def _weight(numbers: Mapping[str, float]) -> float:
    positions = numbers.get("positions", 1.0)
    return positions if math.isfinite(positions) and positions > 0 else 0.0


def _has(case: CaseRecord, *names: str) -> bool:
    return all(math.isfinite(case.numbers.get(name, math.nan)) for name in names)
