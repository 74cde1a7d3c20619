from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.intervals import Interval, intervals, share_interval

Floats = NDArray[np.float64]


def skewed(rng: np.random.Generator, n: int, spread: float = 1.0) -> tuple[Floats, Floats]:
    """Sums and sizes of n prompts whose mean KL is as skewed as those of quantised models; its mean is 1."""
    sizes = rng.integers(5, 40, size=n).astype(float)
    means = rng.lognormal(-spread * spread / 2, spread, size=n)
    return means * sizes, sizes


def one(sums: Floats, sizes: Floats, resamples: int = 2000) -> Interval:
    return intervals(sums[:, None], sizes, resamples)[0]


def test_the_estimate_is_the_mean_over_positions() -> None:
    found = one(np.array([1.0, 8.0]), np.array([1.0, 2.0]))
    assert found.estimate == 3.0
    assert found.low <= 3.0 <= found.high


def test_equal_input_gives_equal_intervals() -> None:
    sums, sizes = skewed(np.random.default_rng(1), 120)
    assert one(sums, sizes) == one(sums, sizes)


def test_draws_stay_as_they_are_from_version_to_version() -> None:
    sums, sizes = np.arange(1.0, 11.0), np.ones(10)
    found = one(sums, sizes)
    assert found.low == pytest.approx(3.7, abs=1e-12)
    assert found.high == pytest.approx(7.3, abs=1e-12)


def test_it_agrees_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    sums, sizes = skewed(np.random.default_rng(2), 150)

    def ratio(a: Floats, b: Floats, axis: int = -1) -> Floats:
        found: Floats = a.sum(axis=axis) / b.sum(axis=axis)
        return found

    theirs = stats.bootstrap(
        (sums, sizes), ratio, paired=True, method="BCa", n_resamples=20_000, rng=np.random.default_rng(3)
    )
    ours = one(sums, sizes, 20_000)
    width = ours.high - ours.low
    assert abs(ours.low - theirs.confidence_interval.low) < 0.04 * width
    assert abs(ours.high - theirs.confidence_interval.high) < 0.04 * width
    assert ours.error == pytest.approx(theirs.standard_error, rel=0.05)


def test_pairing_makes_a_difference_visible_that_two_intervals_hide() -> None:
    sums, sizes = skewed(np.random.default_rng(4), 200)
    worse = sums * 1.03
    first, second, apart = intervals(np.column_stack([sums, worse, worse - sums]), sizes, 2000)
    assert first.high > second.low
    assert apart.low > 0


def test_positions_of_a_prompt_are_drawn_together() -> None:
    """A prompt's positions are alike: taking each for itself would make the interval four times too narrow."""
    rng = np.random.default_rng(5)
    means = rng.normal(size=100)
    clustered = one(means * 16, np.full(100, 16.0))
    apart = one(np.repeat(means, 16), np.ones(1600), 500)
    assert (clustered.high - clustered.low) / (apart.high - apart.low) == pytest.approx(4, rel=0.2)


@pytest.mark.parametrize(("n", "least", "most"), [(30, 0.80, 0.93), (300, 0.90, 0.97)])
def test_coverage(n: int, least: float, most: float) -> None:
    rng = np.random.default_rng(6)
    trials = [one(*skewed(rng, n, 1.25), 1000) for _ in range(400)]
    covered = float(np.mean([found.low <= 1 <= found.high for found in trials]))
    assert least <= covered <= most


def test_the_detectable_change_is_detected_four_times_in_five() -> None:
    rng = np.random.default_rng(7)

    def difference(change: float) -> Interval:
        """Of two candidates that are off on prompts of their own, the second by so much more."""
        (first, sizes), (second, others) = skewed(rng, 300, 0.8), skewed(rng, 300, 0.8)
        return one(second * sizes / others - first + change * sizes, sizes, 600)

    change = float(np.mean([difference(0.0).detectable for _ in range(10)]))
    assert 0.72 <= float(np.mean([difference(change).low > 0 for _ in range(300)])) <= 0.88


def test_a_share_of_one_is_not_certain() -> None:
    found = share_interval(one(np.full(300, 5.0), np.full(300, 5.0)), 300)
    assert found.estimate == 1
    assert found.low == pytest.approx(0.9878, abs=1e-4)
    less = Interval(0.99, 0.98, 0.995, 0.001)
    assert share_interval(less, 300) == less


@pytest.mark.parametrize(
    ("sums", "sizes"),
    [
        (np.ones((1, 1)), np.ones(1)),
        (np.ones((3, 1)), np.ones(2)),
        (np.ones((3, 1)), np.array([1.0, 0.0, 1.0])),
        (np.array([[1.0], [np.nan]]), np.ones(2)),
        (np.ones(3), np.ones(3)),
    ],
)
def test_what_is_no_sample_is_refused(sums: Floats, sizes: Floats) -> None:
    with pytest.raises(ValueError, match=r"no intervals|not finite"):
        intervals(sums, sizes)
