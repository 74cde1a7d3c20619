from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness import details, metrics
from harness.compare import Outcome, Rows, Verdict
from harness.details import answer, detail, logits_sha256, prompt_record, rounded, tops
from harness.golden import Golden
from harness.probes import Repeats
from harness.reference_rows import WholeRows
from harness.run import PromptCase
from harness.yardstick import Decomposed

_LOGITS = hnp.arrays(
    np.float32, st.tuples(st.integers(1, 5), st.integers(1, 40)), elements=st.floats(-50, 50, width=32)
)


@given(_LOGITS)
def test_tops_are_the_likeliest_tokens_with_their_probabilities(logits: np.ndarray) -> None:
    found = tops(logits)
    exact = np.exp(metrics.log_softmax(logits))
    for row, (tokens, probabilities) in enumerate(zip(found.tokens, found.probabilities, strict=True)):
        order = np.lexsort((np.arange(exact.shape[1]), -logits[row]))[:3]
        assert tokens == order.tolist()  # of equals the first
        assert np.allclose(probabilities, exact[row, order], rtol=1e-3, atol=1e-30)


def test_tops_of_many_rows_are_those_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(1).normal(size=(9, 17)).astype(np.float32)
    whole = tops(logits)
    monkeypatch.setattr(details, "_CHUNK", 34)
    assert tops(logits) == whole
    before = logits.copy()
    tops(logits)
    assert np.array_equal(logits, before)


def test_the_hash_is_of_the_values_and_not_of_how_they_lie() -> None:
    logits = np.arange(12, dtype=np.float32).reshape(3, 4)
    expected = hashlib.sha256(logits.astype("<f4").tobytes()).hexdigest()
    assert logits_sha256(logits) == expected
    assert logits_sha256(np.asfortranarray(logits)) == expected
    assert logits_sha256(logits.astype(np.float64)) == expected
    assert logits_sha256(logits + np.float32(1e-6)) != expected


@given(st.lists(st.floats(1e-30, 1e30), max_size=5))
def test_rounding_keeps_four_digits(values: list[float]) -> None:
    assert np.allclose(rounded(np.array(values)), values, rtol=5.1e-4)


def _rows(reference: np.ndarray, device: np.ndarray, first: int) -> Rows:
    return Rows(metrics.compare_rows(reference, device), first)


def test_a_detail_has_the_errors_of_every_position() -> None:
    rng = np.random.default_rng(2)
    golden, device, exact = (rng.normal(size=(4, 6)).astype(np.float32) for _ in range(3))
    total = _rows(golden[1:], device[1:], 1)
    yardsticks = {"one": np.array([9.0, 1, 2, 3]), "two": np.array([9.0, 3, 1, 4])}
    found = Decomposed(
        total, _rows(golden[1:], exact[1:], 1), _rows(exact[1:], device[1:], 1), yardsticks, 2, "fp32", {}
    )
    made = detail(found, answer(device[1:], total))
    assert made.first == 1
    assert made.kl == rounded(total.errors.kl)
    assert made.quantisation == rounded(found.quantisation.errors.centred_rms)
    assert made.implementation == rounded(found.implementation.errors.centred_rms)
    assert made.yardstick == [3, 2, 4]
    assert made.top == tops(device[1:])
    plain = detail(total, answer(device[1:], total))
    assert (plain.kl, plain.quantisation, plain.first) == (made.kl, [], 1)


def test_logits_that_do_not_compare_are_known_by_their_hash_alone() -> None:
    broken = np.full((2, 3), np.nan, dtype=np.float32)
    verdict = Verdict(Outcome.FAIL, {}, {}, "nan")
    made = detail(verdict, answer(broken, verdict))
    assert made.logits_sha256 == logits_sha256(broken)
    assert (made.kl, made.top) == ([], None)
    assert detail(verdict, None).logits_sha256 == ""


def _prompt(made: Any, prompt_id: str = "one") -> PromptCase:
    golden: Any = SimpleNamespace(rows=lambda name: WholeRows(made.logits[name]))
    case = next(case for case in made.manifest.cases if case.id == prompt_id)
    return PromptCase("tiny", case, golden)


def test_a_prompt_is_recorded_with_what_its_golden_prefers(made: Any) -> None:
    prompt = _prompt(made)
    found = prompt_record(prompt, "why")
    assert (found.tokens, found.prefill, found.about) == ([1, 5, 6, 7, 2], 3, "why")
    assert [row[0] for row in found.top.tokens] == made.logits["one"].argmax(axis=1).tolist()
    assert found.margins == rounded(metrics.margins(made.logits["one"]))
    assert isinstance(Golden, type)


def test_a_second_answer_is_compared_with_the_first(made: Any) -> None:
    repeats, prompt, logits = Repeats(), _prompt(made), made.logits["one"]
    repeats.see(prompt, logits)
    assert not repeats.found, "it was not to be kept"
    repeats.see(prompt, logits, keep=True)
    repeats.see(prompt, logits.copy())
    repeats.see(prompt, logits, keep=True)
    repeats.see(prompt, logits + np.float32(0.01) * np.eye(*logits.shape, dtype=np.float32))
    same, other = repeats.found
    assert (same.case, same.identical, same.centred_rms_worst) == ("one", True, 0.0)
    assert not other.identical
    assert 0 < other.centred_rms_mean <= other.centred_rms_worst
    assert other.kl_mean > 0


def test_answers_that_do_not_compare_and_those_of_another_process_are_no_noise(made: Any) -> None:
    repeats, prompt, logits = Repeats(), _prompt(made), made.logits["one"]
    for second in (logits[1:], np.full_like(logits, np.nan)):
        repeats.see(prompt, logits, keep=True)
        repeats.see(prompt, second)
    repeats.see(prompt, logits, keep=True)
    repeats.forget()
    repeats.see(prompt, logits + 1)
    assert not repeats.found
