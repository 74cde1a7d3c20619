"""The three errors of every target, in logits: what a table shows and a plot draws."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

import msgspec

from harness.record import CaseRecord
from harness.report.overview import TargetRow

_PHASES = ("prefill", "decode")


class Judged(msgspec.Struct, frozen=True):
    """One error of a target over its prompts: centred RMS logit errors, and the prompt that is judged worst.

    `typical` is the median of the prompts' means; `worst` the mean of the worst prompt, which is `prompt`, and
    `limit` what that one may have; all in logits, NaN where there is none. `exceeded`: whether any prompt is beyond
    its limits.
    """

    typical: float
    worst: float
    limit: float
    prompt: str
    exceeded: bool


class ErrorsApart(msgspec.Struct, frozen=True):
    """A target's errors. `quantisation` and `implementation` are None where the error was not taken apart.

    `findings`: of the weight audit, None where there was none, among `tensors`. `yardstick`: in logits, that of the
    implementation error's worst prompt, `times` it is, `allowed` times it may be. `kl_mean` and `kl_worst` in nat and
    `top1`, a share, are of the total error; `broken` counts prompts without numbers.
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


def errors_apart(rows: Iterable[TargetRow]) -> list[ErrorsApart]:
    """The errors of every target that has numbers of prompts or of an audit."""
    found = [_of(row) for row in rows]
    return [one for one in found if one.findings is not None or math.isfinite(one.total)]


def _of(row: TargetRow) -> ErrorsApart:
    prompts = [case for case in row.cases if case.test == "test_logits" and case.outcome != "UNSUPPORTED"]
    compared = [case for case in prompts if _finite(case, "centred_rms_mean")]
    audit = next((c.numbers for c in row.cases if c.test == "test_weights" and "findings" in c.numbers), None)
    implementation, yardstick, times, allowed = _implementation(compared)
    return ErrorsApart(
        target=row.target,
        findings=None if audit is None or not math.isfinite(audit["findings"]) else int(audit["findings"]),
        tensors=int(audit.get("tensors", 0)) if audit is not None else 0,
        quantisation=_quantisation(compared),
        quantisation_kl=_mean(compared, "quantisation_kl_mean"),
        implementation=implementation,
        yardstick=yardstick,
        times=times,
        allowed=allowed,
        total=_mean(compared, "centred_rms_mean"),
        kl_mean=_mean(compared, "kl_mean"),
        kl_worst=max((c.numbers["kl_worst"] for c in compared if _finite(c, "kl_worst")), default=math.nan),
        top1=_mean(compared, "top1"),
        broken=len(prompts) - len(compared),
    )


def _quantisation(cases: Sequence[CaseRecord]) -> Judged | None:
    """Held against relative limits, so the limit in logits is that of the worst prompt's own logits."""
    rows = [c for c in cases if _finite(c, "quantisation_centred_rms_mean", "quantisation_relative_mean")]
    if not rows:
        return None
    worst = max(rows, key=lambda case: case.numbers["quantisation_relative_mean"])
    error, relative = worst.numbers["quantisation_centred_rms_mean"], worst.numbers["quantisation_relative_mean"]
    limit = worst.limits.get("quantisation_relative_mean", math.nan)
    return Judged(
        typical=statistics.median(case.numbers["quantisation_centred_rms_mean"] for case in rows),
        worst=error,
        limit=limit * error / relative if relative > 0 else math.nan,
        prompt=prompt_of(worst),
        exceeded=any(_beyond(case, "quantisation_") for case in rows),
    )


def _implementation(cases: Sequence[CaseRecord]) -> tuple[Judged | None, float, float, float]:
    """Of the phase and the prompt with the greatest ratio; with its yardstick, the ratio, and the ratio allowed."""
    found = [
        (case.numbers[f"ratio_{phase}_mean"], phase, case)
        for case in cases
        for phase in _PHASES
        if _finite(case, f"ratio_{phase}_mean", f"implementation_{phase}_mean", f"yardstick_{phase}_mean")
    ]
    if not found:
        return None, math.nan, math.nan, math.nan
    times, phase, worst = max(found, key=lambda one: one[0])
    yardstick = worst.numbers[f"yardstick_{phase}_mean"]
    allowed = worst.limits.get("ratio_mean", math.nan)
    judged = Judged(
        typical=statistics.median(case.numbers[f"implementation_{phase}_mean"] for _, phase, case in found),
        worst=worst.numbers[f"implementation_{phase}_mean"],
        limit=allowed * yardstick,
        prompt=f"{prompt_of(worst)}, {phase}",
        exceeded=any(_beyond(case, "ratio_") for _, _, case in found),
    )
    return judged, yardstick, times, allowed


def prompt_of(case: CaseRecord) -> str:
    """The prompt or suite of a case, empty where it has none."""
    return case.case.partition("[")[2].removesuffix("]")


def _beyond(case: CaseRecord, prefix: str) -> bool:
    for name, value in case.numbers.items():
        bound = name if name in case.limits else name.replace("_prefill", "").replace("_decode", "")
        if name.startswith(prefix) and bound in case.limits and not value <= case.limits[bound]:
            return True
    return False


def _mean(cases: Sequence[CaseRecord], name: str) -> float:
    """Over all positions, or NaN where no case has the number."""
    pairs = [(c.numbers[name], c.numbers.get("positions", 1.0)) for c in cases if _finite(c, name)]
    weight = sum(positions for _, positions in pairs)
    return sum(value * positions for value, positions in pairs) / weight if weight else math.nan


def _finite(case: CaseRecord, *names: str) -> bool:
    return all(math.isfinite(case.numbers.get(name, math.nan)) for name in names)
