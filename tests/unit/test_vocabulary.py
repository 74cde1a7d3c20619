"""Entries of a vocabulary that are off throughout are seen, by whole and by compact rows; honest noise is not."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness.compact import CompactRows
from harness.compact_plan import Lengths, Plan, places_of, plan_for
from harness.compacting import compacted
from harness.compare import Outcome, Rows, Verdict, compare_logits
from harness.golden import TREE, verify_files
from harness.judge import CaseFailed, Judge
from harness.metrics import EntryErrors, RowErrors
from harness.policy import Limit, read_policy
from harness.reference_rows import ReferenceRows, WholeRows
from harness.run import PromptCase
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target
from harness.vocabulary import judge_entries, weigh

WIDTH, TEXTS, LENGTHS = 4096, 4, Lengths(40, 90, 0)
LIMIT = Limit(12.0, "a decision")


@functools.cache
def _references(*, compact: bool) -> list[ReferenceRows]:
    generator = np.random.default_rng(1)
    logits = [generator.normal(scale=2.5, size=(LENGTHS.total, WIDTH)).astype(np.float32) for _ in range(TEXTS)]
    if not compact:
        return [WholeRows(rows) for rows in logits]
    plan = plan_for(WIDTH, compact=True)
    assert plan is not None
    nothing = np.full(LENGTHS.total, -1)
    places = places_of([LENGTHS] * TEXTS)
    return [
        CompactRows(compacted(rows, nothing, own, plan), nothing, own, plan)
        for rows, (own, _) in zip(logits, places, strict=True)
    ]


def _device(size: float, own: float, seed: int = 2) -> list[NDArray[np.float32]]:
    """What a device gives: noise of a size in logits, a share `own` of its variance being the entries' own."""
    generator = np.random.default_rng(seed)
    bias = np.sqrt(own) * generator.normal(size=WIDTH)
    found = []
    for rows in _references(compact=False):
        assert isinstance(rows, WholeRows)
        noise = np.sqrt(1 - own) * generator.normal(size=rows.shape) + bias
        found.append((rows.logits + size * noise).astype(np.float32))
    return found


def _errors(device: list[NDArray[np.float32]], *, compact: bool) -> list[RowErrors]:
    return [rows.compare(given) for rows, given in zip(_references(compact=compact), device, strict=True)]


@pytest.mark.parametrize("compact", [False, True], ids=["whole", "compact"])
@pytest.mark.parametrize(("size", "own"), [(0.0, 0.0), (0.005, 0.0), (0.06, 0.3), (0.5, 0.3), (0.5, 0.9)])
def test_honest_noise_is_no_fault_of_an_entry(size: float, own: float, compact: bool) -> None:
    verdict = judge_entries(_errors(_device(size, own), compact=compact), LIMIT, "total")
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["total_entries"] == WIDTH


@pytest.mark.parametrize("compact", [False, True], ids=["whole", "compact"])
@pytest.mark.parametrize("size", [0.0, 0.005, 0.06])
@pytest.mark.parametrize("shift", [1.0, -1.0])
def test_an_entry_one_logit_off_is_seen_and_named(size: float, shift: float, compact: bool) -> None:
    device = _device(size, 0.3)
    for rows in device:
        rows[:, 777] += np.float32(shift)
    verdict = judge_entries(_errors(device, compact=compact), LIMIT, "total")
    assert verdict.outcome is Outcome.FAIL
    assert verdict.numbers["total_entry"] == 777
    assert verdict.numbers["total_entry_logits"] == pytest.approx(shift, abs=0.15)
    assert "entry 777 of the vocabulary is off by" in verdict.message
    assert "so are" not in verdict.message


@pytest.mark.parametrize("compact", [False, True], ids=["whole", "compact"])
def test_a_tile_of_entries_that_is_wrong_is_seen_as_a_whole(compact: bool) -> None:
    device = _device(0.005, 0.3)
    for rows in device:
        rows[:, -32:] += np.float32(1)
    verdict = judge_entries(_errors(device, compact=compact), LIMIT, "total")
    assert verdict.outcome is Outcome.FAIL
    assert verdict.numbers["total_entry"] >= WIDTH - 32
    assert "and 27 more" in verdict.message


@pytest.mark.parametrize("compact", [False, True], ids=["whole", "compact"])
@pytest.mark.parametrize("size", [0.005, 0.5])
def test_one_wild_position_is_no_fault_of_an_entry(size: float, compact: bool) -> None:
    device = _device(size, 0.0)
    device[2][57, ::3] += np.float32(30 * size) * np.random.default_rng(1).normal(size=1366).astype(np.float32)
    device[1][60, :] += np.float32(size * 400) * (np.arange(WIDTH) % 512 == 7)
    verdict = judge_entries(_errors(device, compact=compact), LIMIT, "total")
    assert verdict.outcome is Outcome.PASS, verdict.message


def test_a_constant_added_to_all_rows_is_no_fault_of_any_entry() -> None:
    device = [rows + np.float32(3) for rows in _device(0.005, 0.0)]
    assert judge_entries(_errors(device, compact=False), LIMIT, "total").outcome is Outcome.PASS


def test_entries_that_were_hardly_looked_at_are_not_judged_and_the_numbers_say_so() -> None:
    errors = [one.compare(given) for one, given in zip(_references(compact=True)[:1], _device(0.1, 0.0), strict=False)]
    few = [RowErrors(e.kl, e.centred_rms, e.centred_relative, e.top1_agrees, entries=_first(e, 300)) for e in errors]
    verdict = judge_entries(few, LIMIT, "total")
    assert (verdict.outcome, verdict.numbers) == (Outcome.PASS, {"total_entries": 0.0})
    assert judge_entries([], LIMIT, "total").numbers == {"total_entries": 0.0}


def _first(errors: RowErrors, count: int) -> EntryErrors:
    found = errors.entries
    assert found is not None
    assert found.entries is not None
    return EntryErrors(found.vocabulary, found.sums[:count], found.above[:count], 1, found.entries[:count])


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_looks_one_by_one_are_those_in_sums(seed: int, looks: int) -> None:
    generator = np.random.default_rng(seed)
    found: Any = generator.normal(size=(looks, 200)).astype(np.float32)
    summed = weigh([EntryErrors(200, found.sum(axis=0), (found > 0).sum(axis=0, dtype=np.int32), looks)], 1.0)
    order = generator.permutation(looks * 200)
    mixed, entries = found.ravel()[order], (np.arange(looks * 200) % 200)[order]
    single = weigh([EntryErrors(200, mixed, (mixed > 0).astype(np.int32), 1, entries)], 1.0)
    np.testing.assert_allclose(single.logits, summed.logits, atol=1e-6)
    np.testing.assert_array_equal(single.looks, summed.looks)
    np.testing.assert_allclose(single.spreads, summed.spreads, rtol=1e-3, atol=1e-4)
    assert np.isnan(summed.spreads).all() == (looks < 3)


def test_the_plan_of_these_tests_samples() -> None:
    plan = plan_for(WIDTH, compact=True)
    assert isinstance(plan, Plan)
    assert plan.top + plan.even + plan.drawn < WIDTH / 16


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_a_suite_fails_by_an_entry_that_is_off_and_by_nothing_else(shift: float) -> None:
    golden = verify_files(TREE / "golden" / "phi-3-tiny" / "core")
    prompts = [PromptCase("core", case, golden) for case in golden.manifest.cases[:8]]
    generator = np.random.default_rng(3)

    def errors(prompt: PromptCase) -> Rows | Verdict:
        device = golden.logits(prompt.id) + generator.normal(scale=0.003, size=prompt.rows().shape)
        device[:, 1777] += shift  # of no prompt a likely token
        return compare_logits(prompt.rows(), device, len(prompt.case.tokens), whole_prompt=True)

    session: Any = SimpleNamespace(
        errors=errors,
        compute_class=Precision.FP16,
        kind=DeviceKind.CPU,
        target=Target.parse("pytorch:cpu:fp16"),
        evidence=lambda: Evidence(EvidenceLevel.BY_CONSTRUCTION, (DeviceKind.CPU,), ("cpu",), "by construction"),
        load_options={},
        info=None,
        inference=None,
        undecomposed="",
    )
    checkpoint: Any = None
    judge = Judge(session, read_policy(TREE / "conformance" / "policy.toml"), checkpoint)
    if not shift:
        judge.suite_logits(prompts)
        assert judge.verdicts[-1].outcome is Outcome.PASS
        return
    with pytest.raises(CaseFailed, match="entry 1777 of the vocabulary is off by") as caught:
        judge.suite_logits(prompts)
    assert len(caught.value.verdict.message.splitlines()) == 3  # the target, the entry, how it was judged


@pytest.mark.parametrize("count", [0, 2])
def test_errors_without_entries_are_no_pass(count: int) -> None:
    errors = [msgspec.structs.replace(one, entries=None) for one in _errors(_device(0.1, 0.0), compact=False)]
    verdict = judge_entries(errors[:count], LIMIT, "total")
    assert verdict.outcome is Outcome.FAIL
    assert "no entry of the vocabulary was compared" in verdict.message
