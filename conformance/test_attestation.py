"""Did the device that was asked for compute?"""

from harness.judge import Judge


def test_attestation(judge: Judge) -> None:
    """What is known of the session shows that it ran on a device of the kind its target names."""
    judge.attestation()
