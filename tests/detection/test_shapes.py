"""Faults that depend on a prompt's shape or on its neighbours: each is found by the test that is there for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from harness import batches, shapes
from harness.compare import Outcome, Verdict
from harness.sessions import TargetSession

CHECKS: dict[str, Callable[[TargetSession], Verdict]] = {
    "one-token": shapes.one_token,
    "border-16": partial(shapes.at_border, border=16),
    "border-64": partial(shapes.at_border, border=64),
    "lengths": partial(shapes.in_band, first=2, last=64),
    "window": shapes.past_window,
    **{name: partial(batches.like_alone, name=name) for name in batches.BATCHES},
    "neighbours": batches.neighbours,
}
FAULTS = (
    ("one-token", "one-token"),
    ("tile-remainder", "border-16"),
    ("tile-remainder", "border-64"),
    ("tile-remainder", "lengths"),
    ("full-tile", "border-16"),
    ("tile-border-row", "lengths"),
    ("window-never-moves", "window"),
    ("last-token-only", "border-16"),
    ("nan", "border-16"),
    ("padding-leaks", "size-3"),
    ("padding-leaks", "size-8"),
    ("batch-steps-shifted", "size-5"),
    ("rows-swapped", "size-2"),
    ("neighbour-leaks", "neighbours"),
    ("first-row-blind", "neighbours"),
)


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_session_passes(planted: Any, check: str) -> None:
    verdict = CHECKS[check](planted(""))
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert verdict.numbers["positions"] > 0


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[f"{fault}-{check}" for fault, check in FAULTS])
def test_a_fault_is_found(planted: Any, fault: str, check: str) -> None:
    verdict = CHECKS[check](planted(fault))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message


def test_the_lengths_that_are_wrong_are_named_with_what_they_have_in_common(planted: Any) -> None:
    verdict = CHECKS["lengths"](planted("full-tile"))
    assert verdict.message.startswith("wrong of 15 lengths: 8, 16: all multiples of 8\n"), verdict.message
