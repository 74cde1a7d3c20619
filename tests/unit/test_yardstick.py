"""The implementation error in multiples of its yardstick."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import metrics
from harness.compare import Outcome, Rows
from harness.policy import ImplementationLimits, Limit
from harness.yardstick import Decomposed, judge_implementation, judge_regret, parts, pool

LIMITS = ImplementationLimits(
    mean=Limit(2.0, "a decision"),
    suite_mean=Limit(1.5, "a decision"),
    worst=Limit(3.0, "a decision"),
    regret=Limit(5.0, "a decision"),
)


def decomposed(device: np.ndarray, reference: np.ndarray, yardstick: float = 0.1, prefill: int = 3) -> Decomposed:
    rows = Rows(metrics.compare_rows(reference, device), 0)
    exact = Rows(metrics.compare_rows(reference, reference), 0)
    n = reference.shape[0]
    return Decomposed(rows, exact, rows, {"a": np.full(n, yardstick), "b": np.zeros(n)}, prefill, "fp32", {})


def logits(rows: int = 6, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (rows, 40)).astype(np.float32)


def moved(reference: np.ndarray, row: int, by: float) -> np.ndarray:
    """One row moved by a centred RMS of `by` logits."""
    device = reference.copy()
    device[row] += by * np.where(np.arange(reference.shape[1]) % 2, 1, -1)
    return device


def test_an_error_within_the_yardstick_passes_with_its_figures() -> None:
    reference = logits()
    verdict = judge_implementation([decomposed(moved(reference, 1, 0.15), reference)], LIMITS)
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["ratio_prefill_worst"] == pytest.approx(1.5, rel=1e-4)
    assert verdict.numbers["ratio_prefill_mean"] == pytest.approx(0.5, rel=1e-4)
    assert verdict.numbers["ratio_decode_mean"] == 0


@pytest.mark.parametrize(("row", "part"), [(1, "prefill"), (4, "decode")])
def test_one_bad_position_fails_and_names_the_part_and_the_place(row: int, part: str) -> None:
    reference = logits()
    verdict = judge_implementation([decomposed(moved(reference, row, 0.4), reference)], LIMITS)
    assert verdict.outcome is Outcome.FAIL
    assert f"in {part}, worst 0.4 logits, is 4 x the yardstick of 0.1" in verdict.message
    assert verdict.message.endswith(f"at position {row}")


def everywhere(reference: np.ndarray, by: float) -> np.ndarray:
    device = reference
    for row in range(len(reference)):
        device = moved(device, row, by)
    return device


def test_a_small_error_everywhere_fails_by_its_mean() -> None:
    reference = logits(rows=9)
    verdict = judge_implementation([decomposed(everywhere(reference, 0.25), reference, prefill=8)], LIMITS)
    assert verdict.outcome is Outcome.FAIL
    assert "prefill, mean" in verdict.message
    assert "worst" not in verdict.message
    assert "decode" not in verdict.message


def test_the_mean_of_a_few_positions_is_left_to_the_suite() -> None:
    reference = logits(rows=6)
    few = decomposed(everywhere(reference, 0.25), reference, prefill=3)
    alone = judge_implementation([few], LIMITS)
    assert alone.outcome is Outcome.PASS
    assert alone.numbers["ratio_prefill_mean"] == pytest.approx(2.5, rel=1e-4)
    assert judge_implementation([few] * 3, LIMITS, suite=True).outcome is Outcome.FAIL


@pytest.mark.parametrize(("by", "outcome"), [(0.14, Outcome.PASS), (0.16, Outcome.FAIL)])
def test_a_suite_has_a_limit_of_its_own_on_the_mean(by: float, outcome: Outcome) -> None:
    reference = logits(rows=12)
    found = [decomposed(everywhere(reference, by), reference, prefill=6)] * 4
    assert judge_implementation(found, LIMITS, suite=True).outcome is outcome
    assert judge_implementation(found[:1], LIMITS).outcome is Outcome.PASS


def test_the_pooled_yardstick_is_the_least_that_a_prompt_is_judged_by() -> None:
    reference = logits()
    found = decomposed(moved(reference, 1, 0.4), reference, yardstick=0.01)
    assert judge_implementation([found], LIMITS).outcome is Outcome.FAIL
    wider = msgspec.structs.replace(found, pooled={"prefill_mean": 0.2, "prefill_worst": 0.2})
    assert judge_implementation([wider], LIMITS).outcome is Outcome.PASS


def test_a_session_that_gives_the_last_token_only_has_one_row_of_prefill() -> None:
    reference = logits()
    rows = Rows(metrics.compare_rows(reference[2:], reference[2:]), 2)
    found = Decomposed(rows, rows, rows, {"a": np.full(6, 0.1)}, 3, "fp32", {})
    cut = [(part.name, part.first, part.errors.size) for part in parts([found])]
    assert cut == [("prefill", 2, 1), ("decode", 3, 3)]


def test_nothing_compared_never_passes() -> None:
    assert judge_implementation([], LIMITS).outcome is Outcome.FAIL


@given(st.integers(1, 5), st.floats(0.01, 10))
def test_ratios_do_not_depend_on_the_unit_of_the_logits(prefill: int, unit: float) -> None:
    reference = logits().astype(np.float64)
    device = moved(reference, 2, 0.15)
    plain = judge_implementation([decomposed(device, reference, 0.1, prefill)], LIMITS)
    scaled = judge_implementation([decomposed(device * unit, reference * unit, 0.1 * unit, prefill)], LIMITS)
    for name, value in plain.numbers.items():
        if name.startswith("ratio"):
            assert scaled.numbers[name] == pytest.approx(value, rel=1e-6, abs=1e-12)


def test_pooling_takes_the_largest_variant() -> None:
    first = {"a": np.array([1.0, 3.0, 5.0]), "b": np.array([2.0, 2.0, 2.0])}
    found = pool([(2, first), (1, {"a": np.array([2.0]), "b": np.array([2.0])})])
    assert found == {"prefill_mean": 2.0, "prefill_worst": 3.0, "decode_mean": 5.0, "decode_worst": 5.0}


def test_regret_is_judged_in_yardsticks() -> None:
    reference = np.zeros((2, 8))
    reference[0, 3], reference[1, 4], reference[1, 5] = 1.0, 2.0, 1.4
    good = judge_regret(reference, [3, 5], [np.array([0.1, 0.2])], 0.0, LIMITS.regret)
    assert good.outcome is Outcome.PASS
    assert good.numbers["regret_ratio"] == pytest.approx(3.0)
    bad = judge_regret(reference, [3, 5], [np.array([0.1, 0.1])], 0.0, LIMITS.regret)
    assert bad.outcome is Outcome.FAIL
    assert "prefers another by 0.6 logits" in bad.message
    assert judge_regret(reference, [3, 5], [np.array([0.1, 0.1])], 0.2, LIMITS.regret).outcome is Outcome.PASS
