"""Known faults are told from rounding, by name, where they are smaller than it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from harness.compare import Outcome
from harness.suspects import Lineup, judge_suspects, weigh

NAMES = ("a scale of attention 1 % larger", "no window", "10 times the epsilon")
LENGTHS, WIDTH = [60, 40, 75], 300


def lineup(
    shares: dict[str, float], noise: float = 2.0, seed: int = 1, silent: str = "", lengths: Sequence[int] = LENGTHS
) -> Lineup:
    """A device whose error is rounding of `noise` times a suspect's effect, and shares of the suspects' effects."""
    generator = np.random.default_rng(seed)
    n = sum(lengths)
    effects = {name: generator.normal(size=(n, WIDTH)) * (name != silent) for name in NAMES}
    error = noise * generator.normal(size=(n, WIDTH))
    for name, share in shares.items():
        error += share * effects[name]
    return Lineup(
        list(lengths),
        {name: (effect * error).sum(axis=1) for name, effect in effects.items()},
        {name: (effect * effect).sum(axis=1) for name, effect in effects.items()},
        (error * error).sum(axis=1),
        NAMES[:1],
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_below_the_rounding_is_found_and_named(name: str) -> None:
    verdict = judge_suspects(weigh(lineup({name: 1.0})))
    assert verdict.outcome is Outcome.FAIL
    assert f"as if with {name}" in verdict.message
    assert verdict.numbers[f"share of {name}"] == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("seed", range(20))
def test_rounding_alone_is_no_fault(seed: int) -> None:
    verdict = judge_suspects(weigh(lineup({}, seed=seed)))
    assert verdict.outcome is Outcome.PASS
    assert all(abs(verdict.numbers[f"share of {name}"]) < 0.1 for name in NAMES)


def test_the_standard_error_is_that_of_the_spread() -> None:
    found = [{one.name: one for one in weigh(lineup({}, seed=seed))} for seed in range(200)]
    shares = np.array([one[NAMES[0]].share for one in found])
    deviations = np.array([one[NAMES[0]].deviation for one in found])
    assert deviations.mean() == pytest.approx(shares.std(), rel=0.15)


def test_a_fault_that_has_a_size_may_be_of_any_or_the_opposite() -> None:
    assert judge_suspects(weigh(lineup({NAMES[0]: -2.0}))).outcome is Outcome.FAIL
    assert judge_suspects(weigh(lineup({NAMES[0]: 9.0}))).outcome is Outcome.FAIL


def test_the_opposite_of_a_fault_that_one_has_or_has_not_is_none() -> None:
    assert judge_suspects(weigh(lineup({NAMES[1]: -1.0}))).outcome is Outcome.PASS
    assert judge_suspects(weigh(lineup({NAMES[1]: 3.0}))).outcome is Outcome.PASS


def test_of_two_faults_the_one_that_explains_more_is_named() -> None:
    verdict = judge_suspects(weigh(lineup({NAMES[1]: 0.8, NAMES[2]: 1.2})))
    assert f"as if with {NAMES[2]}" in verdict.message


def test_a_suspect_without_effect_is_not_heard() -> None:
    found = {one.name: one for one in weigh(lineup({}, silent=NAMES[1]))}
    assert not found[NAMES[1]].heard
    assert found[NAMES[0]].heard


def test_a_share_that_is_known_badly_concludes_nothing() -> None:
    verdict = judge_suspects(weigh(lineup({NAMES[1]: 1.0}, noise=200.0)))
    assert verdict.outcome is not Outcome.PASS or not verdict.numbers
    assert "no suspect" in verdict.message


@pytest.mark.parametrize("positions", [6, 14])
def test_of_few_positions_nothing_is_concluded(positions: int) -> None:
    """Their spread says nothing of how well a share is known: of one block it is 0."""
    for seed in range(100):
        generator = np.random.default_rng(seed)
        effect = np.zeros((40, WIDTH))
        effect[-positions:] = 0.05 * generator.normal(size=(positions, WIDTH))
        error = generator.normal(size=(40, WIDTH))
        found = weigh(
            Lineup(
                [40],
                {NAMES[1]: (effect * error).sum(axis=1)},
                {NAMES[1]: (effect * effect).sum(axis=1)},
                (error * error).sum(axis=1),
            )
        )
        assert not found[0].heard
        assert not found[0].guilty


@pytest.mark.parametrize(("lengths", "few"), [([16], True), ([17], False), ([8, 1], True), ([1, 2, 3], False)])
def test_a_few_positions_of_few_prompts_are_too_few(lengths: list[int], few: bool) -> None:
    found = weigh(lineup({}, noise=0.1, lengths=lengths))
    assert not any(one.heard for one in found) if few else all(one.heard for one in found)
