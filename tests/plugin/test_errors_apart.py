"""The total error taken apart in a run, and what a run says where it cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.record import SessionRecord

ONE = ("-k", "first and test_logits or test_weights")


def only(session: list[SessionRecord]) -> SessionRecord:
    (found,) = session
    return found


def test_a_target_with_readable_weights_is_judged_by_its_yardstick(conform: Any) -> None:
    result = conform(*ONE, targets="pytorch:cpu:bf16")
    assert result.status == 0, result.text
    session = only(result.record.sessions)
    assert session.arithmetic == "bf16 operators, weights in bf16, bf16 cache"
    assert session.distances.keys() == {session.arithmetic}
    (numbers,) = [case.numbers for case in result.cases if case.test == "test_logits"]
    assert 0.05 < numbers["ratio_decode_mean"] < 3
    assert numbers["quantisation_kl_mean"] < 1e-9 < numbers["kl_mean"]
    assert "impl." in result.text


def test_a_backend_that_says_nothing_of_its_arithmetic_is_judged_by_the_total(conform: Any) -> None:
    result = conform(*ONE, fault="scaled")
    session = only(result.record.sessions)
    assert session.undecomposed == "nothing is known of how the runtime computes"
    assert "Only the total error of planted:cpu:fp32 is judged: nothing is known" in result.text
    (failed,) = [case for case in result.cases if case.outcome == "FAIL"]
    assert "this is the total error, which cannot be taken apart: nothing is known" in result.text
    assert "implementation error" not in failed.message


def test_where_memory_is_short_references_are_streamed_and_the_verdicts_are_the_same(
    conform: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("-k", "first and (test_logits or test_greedy_regret)")
    found = []
    for number, memory in enumerate(("4GB", "900MB")):
        cache = tmp_path / f"cache{number}"  # what one run keeps is not what the other finds
        monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(cache))
        found.append(conform(*asked, "--memory", memory, targets="pytorch:cpu:bf16"))
        assert found[-1].status == 0, found[-1].text
    whole, streamed = ({case.id: case.numbers for case in result.cases} for result in found)
    assert len(whole) == 2
    assert whole == streamed
    # Logits, plain and in the arithmetic in effect, and yardsticks, of the prompts that were not asked for as well.
    assert len(list((tmp_path / "cache1").rglob("references/*/*.safetensors"))) >= 9


def test_the_golden_reference_is_streamed_too(conform: Any) -> None:
    results = [
        conform("-k", "first and test_greedy_regret", "--memory", memory, fault="wrong-word")
        for memory in ("4GB", "900MB")
    ]
    whole, streamed = ([case.numbers for case in result.cases] for result in results)
    assert whole[0]["regret_worst"] == pytest.approx(streamed[0]["regret_worst"], rel=1e-4)


def test_where_a_layer_at_a_time_is_too_much_that_is_said(conform: Any) -> None:
    result = conform("-k", "first and test_greedy_regret", "--memory", "100MB", fault="wrong-word")
    (case,) = result.cases
    assert case.outcome == "ERROR"
    assert "a layer at a time; 0.1 GiB may be used" in case.message
    assert "raise --memory" in case.message
    assert "is no size of memory" in conform("--memory", "lots").text
