"""Where a session must stop or refuse, and that it lives on after."""

import pytest

from harness import limits
from harness.judge import Judge
from harness.sessions import TargetSession


def test_limits_end_tokens(session: TargetSession, judge: Judge) -> None:
    """An answer ends at the first end token, whichever it is."""
    judge.conclude(limits.end_tokens(session))


def test_limits_answer(session: TargetSession, judge: Judge) -> None:
    """An answer that is cut short is the beginning of the longer one."""
    judge.conclude(limits.answer_limit(session))


def test_limits_tokens(session: TargetSession, judge: Judge) -> None:
    """Token ids outside the vocabulary are refused."""
    judge.conclude(limits.impossible_tokens(session))


@pytest.mark.slow
def test_limits_prompt(session: TargetSession, judge: Judge) -> None:
    """A prompt that is too long is refused in words, and the session lives on."""
    judge.conclude(limits.too_long_prompt(session))


@pytest.mark.slow
def test_limits_cache(session: TargetSession, judge: Judge) -> None:
    """A full cache is refused in words, and the session lives on."""
    judge.conclude(limits.full_cache(session))
