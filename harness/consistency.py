"""Is what a session gives, however it was fed, what it ought to give? Rows held against rows, and a verdict over many.

How a text is fed (at once, in chunks, after another one, in a batch) changes the order of summation and, where the
cache rounds, what is rounded. Neither moves a logit further than honest variants of the same arithmetic lie apart: the
yardstick. A mistake with the cache, a mask or a position moves it by hundreds of that.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.compare import Outcome, Verdict

Logits = NDArray[np.floating]
Floats = NDArray[np.float64]

# Failures that a verdict spells out.
_SENTENCES = 4


class Allowance(msgspec.Struct, frozen=True):
    """How far a row may lie from what it ought to be: centred RMS, `unit` times `limit`.

    `unit` is in logits, or where `relative` in centred RMS of the row that ought to be. `origin` says where both come
    from.
    """

    unit: float
    limit: float
    origin: str
    relative: bool = False

    def of(self, expected: Logits) -> Floats:
        """What one unit is at each of `[n, V]` rows, in logits, `[n]`."""
        return self.unit * (metrics.centred_scale(expected) if self.relative else np.ones(expected.shape[0]))


class Comparisons:
    """Rows compared so far, for one verdict. None at all never pass."""

    def __init__(self, allowance: Allowance) -> None:
        self.allowance = allowance
        self._rows = self._sets = self._exact = 0
        self._worst = 0.0
        self._worst_logits = 0.0
        self._failures: list[str] = []

    def see(self, what: str, expected: Logits, found: Logits, first: int, spread: Floats | float = 0.0) -> bool:
        """Compare `[n, V]` rows, the first of them at position `first` of their text; returns whether they agree.

        `spread` `[n]`: how far two right answers lie apart here, in logits, which is taken off.
        """
        self._sets += 1
        if found.shape != expected.shape:
            return self._fail(f"{what}: logits of shape {found.shape} where {expected.shape} were due")
        if not found.shape[0]:
            return self._fail(f"{what}: no logits at all")
        # What a session gave at another time is held against too, and it may be that which is broken.
        for rows, where in ((found, "the logits"), (expected, "the logits that they are held against")):
            bad = metrics.first_non_finite(rows)
            if bad is not None:
                entry = f"position {first + bad[0]}, vocabulary entry {bad[1]}"
                return self._fail(f"{what}: {float(rows[bad])} among {where}: {entry}")
        self._rows += expected.shape[0]
        self._exact += int((found == expected).all(axis=1).sum())
        errors, units = metrics.centred_rms_error(expected, found), self.allowance.of(expected)
        ratios = np.maximum(errors - spread, 0.0) / units
        if (
            not self.allowance.limit
        ):  # to the last bit: a number added to all of a row is no error, and still a difference
            ratios = np.where((found == expected).all(axis=1), 0.0, np.maximum(ratios, np.finfo(np.float64).tiny))
        place = int(ratios.argmax())
        self._worst = max(self._worst, float(ratios[place]))
        self._worst_logits = max(self._worst_logits, float(errors.max()))
        if ratios[place] <= self.allowance.limit:
            return True
        return self._fail(
            f"{what}: position {first + place} is {errors[place]:.3g} logits from what it ought to be, "
            f"{ratios[place]:.3g} x {units[place]:.3g}; allowed: {self.allowance.limit:.3g} x ({self.allowance.origin})"
        )

    def miss(self, problem: str) -> None:
        """Count something as wrong that has no rows to compare."""
        self._sets += 1
        self._fail(problem)

    @property
    def failed(self) -> bool:
        """Whether anything differs so far."""
        return bool(self._failures)

    def verdict(self, note: str = "") -> Verdict:
        """The verdict over all that was seen; `note` says of a pass what it did not cover."""
        numbers = {
            "compared": float(self._sets),
            "positions": float(self._rows),
            "identical_positions": float(self._exact),
            "worst_ratio": self._worst,
            "worst_logits": self._worst_logits,
        }
        limits = {"worst_ratio": self.allowance.limit}
        if not self._rows and not self._failures:
            return Verdict(Outcome.FAIL, numbers, limits, "zero positions were compared")
        if not self._failures:
            return Verdict(Outcome.PASS, numbers, limits, note)
        message = spelled_out(self._failures, f"of {self._sets} differ")
        return Verdict(Outcome.FAIL, {**numbers, "differ": float(len(self._failures))}, limits, message)

    def _fail(self, message: str) -> bool:
        self._failures.append(message)
        return False


def spelled_out(failures: Sequence[str], of_all: str) -> str:
    """The first failures, a line each; where there are more, how many, in the words of `of_all`: "of 9 differ"."""
    more = [f"{len(failures)} {of_all}"] if len(failures) > _SENTENCES else []
    return "\n".join([*failures[:_SENTENCES], *more])
