"""Later tokens never change earlier logits."""

from harness.causality import later_tokens
from harness.judge import Judge
from harness.sessions import TargetSession


def test_causality(session: TargetSession, judge: Judge) -> None:
    """Two texts that differ in their last tokens give the same rows before these."""
    judge.conclude(later_tokens(session))
