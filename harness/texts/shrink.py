"""Making an input that fails small, by leaving out parts of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S", str, list[int])

# One more call to a worker each; a text of 5,000 characters is down to one of them after some 30.
_MOST_ROUNDS = 120
# Candidates of one call.
_MOST_CANDIDATES = 128


def shrink(failing: S, fails: Callable[[Sequence[S]], Sequence[bool]]) -> S:
    """The smallest part of a failing input that is found to fail as well: none of its items can be left out.

    `fails` says of many candidates at once which of them fail. It is delta debugging (Zeller and Hildebrandt, 2002)
    with complements only: ever smaller pieces are left out, and the first candidate that still fails is gone on with.
    """
    size = max(1, len(failing) // 2)
    for _ in range(_MOST_ROUNDS):
        smaller = _first_failing(failing, size, fails)
        if smaller is not None:
            failing = smaller
            size = min(size, max(1, len(failing) // 2))
        elif size == 1:
            break
        else:
            size //= 2
    return failing


def _first_failing(failing: S, size: int, fails: Callable[[Sequence[S]], Sequence[bool]]) -> S | None:
    candidates = [failing[:start] + failing[start + size :] for start in range(0, len(failing), size)]
    for first in range(0, len(candidates), _MOST_CANDIDATES):
        some = candidates[first : first + _MOST_CANDIDATES]
        for candidate, bad in zip(some, fails(some), strict=True):
            if bad:
                return candidate
    return None
