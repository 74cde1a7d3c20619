"""How long a session takes for a prompt and for each further token, timed beside it in its worker.

What is timed is `Session.append`, which every adapter has, and the choice of the likeliest token: greedy decoding, a
batch of one. Every pass does the same work, since no end token ends it; the first ones warm up and are not counted.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from harness.backend import Session

Clock = Callable[[], int]
"""Nanoseconds since some moment."""

Usage = Callable[[], tuple[float, float, float]]
"""Processor seconds so far: of this process, of all processes of the machine, and of all its processors together."""

# Passes that count: as many as the time allows within these bounds. Slow sessions are let off with the least of them
# once they have taken so many times the time that they were given.
_LEAST, _USUAL, _MOST = 3, 5, 10
_PATIENCE = 4.0
# A pass that saves less than this share of the one before says that the session is warm.
_WARM = 0.95
_MOST_WARM_UPS = 5


class Times(msgspec.Struct, frozen=True):
    """A figure for each pass that counted, in ms, and how many passes warmed up before.

    `first_token_ms`: from giving the prompt, the state forgotten, to the first token. `token_ms`: the mean for each of
    the tokens after it. `others`: the share of the machine's processors that other processes used during those passes.
    """

    first_token_ms: tuple[float, ...]
    token_ms: tuple[float, ...]
    warm_ups: int
    others: float


def processor_seconds() -> tuple[float, float, float]:
    """See `Usage`. Time that a hypervisor gave to other machines counts as used."""
    own, every = psutil.Process().cpu_times(), psutil.cpu_times()._asdict()
    total = sum(seconds for kind, seconds in every.items() if not kind.startswith("guest"))  # which is in user's
    idle = every["idle"] + every.get("iowait", 0.0)
    return own.user + own.system, total - idle, total


def time_session(
    session: Session,
    prompt: NDArray[np.int64],
    new_tokens: int,
    seconds: float,
    clock: Clock = time.perf_counter_ns,
    usage: Usage = processor_seconds,
) -> Times:
    """Time a session on a prompt `[n]` and `new_tokens` more, of which there must be two, for about `seconds`.

    A slow session takes longer: one pass to warm up, and three that count. Its state is forgotten in the end.
    """
    assert new_tokens > 1
    passes: list[tuple[int, int]] = []
    given = max(1, int(seconds * 1e9))
    try:
        with _no_collection():
            warm_ups = _warm_up(session, prompt, new_tokens, given, clock)
            before, began = usage(), clock()
            while not _enough(len(passes), (clock() - began) / given):
                passes.append(_pass(session, prompt, new_tokens, clock))
            own, used, every = (now - then for now, then in zip(usage(), before, strict=True))
    finally:
        session.reset()
    first, rest = zip(*passes, strict=True)
    return Times(
        tuple(round(time / 1e6, 4) for time in first),
        tuple(round(time / 1e6 / (new_tokens - 1), 4) for time in rest),
        warm_ups,
        round(max(0.0, used - own) / every, 3) if every > 0 else 0.0,
    )


def _warm_up(session: Session, prompt: NDArray[np.int64], new_tokens: int, given: int, clock: Clock) -> int:
    """Passes until one is hardly faster than the one before, for `given` nanoseconds; returns how many.

    The first may compile and allocate: it has time of its own.
    """
    before = sum(_pass(session, prompt, new_tokens, clock))
    if before > _PATIENCE * given:
        return 1
    deadline = clock() + given
    for count in range(2, _MOST_WARM_UPS + 1):
        took = sum(_pass(session, prompt, new_tokens, clock))
        if took > _WARM * before or clock() > deadline:
            return count
        before = took
    return _MOST_WARM_UPS


def _enough(passes: int, spent: float) -> bool:
    """Whether to stop, `spent` being the share of the given time that has gone."""
    if passes < _USUAL:
        return passes >= _LEAST and spent > _PATIENCE
    return passes >= _MOST or spent > 1.0


def _pass(session: Session, prompt: NDArray[np.int64], new_tokens: int, clock: Clock) -> tuple[int, int]:
    """Nanoseconds to the first token, and from it to the last."""
    began = clock()
    session.reset()
    token = session.append(prompt)[-1].argmax()
    first = clock()
    for _ in range(new_tokens - 1):
        token = session.append(np.array([token], dtype=np.int64))[-1].argmax()
    return first - began, clock() - first


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Python's garbage is collected before and not meanwhile: with torch loaded it takes a tenth of a second."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
