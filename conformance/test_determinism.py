"""The same question, the same answer: to the last bit where the runtime promises it, to within rounding where not."""

import pytest

from harness import determinism
from harness.judge import Judge
from harness.sessions import TargetSession


def test_determinism_again(session: TargetSession, judge: Judge) -> None:
    """Asked again, a session answers the same."""
    judge.conclude(determinism.again(session))


@pytest.mark.slow
def test_determinism_after_others(session: TargetSession, judge: Judge) -> None:
    """Asked again after other prompts, a session answers the same."""
    judge.conclude(determinism.after_others(session))


@pytest.mark.slow
def test_determinism_under_load(session: TargetSession, judge: Judge) -> None:
    """Asked while the cores are busy with something else, a session answers the same."""
    judge.conclude(determinism.under_load(session))


@pytest.mark.slow
def test_determinism_threads(session: TargetSession, judge: Judge) -> None:
    """On another number of threads, a session answers the same but for rounding."""
    judge.conclude(determinism.other_threads(session))


@pytest.mark.slow
def test_determinism_new_session(session: TargetSession, judge: Judge) -> None:
    """Loaded once more in the same process, the artifact answers the same."""
    judge.conclude(determinism.new_session(session))


@pytest.mark.slow
def test_determinism_new_process(session: TargetSession, judge: Judge) -> None:
    """A new process answers the same as the one before, from its first answer on."""
    judge.conclude(determinism.new_process(session))
