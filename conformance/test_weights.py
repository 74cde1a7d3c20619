"""Does the artifact store what its scheme makes of the checkpoint? Needs no device."""

from harness.judge import Judge
from harness.sessions import TargetSession


def test_weights(session: TargetSession, judge: Judge) -> None:
    """Codes are those of the checkpoint on the artifact's own grid; norms, rotary tables and window are as it says."""
    judge.weights(session.audit())
