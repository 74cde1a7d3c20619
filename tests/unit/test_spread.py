"""Answers held against each other: to the last bit, or to within rounding; nothing never passes."""

from __future__ import annotations

import numpy as np
import pytest

from harness.compare import Outcome
from harness.consistency import Allowance
from harness.spread import Spread

ROWS = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
ROUNDING = Allowance(1e-3, 2.0, "a test")


def moved(by: float, row: int = 2) -> np.ndarray:
    rows = ROWS.copy()
    rows[row, 7] += np.float32(by)
    return rows


def test_the_same_bits_pass() -> None:
    spread = Spread(None)
    spread.see("answer 2", ROWS, ROWS.copy())
    verdict = spread.verdict("a note")
    assert (verdict.outcome, verdict.message) == (Outcome.PASS, "a note")
    assert verdict.numbers["positions"] == verdict.numbers["identical_positions"] == 5.0
    assert verdict.numbers["spread_rms_worst"] == verdict.numbers["spread_kl_worst"] == 0.0


def test_one_bit_fails_where_none_may_differ_and_is_measured() -> None:
    spread = Spread(None)
    last = ROWS.copy()
    last[2, 7] = np.nextafter(last[2, 7], np.float32(9))
    spread.see("answer 2", ROWS, last)
    verdict = spread.verdict()
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message.startswith("answer 2: 1 of 5 rows differ, row 2 the most, by ")
    assert verdict.numbers["differing_positions"] == 1.0
    assert 0.0 < verdict.numbers["spread_rms_worst"] < 1e-7


def test_minus_zero_is_another_bit() -> None:
    spread = Spread(None)
    first, again = ROWS.copy(), ROWS.copy()
    first[0, 0], again[0, 0] = 0.0, -0.0
    spread.see("answer 2", first, again)
    assert spread.verdict().outcome is Outcome.FAIL


def test_a_spread_within_rounding_passes_where_it_may_and_is_recorded() -> None:
    spread = Spread(ROUNDING)
    spread.see("answer 2", ROWS, moved(5e-3))
    verdict = spread.verdict()
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert verdict.numbers["identical_positions"] == 4.0
    assert verdict.numbers["spread_rms_worst"] == pytest.approx(5e-3 * np.sqrt(39) / 40, rel=1e-3)
    assert verdict.numbers["worst_ratio"] == pytest.approx(verdict.numbers["spread_rms_worst"] / 1e-3)
    assert verdict.numbers["spread_kl_worst"] > 0.0


def test_a_spread_beyond_rounding_fails() -> None:
    spread = Spread(ROUNDING)
    spread.see("answer 2", ROWS, moved(5e-2))
    verdict = spread.verdict()
    assert verdict.outcome is Outcome.FAIL
    assert "x the yardstick; allowed: 2 x (a test)" in verdict.message


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (ROWS[:4], "logits of shape (4, 40); the first had (5, 40)"),
        (ROWS[:0], "logits of shape (0, 40)"),
        (moved(float("nan")), "nan among the logits, row 2"),
        (moved(float("inf")), "inf among the logits, row 2"),
    ],
)
@pytest.mark.parametrize("allowance", [None, ROUNDING])
def test_what_does_not_compare_fails(again: np.ndarray, words: str, allowance: Allowance | None) -> None:
    spread = Spread(allowance)
    spread.see("answer 2", ROWS, again)
    spread.see("answer 3", ROWS, ROWS)
    verdict = spread.verdict()
    assert verdict.outcome is Outcome.FAIL
    assert words in verdict.message


def test_nan_that_repeats_itself_fails() -> None:
    spread = Spread(None)
    spread.see("answer 2", moved(float("nan")), moved(float("nan")))
    assert spread.verdict().outcome is Outcome.FAIL


def test_nothing_seen_fails() -> None:
    assert Spread(None).verdict().message == "zero positions were compared"


def test_many_failures_are_counted() -> None:
    spread = Spread(None)
    for number in range(6):
        spread.see(f"answer {number}", ROWS, moved(1.0))
    lines = spread.verdict().message.splitlines()
    assert len(lines) == 5
    assert lines[-1] == "6 of 6 answers differ"
