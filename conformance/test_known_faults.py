"""Is a part of the error the effect of a fault that kernels are known to have?"""

import pytest

from harness.judge import Judge
from harness.lineup import suspicions
from harness.sessions import TargetSession


@pytest.mark.slow
def test_known_faults(session: TargetSession, judge: Judge) -> None:
    """Scale of attention, rotary table, epsilon, window, activation and cache are as the checkpoint has them."""
    judge.suspects(suspicions(session))
