"""Verdicts that rest on compact rows of a golden."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness import compare, metrics
from harness.compact import CompactRows
from harness.compact_plan import Plan
from harness.compacting import compacted
from harness.compare import Outcome, Rows
from harness.metrics import RowErrors
from harness.policy import GreedyLimits, Limit, LogitLimits, SuiteLimits

PLAN = Plan(vocabulary=300, top=8, even=20, drawn=10, seed=1)
# The likeliest tokens of every row, from the best on, are a logit apart; the others lie far below.
TOP = (7, 3, 5, 11, 13, 17, 19, 23)


def _logits(rows: int = 3) -> NDArray[np.float32]:
    logits = np.random.default_rng(4).normal(scale=0.5, size=(rows, 300)).astype(np.float32)
    logits[:, TOP] = 12 - np.arange(8)
    return logits


def _rows(logits: NDArray[np.float32], following: tuple[int, ...] = (7, 7, 7)) -> CompactRows:
    places, tokens = np.arange(logits.shape[0]), np.asarray(following)
    return CompactRows(compacted(logits, tokens, places, PLAN), tokens, places, PLAN)


def _limits(margin: float) -> GreedyLimits:
    return GreedyLimits(Limit(margin, "origin of the margin"), Limit(margin, "origin of the regret"))


def _unseen() -> int:
    """A token of which the second row knows nothing."""
    rows = _rows(_logits())[1:2]
    return next(token for token in range(300) if not rows.regret([token]).known[0])


def _never() -> NDArray[np.float32]:
    raise AssertionError("the reference was asked")


@pytest.mark.parametrize("limit", [0.1, 3.0])
def test_a_divergence_to_a_kept_token_is_judged_as_by_whole_rows(limit: float) -> None:
    logits = _logits()
    whole = compare.judge_match([7, 7, 7], [7, 3, 7], logits, _limits(limit))
    found = compare.judge_match([7, 7, 7], [7, 3, 7], _rows(logits), _limits(limit), _never)
    assert found.outcome is whole.outcome
    assert found.message == whole.message
    assert found.numbers["divergence_margin"] == pytest.approx(whole.numbers["divergence_margin"], rel=1e-9)


def test_a_token_that_lies_below_all_kept_ones_fails_where_these_are_beyond_the_limit() -> None:
    found = compare.judge_match([7, 7, 7], [7, _unseen(), 7], _rows(_logits()), _limits(1.0), _never)
    assert found.outcome is Outcome.FAIL
    assert "prefers its own token by at least" in found.message
    least = 7 / float(metrics.centred_scale(_logits()[1:2])[0])
    assert found.numbers["divergence_margin"] == pytest.approx(least, rel=1e-6)


@pytest.mark.parametrize(("limit", "outcome"), [(5.0, Outcome.FAIL), (1e3, Outcome.PASS)])
def test_where_that_does_not_decide_the_reference_is_asked(limit: float, outcome: Outcome) -> None:
    logits, asked = _logits(), []

    def ask() -> NDArray[np.float32]:
        asked.append(True)
        return logits

    found = compare.judge_match([7, 7, 7], [7, _unseen(), 7], _rows(logits), _limits(limit), ask)
    whole = compare.judge_match([7, 7, 7], [7, _unseen(), 7], logits, _limits(limit))
    assert asked
    assert found.outcome is whole.outcome is outcome
    assert found.message == whole.message


def test_without_a_reference_what_is_not_known_does_not_pass() -> None:
    found = compare.judge_match([7, 7, 7], [7, _unseen(), 7], _rows(_logits()), _limits(1e3))
    assert found.outcome is Outcome.FAIL
    assert "knows too little" in found.message


def test_regret_of_the_text_that_the_rows_are_of_is_that_of_whole_rows() -> None:
    logits, tokens = _logits(), (7, 3, 200)
    whole = compare.judge_regret(logits, tokens, _limits(1e3))
    found = compare.judge_regret(_rows(logits, tokens), tokens, _limits(1e3))
    assert found.outcome is whole.outcome is Outcome.PASS
    for key, value in whole.numbers.items():
        assert found.numbers[key] == pytest.approx(value, rel=1e-9)


def test_regret_of_another_text_does_not_pass() -> None:
    found = compare.judge_regret(_rows(_logits()), [7, _unseen(), 7], _limits(1e3))
    assert found.outcome is Outcome.FAIL


def test_the_worst_position_is_judged_by_what_is_sure() -> None:
    estimate = np.array([0.1, 1.0, 1.2])
    errors = RowErrors(estimate, estimate, estimate, np.ones(3, bool), np.array([0.0, 0.1, 0.5]), np.zeros(3))
    limits = LogitLimits(*(Limit(limit, "a decision") for limit in (9.0, 0.7, 9.0, 9.0)))
    verdict = compare.judge_logits(Rows(errors, 0), limits, 1)
    assert verdict.numbers["kl_worst"] == pytest.approx(1.0 - metrics.SURELY * 0.1)
    assert verdict.numbers["relative_worst"] == 1.2
    assert "at position 1 of 3" in verdict.message
    assert compare.judge_suite([errors], _suite()).numbers["kl_worst"] == verdict.numbers["kl_worst"]


def _suite() -> SuiteLimits:
    """Limits that nothing breaks."""
    return SuiteLimits(Limit(9.0, "a"), Limit(0.0, "b"), Limit(0.0, "c"))
