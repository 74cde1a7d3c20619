from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from harness import metrics
from harness.compare import Rows
from harness.policy import ImplementationLimits, Limit
from harness.record import CaseRecord, RunRecord
from harness.signoff.figures import IMPLEMENTATION, ITEM, figures_of, implementation_ratios, item_numbers, scored_kl
from harness.yardstick import Decomposed, judge_implementation
from made_signoff import case

PROMPT, GIVEN = 4, (3, 0, 7)
LIMITS = ImplementationLimits(*(Limit(1.0, "a test") for _ in range(4)))


def logits(seed: int) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(PROMPT + len(GIVEN), 12)).astype(np.float32)


def numbered(subject: str, numbers: dict[str, float]) -> CaseRecord:
    return msgspec.structs.replace(case(ITEM, subject), numbers=numbers)


def decomposed(seed: int, prompt: int = PROMPT) -> Decomposed:
    golden, device, reference = logits(seed), logits(seed + 100), logits(seed + 200)
    rng = np.random.default_rng(seed + 300)
    return Decomposed(
        total=Rows(metrics.compare_rows(golden, device), 0),
        quantisation=Rows(metrics.compare_rows(golden, reference), 0),
        implementation=Rows(metrics.compare_rows(reference, device), 0),
        yardsticks={name: rng.uniform(0, 1, golden.shape[:1]) for name in ("order", "blocks", "fused")},
        prefill=prompt,
        compute_class="fp32",
        pooled={"prefill_mean": 0.1, "prefill_worst": 0.95, "decode_mean": 0.7, "decode_worst": 0.2},
    )


def test_scored_are_the_positions_that_choose_the_given_tokens() -> None:
    golden, device = logits(1), logits(2)
    found = Rows(metrics.compare_rows(golden, device), 0)
    numbers = item_numbers(golden, device, found, PROMPT, GIVEN)
    rows = slice(PROMPT - 1, PROMPT - 1 + len(GIVEN))
    assert numbers["positions"] == 3
    assert numbers["kl"] == pytest.approx(metrics.kl_divergence(golden[rows], device[rows]).sum())
    assert numbers["kl"] == pytest.approx(scored_kl(golden, device, PROMPT, len(GIVEN)))
    expected = -sum(metrics.log_softmax(device)[PROMPT - 1 + i, token] for i, token in enumerate(GIVEN))
    assert numbers["nll"] == pytest.approx(expected)
    assert numbers["top1"] == (golden[rows].argmax(axis=1) == device[rows].argmax(axis=1)).sum()


def test_a_runtime_that_gives_the_last_row_of_a_prompt_only_has_the_same_numbers() -> None:
    golden, device = logits(1), logits(2)
    every = item_numbers(golden, device, Rows(metrics.compare_rows(golden, device), 0), PROMPT, GIVEN)
    first = PROMPT - 1
    last = Rows(metrics.compare_rows(golden[first:], device[first:]), first)
    assert item_numbers(golden, device[first:], last, PROMPT, GIVEN) == pytest.approx(every)


def _record(make_record: Callable[..., RunRecord], cases: list[CaseRecord]) -> RunRecord:
    return make_record(cases=cases)


def test_the_implementation_error_is_the_harness_own(make_record: Callable[..., RunRecord]) -> None:
    """From sums alone, what the judge of a suite has from every position."""
    found = [decomposed(seed, prompt) for seed, prompt in ((1, 4), (2, 4), (3, 4))]
    cases = [
        numbered(f"text-{n}", item_numbers(logits(n), logits(n + 100), one, PROMPT, GIVEN))
        for n, one in enumerate(found, 1)
    ]
    pooled = {f"pooled_{name}": value for name, value in found[0].pooled.items()}
    cases.append(msgspec.structs.replace(case(IMPLEMENTATION), numbers=pooled))
    expected = judge_implementation(found, LIMITS, suite=True).numbers
    ratios = implementation_ratios(_record(make_record, cases))
    assert set(ratios) == {"prefill_mean", "prefill_worst", "decode_mean", "decode_worst"}
    for name, ratio in ratios.items():
        assert ratio == pytest.approx(expected[f"ratio_{name}"])


def test_items_that_were_not_compared_are_no_figures(make_record: Callable[..., RunRecord]) -> None:
    golden, device = logits(1), logits(2)
    numbers = item_numbers(golden, device, Rows(metrics.compare_rows(golden, device), 0), PROMPT, GIVEN)
    cases = [numbered("text-1", numbers), case(ITEM, "text-2", outcome="ERROR", message="it crashed")]
    assert figures_of(_record(make_record, cases)).ids == ("text-1",)


def test_a_number_that_is_missing_is_named(make_record: Callable[..., RunRecord]) -> None:
    with pytest.raises(ValueError, match=r"text-1.*'kl'"):
        figures_of(_record(make_record, [case(ITEM, "text-1", positions=3.0)]))
