"""From what a device gave for a case to a verdict: every element, and all of them together.

An element may be off by as much as all of its roundings together, or, where these are independent, by seven times the
root of the sum of their squares (`harness.operators.estimate`): the chance of more is 2 exp(-49 / 2), one in 10^10. All
elements of a case together may be off, in the root mean square of error over that root, by no more than a vector of
such errors is with a probability of 1 - e^-25 (Hsu, Kakade and Zhang, Electron. Commun. Probab. 17, 2012: 1 + 2 sqrt(t
/ N) + 2 t / N for the square). Nothing here was set by what a runtime gave.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.compare import Outcome, Verdict
from harness.operators.case import Case
from harness.operators.catalogue import operator_of
from harness.operators.estimate import Array, Estimate
from harness.operators.numerics import Numerics

# Roots of the sum of squares that an element may be off by, and the exponent of the chance for all together.
_TIMES, _CHANCE = 7.0, 25.0
# Failing cases that a message spells out.
_SPELT = 3


class Judged(msgspec.Struct, frozen=True):
    """One case: its worst element, and all of them together.

    `over`: the error of the worst element over what is allowed there. `units`: its error in units in the last place of
    the precision computed in. `mean`: the root mean square of all errors over what is allowed of it; 0 where errors are
    not independent and nothing is. `share`: the largest error that is not allowed over the largest value of its row.
    `how`: the arithmetic whose result lies nearest.
    """

    case: Case
    elements: int
    over: float
    units: float
    mean: float
    share: float
    how: str
    message: str = ""

    @property
    def right(self) -> bool:
        """Whether all of it is within what rounding explains."""
        return not self.message


def judge_case(case: Case, output: NDArray[np.floating], numerics: Numerics) -> Judged:
    """Hold what a device gave for a case against the truth, in the nearest arithmetic that is permitted."""
    operator = operator_of(case)
    inputs = operator.draw(case)
    device = np.asarray(output, dtype=np.float64)
    found: list[Judged] = []
    for arithmetic in _distinct(case, numerics.permitted):
        estimate = operator.truth(case, inputs, numerics, arithmetic)
        if device.shape != estimate.value.shape:
            message = f"a result of shape {list(device.shape)} where {list(estimate.value.shape)} is due"
            return Judged(case, 0, math.inf, math.inf, math.inf, math.inf, "", message)
        found.append(_weigh(case, device, estimate, numerics, str(arithmetic)))
    return min(found, key=lambda judged: max(judged.over, judged.mean))


def _distinct(case: Case, permitted: Sequence[Arithmetic]) -> list[Arithmetic]:
    """The arithmetics that make a difference to a case: by block for a quantised weight, by cache for attention."""
    quantised = case.operator.startswith("matmul-int")
    cached = case.operator.startswith("attention") and (len(case.rows) > 1 or case.count == 1)
    kept = {(a.block if quantised else 0, a.cache if cached else ""): a for a in reversed(permitted)}
    return list(kept.values())


def _weigh(case: Case, device: Array, estimate: Estimate, numerics: Numerics, how: str) -> Judged:
    error = _errors(device, estimate, numerics)
    independent = case.values.independent
    allowed = np.minimum(estimate.worst, _TIMES * estimate.deviation) if independent else estimate.worst
    over = _ratio(error, allowed)
    place = tuple(int(i) for i in np.unravel_index(int(over.argmax()), over.shape))
    units = float(error[place] / numerics.form.spacing(estimate.value)[place])
    mean = _together(error, estimate) if independent else 0.0
    worst = float(over[place])
    where = f"element {list(place)} of {list(device.shape)}"
    what = f"{device[place]:.9g} where {estimate.value[place]:.9g} is due"
    far = f"{units:.3g} units in the last place of {numerics.form.name}"
    message = ""
    if worst > 1.0:
        message = f"{where} is {what}: off by {far}, {worst:.3g} x what its roundings allow"
    elif mean > 1.0:
        together = f"all elements together are off by {mean:.3g} x what independent roundings allow"
        message = f"{together}; the worst, {where}, is {what}: off by {far}"
    share = _share(error, estimate, over if worst > 1.0 else np.full_like(over, np.inf)) if message else 0.0
    return Judged(case, device.size, worst, units, mean, share, how, message)


def _errors(device: Array, estimate: Estimate, numerics: Numerics) -> Array:
    """The magnitude of errors; 0 where the device overflows and may, infinite where it gives no number."""
    with np.errstate(invalid="ignore"):
        error = np.abs(device - estimate.value)
    beyond = np.abs(estimate.value) + _TIMES * estimate.deviation > numerics.greatest
    overflows = np.isinf(device) & beyond & (np.sign(device) == np.sign(estimate.value))
    return np.where(overflows, 0.0, np.where(np.isfinite(device), error, np.inf))


def _share(error: Array, estimate: Estimate, over: Array) -> float:
    """The largest of the errors that are not allowed, over the largest value of its row."""
    size = np.abs(estimate.value).reshape(error.shape[0], -1).max(axis=1).reshape(-1, *[1] * (error.ndim - 1))
    return float(np.where(over > 1.0, _ratio(error, size), 0.0).max())


def _ratio(error: Array, allowed: Array) -> Array:
    """Errors over what is allowed; an error where none is, is infinite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(error == 0.0, 0.0, error / allowed)


def _together(error: Array, estimate: Estimate) -> float:
    ratio = _ratio(error, estimate.deviation)
    part = _CHANCE / ratio.size
    return math.sqrt(float(np.mean(np.square(ratio))) / (1.0 + 2.0 * math.sqrt(part) + 2.0 * part))


def conclude(judged: Sequence[Judged], left_out: int, target: str) -> Verdict:
    """One verdict on all cases of an operator; a failing one names the first, how far off they are, and the replay."""
    wrong = [one for one in judged if not one.right]
    worst = max(judged, key=lambda one: max(one.over, one.mean))
    numbers = {
        "cases": float(len(judged)),
        "elements": float(sum(one.elements for one in judged)),
        "worst": worst.over,
        "worst_units": worst.units,
        "mean": max(one.mean for one in judged),
        **({"left_out": float(left_out)} if left_out else {}),
    }
    lines = []
    if wrong:
        share = max(one.share for one in wrong)
        lines.append(f"{len(wrong)} of {len(judged)} cases fail, by at most {share:.2g} of the largest value of a row")
    for one in wrong[:_SPELT]:
        lines += [f"{one.case}: {one.message}"]
        lines += [f"  computed as with {one.how}"] if one.how else []
        lines += [f"  replay: phi3-conformance operator {target} '{one.case}'"]
    return Verdict(Outcome.FAIL if wrong else Outcome.PASS, numbers, {"worst": 1.0, "mean": 1.0}, "\n".join(lines))
