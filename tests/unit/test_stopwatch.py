from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from harness.stopwatch import Times, processor_seconds, time_session

MS = 1_000_000
PROMPT = np.arange(10, dtype=np.int64)


class Paced:
    """A session of known speed, and the clock that it moves on: ms for a prompt's token and for one of an answer.

    `cold` gives how many times longer a pass takes, by its number from 0.
    """

    def __init__(self, of_prompt: float, of_answer: float, cold: Callable[[int], float] = lambda _: 1.0) -> None:
        self.now = 0
        self.passes = -1
        self.fed: list[int] = []
        self.collecting: set[bool] = set()
        self._speeds, self._cold = (of_prompt, of_answer), cold
        self.share_of_others = 0.0

    def clock(self) -> int:
        return self.now

    def usage(self) -> tuple[float, float, float]:
        """Of four processors one, and what others use."""
        seconds = self.now / 1e9
        return seconds, (1 + 4 * self.share_of_others) * seconds, 4 * seconds

    def reset(self) -> None:
        self.passes += 1
        self.fed = []

    def append(self, tokens: Any) -> Any:
        assert tokens.dtype == np.int64
        self.collecting.add(gc.isenabled())
        speed = self._speeds[1] if self.fed else self._speeds[0]
        self.now += int(speed * self._cold(self.passes) * tokens.size * MS)
        self.fed += [int(token) for token in tokens]
        return np.eye(64, dtype=np.float32)[(tokens + 1) % 64]  # the token after each is the likeliest


def timed(session: Any, seconds: float = 1.0, new_tokens: int = 5) -> Times:
    return time_session(session, PROMPT, new_tokens, seconds, session.clock, session.usage)


def test_both_latencies_are_those_of_the_session() -> None:
    session = Paced(of_prompt=2.0, of_answer=3.0)
    found = timed(session)
    assert set(found.first_token_ms) == {20.0}
    assert set(found.token_ms) == {3.0}
    assert len(found.first_token_ms) == len(found.token_ms) == 10


def test_the_likeliest_token_is_fed_and_the_state_is_forgotten_before_and_after() -> None:
    session = Paced(2.0, 3.0)
    seen: list[list[int]] = []
    forget = session.reset

    def reset() -> None:
        seen.append(session.fed)
        forget()

    session.reset = reset  # type: ignore[method-assign]
    timed(session)
    assert seen[0] == []
    assert all(fed == [*range(10), 10, 11, 12, 13] for fed in seen[1:])
    assert session.fed == []


def test_passes_that_get_faster_are_not_counted() -> None:
    found = timed(Paced(2.0, 3.0, cold=lambda number: 50.0 if number == 0 else 2.0 if number == 1 else 1.0))
    assert found.warm_ups == 4
    assert set(found.first_token_ms) == {20.0}


def test_a_session_that_never_warms_up_is_timed_all_the_same() -> None:
    found = timed(Paced(2.0, 3.0, cold=lambda number: 0.9**number), seconds=100.0)
    assert found.warm_ups == 5
    assert len(found.token_ms) == 10


@pytest.mark.parametrize(
    ("pass_seconds", "warm_ups", "repeats"),
    [(0.01, 2, 10), (0.12, 2, 9), (0.3, 2, 5), (0.7, 2, 5), (0.9, 2, 5), (1.1, 2, 4), (2.0, 2, 3), (60.0, 1, 3)],
)
def test_slow_sessions_are_repeated_less_and_never_too_little(pass_seconds: float, warm_ups: int, repeats: int) -> None:
    session = Paced(of_prompt=pass_seconds * 1000 / 20, of_answer=pass_seconds * 1000 / 8)
    found = timed(session, seconds=1.0)
    assert (found.warm_ups, len(found.token_ms)) == (warm_ups, repeats)


def test_what_others_use_of_the_machine_is_measured() -> None:
    session = Paced(2.0, 3.0)
    assert timed(session).others == 0.0
    session.share_of_others = 0.25
    assert timed(session).others == 0.25


def test_the_processors_are_counted_by_the_system() -> None:
    own, used, every = processor_seconds()
    assert 0 < own <= used <= every


def test_garbage_is_not_collected_meanwhile() -> None:
    session = Paced(2.0, 3.0)
    assert gc.isenabled()
    timed(session)
    assert session.collecting == {False}
    assert gc.isenabled()


def test_a_session_that_raises_leaves_nothing_behind() -> None:
    session = Paced(2.0, 3.0)

    def full(tokens: Any) -> Any:
        raise RuntimeError(f"no room for {tokens.size}")

    session.append = full  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no room"):
        timed(session)
    assert gc.isenabled()
    assert session.passes == 1
