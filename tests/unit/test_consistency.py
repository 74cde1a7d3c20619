"""Rows held against rows: what does not compare fails, whichever side of the comparison is broken."""

from __future__ import annotations

import numpy as np
import pytest

from harness.compare import Outcome
from harness.consistency import Allowance, Comparisons

ROWS = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
ALLOWANCE = Allowance(0.1, 2.0, "a test")


def broken(value: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    rows = ROWS.copy()
    rows[1, 4] = value
    return rows


def test_rows_within_the_allowance_pass_and_rows_beyond_it_fail_by_their_place() -> None:
    found = Comparisons(ALLOWANCE)
    assert found.see("the same", ROWS, ROWS, 5)
    assert found.verdict().outcome is Outcome.PASS
    assert not found.see("another", ROWS, broken(9.0), 5)
    assert "another: position 6 is" in found.verdict().message


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_fails_on_either_side(value: float) -> None:
    found = Comparisons(ALLOWANCE)
    assert not found.see("a row", ROWS, broken(value), 5)
    assert not found.see("a row", broken(value), ROWS, 5)
    first, second = found.verdict().message.splitlines()
    assert first == f"a row: {value} among the logits: position 6, vocabulary entry 4"
    assert second == f"a row: {value} among the logits that they are held against: position 6, vocabulary entry 4"


def test_no_rows_and_other_shapes_fail() -> None:
    found = Comparisons(ALLOWANCE)
    assert found.verdict().outcome is Outcome.FAIL
    assert not found.see("nothing", ROWS[:0], ROWS[:0], 0)
    assert not found.see("too few", ROWS, ROWS[1:], 0)
    assert found.verdict().outcome is Outcome.FAIL


def test_to_the_last_bit_is_not_to_within_a_constant() -> None:
    """Centred, a number added to all of a row is nothing; where bits are asked for, it is a difference."""
    found = Comparisons(Allowance(1.0, 0.0, "bits"))
    assert found.see("the same", ROWS, ROWS, 0)
    assert not found.see("shifted", ROWS, ROWS + np.float32(1.0), 0)
    assert found.verdict().outcome is Outcome.FAIL
