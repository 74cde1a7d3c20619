"""Devices that do not repeat themselves: each way of it is found by the test that is there for it, and by no other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from direct import direct
from harness import determinism
from harness.compare import Outcome, Verdict
from harness.sessions import TargetSession
from support import Result, Tiny

SUITES = ("test_determinism",)


@pytest.mark.parametrize(
    ("fault", "check", "expected"),
    [
        ("", determinism.again, Outcome.PASS),
        ("", determinism.after_others, Outcome.PASS),
        ("varies", determinism.again, Outcome.FAIL),
        ("after-another", determinism.again, Outcome.PASS),
        ("after-another", determinism.after_others, Outcome.FAIL),
        ("last-token-only", determinism.again, Outcome.PASS),  # its shape is wrong every time: for others to find
        ("nan", determinism.again, Outcome.FAIL),
    ],
)
def test_a_session_that_does_not_repeat_itself(
    tiny: Tiny,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    check: Callable[[TargetSession], Verdict],
    expected: Outcome,
) -> None:
    monkeypatch.setenv("PLANTED_FAULT", fault)
    verdict = check(direct(tiny))
    assert verdict.outcome is expected, verdict.message


def outcomes(result: Result) -> dict[str, str]:
    assert result.record is not None, result.text
    return {case.test.removeprefix("test_determinism_"): case.outcome for case in result.cases}


def test_a_session_that_repeats_itself_passes(conform: Any) -> None:
    result = conform(suites=SUITES)
    found = outcomes(result)
    assert set(found.values()) == {"PASS"}, result.text
    assert set(found) == {"again", "after_others", "under_load", "threads", "new_session", "new_process"}
    assert result.record.sessions[0].info.load_options == {}  # the one with more threads is gone
    assert not conform.leftovers(5.0)


def test_a_session_that_varies_with_load_threads_or_age_fails_just_there(conform: Any) -> None:
    others = ("-k", "not new_process")
    result = conform(*others, suites=SUITES, fault="under-load,more-threads,new-session")
    found = outcomes(result)
    wrong = {name for name, outcome in found.items() if outcome == "FAIL"}
    assert wrong >= {"under_load", "threads", "new_session"}, result.text
    assert found["again"] == found["after_others"] == "PASS"
    assert "answer 1 under load: 48 of 48 rows differ" in result.text
    assert "the answer with threads=2: 48 of 48 rows differ" in result.text


def test_a_process_that_answers_unlike_the_one_before_fails_just_there(conform: Any) -> None:
    found = outcomes(conform(suites=SUITES, fault="new-process"))
    assert {name for name, outcome in found.items() if outcome != "PASS"} == {"new_process"}
