"""The total error taken apart in a run, and what a run says where it cannot be."""

from __future__ import annotations

from typing import Any

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
