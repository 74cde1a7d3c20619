"""Compact rows: what they keep is exact, what they estimate is unbiased, and its standard errors are right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness import metrics
from harness.compact import CompactRows, unpacked
from harness.compact_plan import Lengths, Plan, places_of, plan_for
from harness.compacting import compacted
from harness.reference_rows import WholeRows

Array = NDArray[Any]
_SEEDS = st.integers(0, 2**32 - 1)


def _plan(vocabulary: int = 400, top: int = 12, even: int = 24, drawn: int = 16, seed: int = 1) -> Plan:
    return Plan(vocabulary, top, even, drawn, seed)


def _logits(rows: int, width: int = 400, scale: float = 2.0, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(scale=scale, size=(rows, width)).astype(np.float32)


def _compact(logits: NDArray[np.float32], plan: Plan | None = None, following: Array | None = None) -> CompactRows:
    count = logits.shape[0]
    following = np.full(count, -1) if following is None else following
    places = np.arange(count)
    plan = plan or _plan(logits.shape[1])
    return CompactRows(compacted(logits, following, places, plan), following, places, plan)


def _noisy(logits: NDArray[np.float32], size: float, seed: int = 1) -> NDArray[np.float32]:
    noise = np.random.default_rng(seed).normal(scale=size, size=logits.shape)
    return (logits + noise).astype(np.float32)


# the plan


@pytest.mark.parametrize("vocabulary", [32064, 65536, 65537, 100352, 200064])
def test_a_position_takes_at_most_2048_bytes(vocabulary: int) -> None:
    plan = plan_for(vocabulary)
    assert plan is not None
    assert plan.row.itemsize <= 2032
    assert min(plan.top, plan.even, plan.drawn) >= 48


@pytest.mark.parametrize("vocabulary", [2048, 8192])
def test_a_small_vocabulary_is_kept_whole_unless_asked_and_then_a_sixteenth_of_it(vocabulary: int) -> None:
    assert plan_for(vocabulary) is None
    plan = plan_for(vocabulary, compact=True)
    assert plan is not None
    assert plan.row.itemsize <= vocabulary * 4 / 16


def test_a_vocabulary_too_small_for_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="a vocabulary of 64 is too small"):
        plan_for(64, compact=True)
    assert plan_for(32064, compact=False) is None


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12), st.integers(2, 60))
def test_a_suite_looks_at_every_entry_as_often_as_at_any_other(texts: list[tuple[int, int]], even: int) -> None:
    plan = _plan(vocabulary=97, even=even)
    places = places_of([Lengths(prompt, prompt + new, 0) for prompt, new in texts])
    decoded = np.concatenate([rows[prompt - 1 :] for (rows, _), (prompt, _) in zip(places, texts, strict=True)])
    prompts = np.concatenate([rows[: prompt - 1] for (rows, _), (prompt, _) in zip(places, texts, strict=True)])
    for walk in (decoded, prompts, np.concatenate([prompts, decoded])):
        looks = np.bincount(plan.even_entries(walk).ravel(), minlength=97)
        assert looks.max() - looks.min() <= 1
        assert looks.sum() == walk.size * even


def test_places_never_meet_and_rows_past_the_switch_have_their_own() -> None:
    places = places_of([Lengths(3, 9, 5), Lengths(4, 6, 0), Lengths(2, 8, 6)])
    assert [(rows.size, fresh.size) for rows, fresh in places] == [(9, 4), (6, 0), (8, 2)]
    every = np.concatenate([part for pair in places for part in pair])
    assert np.unique(every).size == every.size


def test_random_numbers_are_the_same_everywhere() -> None:
    plan = _plan(vocabulary=1000, even=4, drawn=3, seed=42)
    entries, uniforms = plan.even_entries(np.array([0, 1])), plan.uniforms(5)
    again = _plan(vocabulary=1000, even=4, drawn=3, seed=42)
    assert np.array_equal(again.even_entries(np.array([0, 1])), entries)
    assert np.array_equal(again.uniforms(5), uniforms)
    assert not np.array_equal(_plan(1000, even=4, seed=43).even_entries(np.array([0, 1])), entries)


@given(_SEEDS)
def test_uniforms_are_uniform(seed: int) -> None:
    found = np.concatenate([_plan(seed=seed, drawn=500).uniforms(place) for place in range(20)])
    assert found.min() >= 0
    assert found.max() < 1
    assert abs(found.mean() - 0.5) < 5 / np.sqrt(12 * found.size)
    assert np.unique(found).size == found.size


# what is exact


@given(_SEEDS)
def test_everything_about_the_reference_alone_is_exact(seed: int) -> None:
    logits = _logits(5, seed=seed)
    following = np.random.default_rng(seed).integers(0, 400, size=5)
    tokens = following.tolist()
    compact, whole = _compact(logits, following=following), WholeRows(logits)
    assert compact.shape == whole.shape
    np.testing.assert_array_equal(compact.best(), whole.best())
    np.testing.assert_array_equal(compact.margins(), whole.margins())
    np.testing.assert_allclose(compact.scale(), whole.scale(), rtol=1e-12)
    np.testing.assert_allclose(compact.log_likelihood(tokens), whole.log_likelihood(tokens), rtol=1e-12)
    kept = np.sort(np.exp(metrics.log_softmax(logits)), axis=1)[:, -12:].sum(axis=1)
    np.testing.assert_allclose(compact.mass, kept, rtol=1e-10)


@given(_SEEDS)
def test_of_equal_logits_the_first_counts_as_in_whole_rows(seed: int) -> None:
    logits = np.random.default_rng(seed).integers(-2, 3, size=(6, 60)).astype(np.float32)
    compact = _compact(logits, _plan(60, top=9))
    np.testing.assert_array_equal(compact.best(), logits.argmax(axis=1))
    tokens, probabilities = compact.likeliest(9)
    for row, found, chance in zip(logits, tokens, probabilities, strict=True):
        assert found.tolist() == np.lexsort((np.arange(60), -row))[:9].tolist()
        np.testing.assert_allclose(chance, np.exp(metrics.log_softmax(row[None]))[0, found], rtol=1e-12)


@given(_SEEDS, st.sampled_from([1e-6, 1e-3, 0.1, 3.0]))
def test_top1_agreement_is_exact(seed: int, size: float) -> None:
    logits = _logits(8, seed=seed)
    device = _noisy(logits, size, seed)
    expected = metrics.compare_rows(logits, device)
    np.testing.assert_array_equal(_compact(logits).compare(device).top1_agrees, expected.top1_agrees)


def test_no_difference_is_no_error_at_all() -> None:
    logits = _logits(4)
    found = _compact(logits).compare(logits)
    assert np.abs(found.kl).max() < 1e-25
    assert np.abs(found.centred_rms).max() < 1e-12
    assert found.top1_agrees.all()


@given(_SEEDS, st.floats(-200, 200))
def test_a_constant_added_to_a_row_changes_no_error(seed: int, shift: float) -> None:
    logits = _logits(3, seed=seed).astype(np.float64)
    device = logits + np.random.default_rng(seed).normal(scale=0.1, size=logits.shape)
    rows = _compact(logits.astype(np.float32))
    plain, moved = rows.compare(device), rows.compare(device + shift)
    np.testing.assert_allclose(moved.kl, plain.kl, rtol=1e-8)
    np.testing.assert_allclose(moved.centred_rms, plain.centred_rms, rtol=1e-9)


@given(_SEEDS)
def test_an_error_of_the_kept_tokens_alone_is_measured_exactly(seed: int) -> None:
    logits = _logits(6, seed=seed)
    best = np.argsort(-logits, axis=1)[:, :12]
    device = logits.astype(np.float64)
    wrong = np.random.default_rng(seed).normal(scale=2, size=best.shape)
    np.put_along_axis(device, best, np.take_along_axis(device, best, axis=1) + wrong, axis=1)
    exact, found = metrics.compare_rows(logits, device), _compact(logits).compare(device)
    np.testing.assert_allclose(found.kl, exact.kl, rtol=1e-9)
    np.testing.assert_allclose(found.centred_rms, exact.centred_rms, rtol=1e-9)
    assert found.kl_deviation is not None
    assert found.kl_deviation.max() < 1e-12


@given(_SEEDS, st.floats(-8, 8))
def test_a_tail_that_is_moved_as_a_whole_is_measured_exactly(seed: int, shift: float) -> None:
    logits = _logits(6, seed=seed)
    best = np.argsort(-logits, axis=1)[:, :12]
    device = logits.astype(np.float64) + shift
    np.put_along_axis(device, best, np.take_along_axis(logits, best, axis=1).astype(np.float64), axis=1)
    exact, found = metrics.compare_rows(logits, device), _compact(logits).compare(device)
    np.testing.assert_allclose(found.kl, exact.kl, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(found.centred_rms, exact.centred_rms, rtol=1e-9, atol=1e-12)


# what is estimated


def _many(scale: float, size: float, plan: Plan) -> tuple[metrics.RowErrors, metrics.RowErrors]:
    """Exact errors, and those by many samples of the same rows."""
    logits = np.repeat(_logits(6, plan.vocabulary, scale), 150, axis=0)
    device = np.repeat(_noisy(logits[::150], size), 150, axis=0)
    return metrics.compare_rows(logits, device), _compact(logits, plan).compare(device)


@pytest.mark.parametrize("scale", [0.3, 2.0, 5.0], ids=["flat", "usual", "peaked"])
@pytest.mark.parametrize("size", [1e-5, 1e-3, 0.05, 0.5])
def test_estimates_are_unbiased_and_their_standard_errors_right(scale: float, size: float) -> None:
    exact, found = _many(scale, size, _plan(vocabulary=1500, top=20, even=60, drawn=40))
    assert found.kl_deviation is not None
    assert found.relative_deviation is not None
    of_mean = np.sqrt(np.square(found.kl_deviation).sum()) / found.kl.size
    assert abs(found.kl.mean() - exact.kl.mean()) < 4 * of_mean
    assert found.kl.mean() == pytest.approx(exact.kl.mean(), rel=0.02)
    squares = np.square(found.centred_rms)
    assert squares.mean() == pytest.approx(np.square(exact.centred_rms).mean(), rel=0.02)
    for z in (
        (found.kl - exact.kl) / found.kl_deviation,
        (found.centred_relative - exact.centred_relative) / found.relative_deviation,
    ):
        assert 0.8 < z.std() < 1.4
        assert abs(z.mean()) < 0.35


@settings(max_examples=40)
@example(1006, 400.0, 0.01)
@example(1006, 1.0, 400.0)
@given(_SEEDS, st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 20.0, 400.0]), st.sampled_from([0.01, 1.0, 8.0, 400.0]))
def test_no_estimate_is_negative_or_not_finite(seed: int, size: float, scale: float) -> None:
    logits = _logits(4, scale=scale, seed=seed)
    found = _compact(logits).compare(_noisy(logits, size, seed))
    for values in (found.kl, found.centred_rms, found.kl_deviation, found.relative_deviation, found.kl_surely):
        assert values is not None
        assert np.isfinite(values).all()
        assert (values >= 0).all()


@pytest.mark.parametrize("shape", [(3, 400), (4, 399), (0, 400)])
def test_rows_of_other_shapes_are_not_compared(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="do not compare"):
        _compact(_logits(4)).compare(np.zeros(shape))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_inf_are_never_compared_even_where_nothing_looks(wrong: float) -> None:
    logits = _logits(4)
    for column in range(0, 400, 37):
        device = logits.copy()
        device[2, column] = wrong
        with pytest.raises(ValueError, match="NaN or Inf"):
            _compact(logits).compare(device)


# single entries


def test_entries_are_seen_with_the_difference_that_they_have() -> None:
    logits = _logits(40)
    device = _noisy(logits, 0.1)
    entries = _compact(logits).compare(device).entries
    assert entries is not None
    assert entries.entries is not None
    difference = (device - logits).astype(np.float64)
    difference -= difference.mean(axis=1, keepdims=True)
    rows = np.repeat(np.arange(40), 24)
    np.testing.assert_allclose(entries.sums, difference[rows, entries.entries], atol=1e-5)


def test_slices_and_joined_rows_are_those_of_the_whole() -> None:
    logits = _logits(9)
    device = _noisy(logits, 0.3)
    rows = _compact(logits)
    whole, joined = rows.compare(device), rows[:4].joined(rows[4:]).compare(device)
    part = rows[3:7].compare(device[3:7])
    np.testing.assert_array_equal(joined.kl, whole.kl)
    np.testing.assert_array_equal(part.kl, whole.kl[3:7])
    np.testing.assert_array_equal(part.centred_relative, whole.centred_relative[3:7])


def test_rows_by_many_chunks_are_those_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = _logits(9)
    device = _noisy(logits, 0.3)
    whole = _compact(logits).compare(device)
    monkeypatch.setattr("harness.compact._CHUNK_ELEMENTS", 800)
    np.testing.assert_allclose(_compact(logits).compare(device).kl, whole.kl, rtol=1e-12)


# regret


@given(_SEEDS)
def test_regret_is_exact_where_it_is_known_and_else_a_lower_bound(seed: int) -> None:
    logits = _logits(30, seed=seed)
    tokens = np.random.default_rng(seed).integers(0, 400, size=30)
    tokens[:10] = np.argsort(-logits[:10], axis=1)[np.arange(10), np.arange(10)]
    following = np.where(np.arange(30) < 20, tokens, -1)
    exact = metrics.regret(logits, tokens)
    found = _compact(logits, following=following).regret(tokens.tolist())
    assert found.known[:20].all()
    assert not found.known.all()
    np.testing.assert_array_equal(found.least[found.known], exact[found.known])
    assert (found.least <= exact).all()


@pytest.mark.parametrize("tokens", [[400], [-1], [], [1, 2]])
def test_tokens_that_there_are_not_have_no_regret(tokens: list[int]) -> None:
    with pytest.raises(ValueError, match="token"):
        _compact(_logits(1)).regret(tokens)


def test_tokens_without_a_logit_have_no_likelihood() -> None:
    logits = _logits(1)
    worst = int(logits[0].argmin())
    rows = _compact(logits, _plan(top=4, even=2, drawn=2))
    with pytest.raises(ValueError, match="no logits of these tokens"):
        rows.log_likelihood([worst])


# from a file


def _stored(plan: Plan) -> NDArray[np.uint8]:
    packed = compacted(_logits(3), np.full(3, -1), np.arange(3), plan)
    return packed.view(np.uint8).reshape(3, -1).copy()


def test_rows_from_a_file_are_those_that_were_made() -> None:
    plan, device = _plan(), _noisy(_logits(3), 0.1)
    found = unpacked(_stored(plan), np.full(3, -1), np.arange(3), plan)
    np.testing.assert_array_equal(found.compare(device).kl, _compact(_logits(3), plan).compare(device).kl)


@pytest.mark.parametrize("name", ["tail", "following", "top_logits", "even_logits", "drawn_logits"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_nan_and_inf_in_a_file_are_refused(name: str, wrong: float) -> None:
    plan = _plan()
    stored = _stored(plan)
    stored.view(plan.row)[name][1] = wrong
    with pytest.raises(ValueError, match="has NaN or Inf"):
        unpacked(stored, np.full(3, -1), np.arange(3), plan)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("top", 400, "outside the vocabulary"), ("drawn", 400, "outside the vocabulary"), ("top", 5, "in order")],
)
def test_entries_that_cannot_be_are_refused(name: str, value: int, said: str) -> None:
    plan = _plan()
    stored = _stored(plan)
    stored.view(plan.row)[name][1, 0, -2:] = value
    with pytest.raises(ValueError, match=said):
        unpacked(stored, np.full(3, -1), np.arange(3), plan)


def test_rows_of_another_shape_are_refused() -> None:
    plan = _plan()
    for stored in (_stored(plan)[:, :-1], _stored(plan)[:2], _stored(plan).astype(np.int16)):
        with pytest.raises(ValueError, match="not uint8"):
            unpacked(stored, np.full(3, -1), np.arange(3), plan)
