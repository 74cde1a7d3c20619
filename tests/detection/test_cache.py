"""Faults planted in a cache: each is found by the test that is there for it, and by a walk through all of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from harness import caching, limits
from harness.causality import later_tokens
from harness.compare import Outcome, Verdict
from harness.errors import Unsupported
from harness.sessions import TargetSession
from harness.walk import walk

CHECKS: dict[str, Callable[[TargetSession], Verdict]] = {
    "token-by-token": caching.token_by_token,
    "chunks": caching.in_chunks,
    "reset": caching.cleared,
    "rewind": caching.rewound,
    "branch": caching.branched,
    "interleaved": caching.interleaved,
    "window-decode": partial(caching.across_window, at_once=False),
    "window-chunk": partial(caching.across_window, at_once=True),
    "capacity": caching.at_capacity,
    "walk": walk,
    "causality": later_tokens,
    "end-tokens": limits.end_tokens,
    "answer": limits.answer_limit,
    "long-prompt": limits.too_long_prompt,
    "full-cache": limits.full_cache,
    "impossible-tokens": limits.impossible_tokens,
}
FAULTS = (
    ("chunk-forgets", "chunks"),
    ("chunk-forgets", "walk"),
    ("chunk-over-border", "chunks"),
    ("reset-leaks", "reset"),
    ("rewinds-one-short", "rewind"),
    ("rewinds-one-short", "walk"),
    ("branch-shared", "branch"),
    ("branch-shared", "walk"),
    ("texts-mix", "interleaved"),
    ("window-never-moves", "window-decode"),
    ("window-never-moves", "window-chunk"),
    ("cache-wraps", "capacity"),
    ("one-position", "token-by-token"),
    ("sees-later", "causality"),
    ("ignores-end", "end-tokens"),
    ("early-stop", "answer"),
    ("overrun", "answer"),
    ("takes-any-token", "impossible-tokens"),
    ("dies-inside-after-refusal", "impossible-tokens"),
    ("dies-inside-after-refusal", "long-prompt"),
    ("dies-inside-after-refusal", "full-cache"),
    ("refuses-without-a-word", "full-cache"),
)


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_session_passes(planted: Any, check: str) -> None:
    verdict = CHECKS[check](planted(""))
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert max(verdict.numbers.get("positions", 0.0), verdict.numbers.get("checks", 0.0)) > 0


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[f"{fault}-{check}" for fault, check in FAULTS])
def test_a_fault_is_found(planted: Any, fault: str, check: str) -> None:
    verdict = CHECKS[check](planted(fault))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message


def test_a_walk_that_fails_is_shrunk_to_the_shortest(planted: Any) -> None:
    verdict = walk(planted("rewinds-one-short"))
    assert verdict.numbers["steps"] == 3  # something to go back in, going back, and something after it
    assert "shortest walk that fails, of 3 steps: append" in verdict.message
    assert "rewind to" in verdict.message


def test_texts_that_mix_are_left_out_of_walks_and_said_to_be(planted: Any) -> None:
    verdict = walk(planted("texts-mix"))
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert "left out: texts in turns, which mix: see test_cache_interleaved" in verdict.message


def test_ctrl_c_in_a_walk_ends_it_though_what_came_before_was_wrong(
    planted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, fed, pressed = planted("chunk-forgets"), 0, False
    ask = target.call

    def call(operation: str, **arguments: Any) -> Any:
        nonlocal fed, pressed
        fed = 0 if operation == "reset" else fed + (operation == "append")
        if fed > 2 and not pressed:  # the second chunk was computed wrongly by then
            pressed = True
            raise KeyboardInterrupt
        return ask(operation, **arguments)

    monkeypatch.setattr(target, "call", call)
    monkeypatch.setattr("harness.walk._lacking", lambda *_: dict.fromkeys(("rewind", "fork", "switch"), "a test"))
    with pytest.raises(KeyboardInterrupt):
        walk(target)


@pytest.mark.parametrize("check", ["window-decode", "window-chunk", "capacity", "long-prompt", "full-cache"])
def test_texts_whose_logits_fill_the_memory_are_not_asked_for(
    planted: Any, monkeypatch: pytest.MonkeyPatch, check: str
) -> None:
    target = planted("")
    monkeypatch.setattr("harness.stepping._MOST_LOGITS", 4 * target.run.settings.checkpoint.vocabulary * 12)
    with pytest.raises(Unsupported, match=r"the logits of \d+ tokens are"):
        CHECKS[check](target)


def test_rows_that_are_missing_are_no_rows_that_agree(planted: Any) -> None:
    verdict = caching.token_by_token(planted("last-token-only"))
    assert verdict.outcome is Outcome.FAIL
    assert "rows of logits" in verdict.message
