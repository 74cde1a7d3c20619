"""How fast is the session, by length of prompt? Fails only where the policy has limits on it."""

import pytest

from harness.judge import Judge
from harness.sessions import TargetSession
from harness.speed import time_target


@pytest.mark.slow
@pytest.mark.timed
def test_speed(session: TargetSession, judge: Judge) -> None:
    """Time to first token and per token are recorded, and lie within the policy's limits where it has any."""
    judge.speed(time_target(session))
