"""Making inputs that fail small, by leaving out parts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

S = TypeVar("S", str, list[int])

# One more call to a worker each; a text of 5,000 characters is down to one of them after some 30.
_MOST_ROUNDS = 120
# Candidates of one call.
_MOST_CANDIDATES = 128


def causes(wrong: Sequence[S], fails: Callable[[Sequence[S]], Sequence[bool]], most: int) -> tuple[list[S], list[S]]:
    """The smallest failing parts of inputs that fail, at most so many; and what these do not explain.

    Once a part is found it is taken out of all inputs, and those that no longer fail are explained by it.
    """
    small: list[S] = []
    left = sorted(wrong, key=len)
    while left and len(small) < most:
        part = shrink(left[0], fails)
        small.append(part)
        without = [_without(given, part) for given in left]
        left = [given for given, bad in zip(without, fails(without), strict=True) if bad]
    return small, left


def _without(given: S, part: S) -> S:
    """An input with every occurrence of a part taken out, each after the one before it."""
    kept, start, size = given[:0], 0, len(part)
    while start < len(given):
        found = size > 0 and given[start : start + size] == part
        kept += given[:0] if found else given[start : start + 1]
        start += size if found else 1
    return kept


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
