from __future__ import annotations

import decimal
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from harness import metrics

Array = NDArray[np.float64]
_SHAPES = st.tuples(st.integers(1, 4), st.integers(2, 12))
_LOGITS = st.floats(-30, 30, allow_subnormal=False)


def _pairs(elements: st.SearchStrategy[float] = _LOGITS) -> st.SearchStrategy[tuple[Array, Array]]:
    pairs = _SHAPES.flatmap(
        lambda shape: st.tuples(
            arrays(np.float64, shape, elements=elements), arrays(np.float64, shape, elements=elements)
        )
    )
    return pairs.filter(lambda pair: bool(np.ptp(pair[0], axis=1).min() > 1e-3))


def _log_softmax(row: list[float]) -> list[float]:
    top = max(row)
    normaliser = math.log(math.fsum(math.exp(x - top) for x in row))
    return [x - top - normaliser for x in row]


def _oracle_kl(reference: list[float], device: list[float]) -> float:
    p, q = _log_softmax(reference), _log_softmax(device)
    return math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))


def _exact_kl(reference: list[float], device: list[float]) -> float:
    with decimal.localcontext(decimal.Context(prec=50)):
        p = [decimal.Decimal(x).exp() for x in reference]
        q = [decimal.Decimal(x).exp() for x in device]
        terms = (a / sum(p) * (a / sum(p) * sum(q) / b).ln() for a, b in zip(p, q, strict=True))
        return float(sum(terms))


@given(_pairs())
def test_kl_is_never_negative(pair: tuple[Array, Array]) -> None:
    assert (metrics.kl_divergence(*pair) >= 0).all()


@given(_pairs())
def test_kl_equals_the_definition(pair: tuple[Array, Array]) -> None:
    reference, device = pair
    expected = [_oracle_kl(r, d) for r, d in zip(reference.tolist(), device.tolist(), strict=True)]
    np.testing.assert_allclose(metrics.kl_divergence(reference, device), expected, rtol=1e-9, atol=1e-12)


@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-1, 1e-3, 1e-5, 1e-7, 1e-9]))
def test_kl_of_a_tiny_error_is_accurate_where_the_definition_cancels(seed: int, size: float) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.normal(scale=3, size=(1, 40))
    device = reference + size * generator.normal(size=(1, 40))
    expected = _exact_kl(reference[0].tolist(), device[0].tolist())
    assert metrics.kl_divergence(reference, device)[0] == pytest.approx(expected, rel=1e-5, abs=0)


@given(st.integers(0, 2**32 - 1))
def test_kl_of_the_smallest_errors_is_accurate_where_the_logits_are_small(seed: int) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.normal(scale=1e-3, size=(1, 6))
    device = reference + 1e-13 * generator.normal(size=(1, 6))
    expected = _exact_kl(reference[0].tolist(), device[0].tolist())
    assert metrics.kl_divergence(reference, device)[0] == pytest.approx(expected, rel=1e-4, abs=1e-32)


@pytest.mark.parametrize("gap", [100.0, 800.0, 5000.0])
def test_kl_of_logits_far_apart_is_the_finite_number_it_is(gap: float) -> None:
    reference, device = np.array([[0.0, 1.0, 5.0]]), np.array([[gap, 0.0, 0.0]])
    assert metrics.kl_divergence(reference, device)[0] == pytest.approx(_oracle_kl([0, 1, 5], [gap, 0, 0]), rel=1e-12)


def test_errors_against_a_constant_row_are_large_but_no_crash() -> None:
    errors = metrics.compare_rows(np.array([[3.0, 3.0, 3.0]]), np.array([[90.0, 0.0, 40.0]]))
    assert errors.kl[0] == pytest.approx(_oracle_kl([3, 3, 3], [90, 0, 40]), rel=1e-12)
    assert errors.centred_relative[0] > 1e100


@given(_pairs(), st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_a_constant_added_to_a_row_changes_no_error(pair: tuple[Array, Array], left: float, right: float) -> None:
    reference, device = pair
    # a best entry that leads by less than the rounding of the sums may lose its lead
    assume(metrics.margins(reference).min() > 1e-9)
    assume(metrics.margins(device).min() > 1e-9)
    plain = metrics.compare_rows(reference, device)
    shifted = metrics.compare_rows(reference + left, device + right)
    np.testing.assert_allclose(shifted.kl, plain.kl, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose(shifted.centred_rms, plain.centred_rms, rtol=1e-9, atol=1e-10)
    assert (shifted.top1_agrees == plain.top1_agrees).all()


@given(_pairs())
def test_the_centred_error_is_the_rms_of_the_centred_difference(pair: tuple[Array, Array]) -> None:
    reference, device = pair
    difference = device - reference
    expected = (difference - difference.mean(axis=1, keepdims=True)).std(axis=1)
    np.testing.assert_allclose(metrics.centred_rms_error(reference, device), expected, rtol=1e-9, atol=1e-12)


def test_the_relative_error_is_in_units_of_the_references_centred_rms() -> None:
    reference, device = np.array([[1.0, -1.0]]) * 4 + 7, np.array([[1.0, -1.0]]) * 5
    errors = metrics.compare_rows(reference, device)
    assert errors.centred_rms[0] == pytest.approx(1.0)
    assert errors.centred_relative[0] == pytest.approx(0.25)
    assert metrics.centred_scale(reference)[0] == pytest.approx(4.0)


@given(_LOGITS.flatmap(lambda x: arrays(np.float64, (3, 5), elements=st.floats(x - 9, x + 9))))
def test_equal_logits_have_no_error(logits: Array) -> None:
    errors = metrics.compare_rows(logits, logits.copy())
    assert not errors.kl.any()
    assert not errors.centred_rms.any()
    assert errors.top1_agrees.all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "device"])
def test_nan_and_inf_are_refused_on_either_side(bad: float, side: str) -> None:
    arguments = {"reference": np.array([[0.0, 1.0, 2.0]]), "device": np.array([[0.0, 1.0, 2.0]])}
    arguments[side][0, 1] = bad
    with pytest.raises(ValueError, match="NaN or Inf"):
        metrics.compare_rows(arguments["reference"], arguments["device"])


def test_nan_on_both_sides_is_not_agreement() -> None:
    logits = np.array([[np.nan, 1.0]])
    with pytest.raises(ValueError, match="NaN or Inf"):
        metrics.compare_rows(logits, logits)


@pytest.mark.parametrize("shape", [(1, 3), (2, 2), (2, 4), (3, 3), (6,), (1, 2, 3)])
def test_unequal_shapes_are_refused_and_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not compare") as caught:
        metrics.compare_rows(np.zeros((2, 3)), np.zeros(shape))
    assert str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_zero_positions_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="zero positions"):
        metrics.compare_rows(np.zeros(shape), np.zeros(shape))


@pytest.mark.parametrize("function", [metrics.margins, metrics.centred_scale, metrics.log_softmax])
@pytest.mark.parametrize("logits", [np.array([[0.0, np.nan]]), np.array([[np.inf, 0.0]]), np.empty((0, 3))])
def test_a_measure_of_one_array_refuses_nan_inf_and_zero_positions(
    function: Callable[[Any], Any], logits: Array
) -> None:
    with pytest.raises(ValueError, match=r"NaN|Inf|zero positions|no margin"):
        function(logits)


def test_many_chunks_of_rows_give_what_each_row_gives_alone() -> None:
    generator = np.random.default_rng(3)
    reference = generator.normal(size=(9, 200_000)).astype(np.float32)
    device = (reference + generator.normal(scale=0.1, size=reference.shape)).astype(np.float32)
    together = metrics.compare_rows(reference, device)
    scales = metrics.centred_scale(reference)
    for row in range(len(reference)):
        alone = metrics.compare_rows(reference[row : row + 1], device[row : row + 1])
        np.testing.assert_allclose(together.kl[row], alone.kl[0], rtol=1e-12)
        np.testing.assert_allclose(together.centred_rms[row], alone.centred_rms[0], rtol=1e-12)
        np.testing.assert_allclose(together.centred_relative[row], alone.centred_relative[0], rtol=1e-12)
        assert together.top1_agrees[row] == alone.top1_agrees[0]
        np.testing.assert_allclose(scales[row], reference[row].astype(np.float64).std(), rtol=1e-9)


def test_a_fault_in_the_last_chunk_is_found() -> None:
    logits = np.zeros((9, 200_000), dtype=np.float32)
    assert metrics.first_non_finite(logits) is None
    logits[8, 199_999] = np.nan
    assert metrics.first_non_finite(logits) == (8, 199_999)
    logits[5, 3] = np.inf
    assert metrics.first_non_finite(logits) == (5, 3)


@given(arrays(np.float64, (3, 6), elements=_LOGITS))
def test_log_probabilities_add_up_to_one(logits: Array) -> None:
    found = metrics.log_softmax(logits)
    np.testing.assert_allclose(found, [_log_softmax(row) for row in logits.tolist()], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, rtol=1e-12)


def test_inputs_are_left_as_they_were() -> None:
    reference, device = np.array([[0.0, 1.0, 4.0]]), np.array([[3.0, 1.0, 4.0]])
    copies = reference.copy(), device.copy()
    metrics.compare_rows(reference, device)
    metrics.log_softmax(reference)
    metrics.margins(reference)
    np.testing.assert_array_equal(reference, copies[0])
    np.testing.assert_array_equal(device, copies[1])


def test_half_precision_is_widened_before_it_is_compared() -> None:
    reference = np.array([[60000.0, 59968.0]], dtype=np.float16)
    device = np.array([[-60000.0, -60000.0]], dtype=np.float16)
    assert metrics.centred_rms_error(reference, device)[0] == pytest.approx(16.0)


@given(arrays(np.float64, (4, 7), elements=_LOGITS), st.data())
def test_regret_is_zero_where_and_only_where_the_best_was_chosen(logits: Array, data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, 6), min_size=4, max_size=4)))
    found = metrics.regret(logits, tokens)
    best = logits[np.arange(4), tokens] == logits.max(axis=1)
    assert ((found == 0) == best).all()
    assert (found >= 0).all()


def test_regret_is_the_distance_below_the_best() -> None:
    assert metrics.regret(np.array([[1.0, 4.0, 2.5]]), np.array([2])).tolist() == [1.5]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "do not go with"),
        ([0], "do not go with"),
        ([0, 1, 2], "do not go with"),
        ([0, 3], "outside"),
        ([-1, 0], "outside"),
    ],
)
def test_regret_refuses_tokens_that_do_not_fit(tokens: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metrics.regret(np.zeros((2, 3)), np.array(tokens, dtype=np.int64))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_regret_refuses_a_reference_that_is_not_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or Inf"):
        metrics.regret(np.array([[0.0, bad]]), np.array([0]))


@given(arrays(np.float64, (3, 6), elements=_LOGITS))
def test_a_margin_is_the_best_less_the_second_best(logits: Array) -> None:
    ordered = np.sort(logits, axis=1)
    assert metrics.margins(logits).tolist() == (ordered[:, -1] - ordered[:, -2]).tolist()


@pytest.mark.parametrize("shape", [(0, 3), (2, 1), (3,)])
def test_a_margin_needs_two_entries_and_a_position(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no margin"):
        metrics.margins(np.zeros(shape))


@pytest.mark.parametrize(
    ("golden", "device", "expected"),
    [
        ([1, 2, 3], [1, 2, 3], None),
        ([1, 2, 3], [4, 2, 3], 0),
        ([1, 2, 3], [1, 2, 4], 2),
        ([1, 2, 3], [1, 2], 2),
        ([1, 2], [1, 2, 3], 2),
        ([1, 2], [], 0),
        ([], [1], 0),
    ],
)
def test_sequences_diverge_where_they_first_differ_or_one_ends(
    golden: list[int], device: list[int], expected: int | None
) -> None:
    assert metrics.first_divergence(golden, device) == expected


@given(st.lists(st.integers(0, 3)), st.lists(st.integers(0, 3)))
def test_before_the_first_divergence_all_is_equal_and_at_it_nothing(left: list[int], right: list[int]) -> None:
    at = metrics.first_divergence(left, right)
    if at is None:
        assert left == right
    else:
        assert left[:at] == right[:at]
        assert left[at : at + 1] != right[at : at + 1]


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_the_upper_end_of_an_interval_lies_above_the_share_and_closes_in_on_it(counts: tuple[int, int]) -> None:
    successes, trials = counts
    upper = metrics.wilson_upper(successes, trials)
    assert successes / trials - 1e-12 <= upper <= 1.0
    assert metrics.wilson_upper(100 * successes, 100 * trials) <= upper + 1e-12


def test_the_upper_end_of_an_interval_is_that_of_scipy() -> None:
    assert metrics.wilson_upper(53, 55) == pytest.approx(0.98996, abs=1e-4)
    assert metrics.wilson_upper(0, 10) == pytest.approx(0.27753, abs=1e-4)
