"""Prompts of every length and in every company: the same logits whatever the shape they are computed in."""

import pytest

from harness import batches, shapes
from harness.judge import Judge
from harness.sessions import TargetSession

_SLOW = pytest.mark.slow


def test_one_token_prompts(session: TargetSession, judge: Judge) -> None:
    """A prompt of a single token is computed like any other."""
    judge.conclude(shapes.one_token(session))


@pytest.mark.parametrize("border", [16, 64], ids=lambda n: f"border-{n}")
def test_prompt_lengths_at(session: TargetSession, judge: Judge, border: int) -> None:
    """A prompt that just fills a tile, is one token short of it, or one past it."""
    judge.conclude(shapes.at_border(session, border))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "last"), [(2, 64), (65, 128), (129, 192), (193, 256), (257, 512)], ids=lambda n: str(n)
)
def test_prompt_lengths(session: TargetSession, judge: Judge, first: int, last: int) -> None:
    """Every length there is, up to the sliding window."""
    judge.conclude(shapes.in_band(session, first, last))


@pytest.mark.slow
def test_prompt_lengths_past_512(session: TargetSession, judge: Judge) -> None:
    """Beyond 512 tokens, the lengths around borders up to the sliding window."""
    judge.conclude(shapes.past(session, 512))


@pytest.mark.slow
def test_prompt_lengths_past_window(session: TargetSession, judge: Judge) -> None:
    """Prompts that the sliding window just covers, and some that it does not."""
    judge.conclude(shapes.past_window(session))


@pytest.mark.parametrize(
    "batch", [name if name == "size-3" else pytest.param(name, marks=_SLOW) for name in batches.BATCHES]
)
def test_batch(session: TargetSession, judge: Judge, batch: str) -> None:
    """Each row of a batch equals itself alone."""
    judge.conclude(batches.like_alone(session, batch))


@pytest.mark.slow
def test_batch_neighbours(session: TargetSession, judge: Judge) -> None:
    """A row does not depend on what its neighbours say."""
    judge.conclude(batches.neighbours(session))
