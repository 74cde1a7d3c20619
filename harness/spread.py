"""How far answers to the same question lie apart: to the last bit where a runtime promises it, measured where not."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.compare import Outcome, Verdict
from harness.consistency import Allowance, spelled_out

Logits = NDArray[np.float32]


class Spread:
    """Answers held against the first one, for one verdict. None at all never pass.

    `allowance` is how far a row may lie from the first answer's; without one it is to be the same to the last bit.
    """

    def __init__(self, allowance: Allowance | None) -> None:
        self._allowance = allowance
        self._answers = self._rows = self._same = 0
        self._kl: list[float] = []
        self._rms: list[float] = []
        self._worst = 0.0
        self._failures: list[str] = []

    def see(self, what: str, first: Logits, again: Logits) -> None:
        """Hold another answer `[n, V]` against the first, the last row being that of the last token."""
        self._answers += 1
        for logits in (first, again):
            if logits.shape != first.shape or not logits.size:
                return self._failures.append(f"{what}: logits of shape {again.shape}; the first had {first.shape}")
            bad = metrics.first_non_finite(logits)
            if bad is not None:
                return self._failures.append(f"{what}: {float(logits[bad])} among the logits, row {bad[0]}")
        self._rows += first.shape[0]
        # As bits: 0.0 and -0.0 are not the same.
        same = (_bits(first) == _bits(again)).all(axis=1)
        self._same += int(same.sum())
        errors = metrics.compare_rows(first, again)
        rms = np.where(same, 0.0, errors.centred_rms)
        self._rms += rms.tolist()
        self._kl += np.where(same, 0.0, errors.kl).tolist()
        self._judge(what, first, rms, errors.kl, int((~same).sum()))
        return None

    def _judge(self, what: str, first: Logits, rms: NDArray[np.float64], kl: NDArray[np.float64], differ: int) -> None:
        place = int(rms.argmax())
        found = (
            f"{what}: {differ} of {first.shape[0]} rows differ, row {place} the most, by {rms[place]:.3g} logits "
            f"(KL {kl[place]:.3g} nat)"
        )
        if self._allowance is None:
            if differ:
                self._failures.append(f"{found}; the runtime repeats itself to the last bit")
            return
        ratios = rms / self._allowance.of(first)
        self._worst = max(self._worst, float(ratios.max()))
        if ratios.max() > self._allowance.limit:
            allowed = f"{self._allowance.limit:.3g} x ({self._allowance.origin})"
            self._failures.append(f"{found}, {ratios.max():.3g} x the yardstick; allowed: {allowed}")

    def verdict(self, note: str = "") -> Verdict:
        """The verdict over all that was seen; `note` says of a pass what it did not cover."""
        numbers = {
            "answers": float(self._answers),
            "positions": float(self._rows),
            "identical_positions": float(self._same),
            "spread_rms_mean": float(np.mean(self._rms)) if self._rms else 0.0,
            "spread_rms_worst": max(self._rms, default=0.0),
            "spread_kl_mean": float(np.mean(self._kl)) if self._kl else 0.0,
            "spread_kl_worst": max(self._kl, default=0.0),
        }
        if self._allowance is None:
            limits = {"differing_positions": 0.0}
            numbers["differing_positions"] = float(self._rows - self._same)
        else:
            limits = {"worst_ratio": self._allowance.limit}
            numbers["worst_ratio"] = self._worst
        if not self._rows and not self._failures:
            return Verdict(Outcome.FAIL, numbers, limits, "zero positions were compared")
        if not self._failures:
            return Verdict(Outcome.PASS, numbers, limits, note)
        message = spelled_out(self._failures, f"of {self._answers} answers differ")
        return Verdict(Outcome.FAIL, numbers, limits, message)


def _bits(logits: Logits) -> NDArray[np.uint32]:
    return np.ascontiguousarray(logits, dtype=np.float32).view(np.uint32)
