"""Large activations: no NaN, no Inf and no clamped value on the prompts that drive activations highest."""

import pytest

from harness import numbers
from harness.judge import Judge
from harness.sessions import TargetSession


def test_numbers_logits(session: TargetSession, judge: Judge) -> None:
    """On the prompts that drive activations highest the logits are finite, and what they ought to be."""
    judge.conclude(numbers.logits(session))


@pytest.mark.slow
def test_numbers_inner(session: TargetSession, judge: Judge) -> None:
    """Nowhere in the model is a value NaN, Inf or clamped on those prompts."""
    judge.conclude(numbers.inner(session))


@pytest.mark.slow
def test_numbers_full_context(session: TargetSession, judge: Judge) -> None:
    """With the context full of the hardest tokens the logits are what they ought to be."""
    judge.conclude(numbers.full_context(session))
