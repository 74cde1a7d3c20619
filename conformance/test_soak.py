"""Soak and concurrency: loaded, cancelled, killed and computed beside another, a session answers as it did at first.

The short cases are a few rounds; the long ones go on for `--minutes` each, and are run with `-m soak`.
"""

import pytest

from harness import soak
from harness.judge import Judge
from harness.sessions import TargetSession

short_and_long = pytest.mark.parametrize("how", ["short", pytest.param("long", marks=pytest.mark.soak)])
long_only = pytest.mark.parametrize("how", [pytest.param("long", marks=pytest.mark.soak)])
pytestmark = pytest.mark.slow


@short_and_long
def test_soak_loads(session: TargetSession, judge: Judge, how: str, soak_seconds: float) -> None:
    """Loaded again and again in one process, it answers as before and holds no more than before."""
    judge.conclude(soak.loads(session, soak_seconds, soak.ENOUGH) if how == "long" else soak.loads(session))


@short_and_long
def test_soak_cancels(session: TargetSession, judge: Judge, how: str, soak_seconds: float) -> None:
    """Stopped in the middle of a generation, by every way that the runtime has, it answers as before."""
    judge.conclude(soak.cancels(session, soak_seconds, soak.ENOUGH) if how == "long" else soak.cancels(session))


@short_and_long
def test_soak_two_sessions(session: TargetSession, judge: Judge, how: str, soak_seconds: float) -> None:
    """Two sessions of one process, in turns and at once, answer as each does alone."""
    judge.conclude(
        soak.two_sessions(session, soak_seconds, soak.ENOUGH) if how == "long" else soak.two_sessions(session)
    )


@long_only
def test_soak_calls(session: TargetSession, judge: Judge, how: str, soak_seconds: float) -> None:  # noqa: ARG001
    """Asked the same again and again, it answers the same and holds no more than before."""
    judge.conclude(soak.calls(session, soak_seconds, soak.ENOUGH))


@long_only
def test_soak_processes(session: TargetSession, judge: Judge, how: str, soak_seconds: float) -> None:  # noqa: ARG001
    """In new processes, every other one killed in the middle of a call, it answers as before."""
    judge.conclude(soak.processes(session, soak_seconds))


@long_only
def test_soak_two_processes(session: TargetSession, judge: Judge, how: str, soak_seconds: float) -> None:  # noqa: ARG001
    """Two processes at once answer as each does alone."""
    judge.conclude(soak.two_processes(session, soak_seconds, soak.ENOUGH))
