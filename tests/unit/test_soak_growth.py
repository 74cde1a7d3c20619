"""Slopes of what a process holds: what they are, how sure they are, and what is called a leak."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from harness.compare import Outcome
from harness.growth import FEWEST, WARM_UP, Series, judge_growth, theil_sen
from harness.policy import Limit

ENOUGH = WARM_UP + FEWEST
LIMIT = Limit(0.5, "a decision")


def series(values: Sequence[float], unit: str = "MiB") -> Series:
    return Series("memory" if unit else "threads", unit, values, LIMIT)


def test_the_slope_of_a_line_is_its_own_and_certain() -> None:
    assert theil_sen([3.0 + 2.0 * x for x in range(20)]) == pytest.approx((2.0, 2.0, 2.0))


def test_a_jump_is_no_slope() -> None:
    values = [100.0] * 10 + [150.0] * 10
    assert theil_sen(values).lower <= 0.0
    assert theil_sen([100.0] * 4 + [150.0] * 16).value == 0.0


def test_of_few_values_any_slope_is_possible() -> None:
    slope = theil_sen([1.0, 2.0, 3.0])
    assert slope.value == 1.0
    assert (slope.lower, slope.upper) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="1 values have no slope"):
        theil_sen([1.0])


def test_the_interval_holds_the_slope_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for _ in range(300):
        slope = theil_sen(list(0.7 * np.arange(25) + rng.normal(0, 5, 25)))
        held += slope.lower <= 0.7 <= slope.upper
    assert 0.91 < held / 300 < 0.99


def test_many_values_are_thinned_and_their_steps_kept() -> None:
    assert theil_sen([0.25 * x for x in range(5000)]) == pytest.approx((0.25, 0.25, 0.25))


def test_growth_beyond_the_limit_fails_and_says_from_what_to_what() -> None:
    verdict = judge_growth([series([100.0 + x for x in range(ENOUGH)])], "load")
    assert verdict.outcome is Outcome.FAIL
    assert "memory grows by 1 MiB a load (95 % interval 1 to 1), from 100 to 112 in 13" in verdict.message
    assert "allowed: 0.5 MiB (a decision)" in verdict.message


def test_growth_within_the_limit_passes_and_so_does_what_is_not_sure() -> None:
    assert judge_growth([series([100.0 + 0.4 * x for x in range(ENOUGH)])], "load").outcome is Outcome.PASS
    noisy = [100.0 + (x % 2) * 50 + x for x in range(ENOUGH)]
    assert judge_growth([series(noisy)], "load").outcome is Outcome.PASS


def test_the_first_rounds_are_a_warm_up() -> None:
    values = [100.0, 200.0, 300.0] + [400.0] * FEWEST
    assert judge_growth([series(values)], "load").outcome is Outcome.PASS


def test_of_few_rounds_only_a_count_that_rises_with_each_is_called_growing() -> None:
    assert judge_growth([series([5.0, 6.0, 7.0, 8.0], "")], "load").outcome is Outcome.FAIL
    assert judge_growth([series([5.0, 6.0, 6.0, 7.0], "")], "load").outcome is Outcome.PASS
    assert judge_growth([series([5.0, 6.0, 7.0, 8.0])], "load").outcome is Outcome.PASS


@pytest.mark.parametrize("values", [[], [1.0], [1.0, 1.0, 1.0]])
def test_too_few_rounds_never_pass(values: list[float]) -> None:
    given = [series(values)] if values else []
    assert judge_growth(given, "load").outcome is Outcome.FAIL
