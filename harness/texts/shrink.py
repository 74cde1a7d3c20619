"""Making inputs that fail small, by leaving out parts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

S = TypeVar("S", str, list[int])

# Characters or tokens that may be asked about in all: a second of a tokenizer's time, or a few.
_MOST_ITEMS = 200_000
# Candidates of one question.
_MOST_CANDIDATES = 128


class Questions(Generic[S]):
    """Which of some inputs fail, asked as long as there is time; thereafter none is said to.

    What is `known` to fail is taken out of inputs before they are asked about, so that only other causes are found.
    """

    def __init__(self, fails: Callable[[Sequence[S]], Sequence[bool]], items: int = _MOST_ITEMS) -> None:
        self._fails: Callable[[Sequence[S]], Sequence[bool]] = fails
        self._items = items
        self.known: list[S] = []

    def first_failing(self, candidates: Sequence[S]) -> S | None:
        """The first of some candidates that fails, or None."""
        for first in range(0, len(candidates), _MOST_CANDIDATES):
            some = candidates[first : first + _MOST_CANDIDATES]
            for candidate, bad in zip(some, self.failing(some), strict=True):
                if bad:
                    return candidate
        return None

    def failing(self, some: Sequence[S]) -> Sequence[bool]:
        """Whether each input fails without what is known."""
        for part in self.known:
            some = [_without(given, part) for given in some]
        self._items -= sum(map(len, some))
        return [False] * len(some) if self.exhausted else self._fails(some)

    @property
    def exhausted(self) -> bool:
        """Whether no more is asked."""
        return self._items < 0


def causes(wrong: Sequence[S], fails: Callable[[Sequence[S]], Sequence[bool]], most: int) -> tuple[list[S], list[S]]:
    """Small failing parts of inputs that fail, at most so many; and what these do not explain.

    An input is explained by the parts without which it no longer fails. Where nothing at all fails, that explains
    everything.
    """
    questions = Questions(fails)
    left = sorted(wrong, key=len)
    while left and len(questions.known) < most and not questions.exhausted:
        part = shrink(left[0], questions)
        questions.known.append(part)
        if not part:  # nothing at all fails, so that no more can be told apart
            return questions.known, []
        still = questions.failing(left)
        left = left[1:] if questions.exhausted else [given for given, bad in zip(left, still, strict=True) if bad]
    return questions.known, left


def _without(given: S, part: S) -> S:
    """An input with every occurrence of a part taken out, those too that only come about by that."""
    kept, start, size = given[:0], 0, len(part)
    while start < len(given):
        found = given[start : start + size] == part
        kept += given[:0] if found else given[start : start + 1]
        start += size if found else 1
    return kept if len(kept) == len(given) else _without(kept, part)


def shrink(failing: S, questions: Questions[S]) -> S:
    """A small part of a failing input that fails as well; in time enough, one none of whose items can be left out.

    It is delta debugging (Zeller and Hildebrandt, 2002) with complements only: ever smaller pieces are left out, and
    the first candidate that still fails is gone on with.
    """
    size = max(1, len(failing) // 2)
    while failing and not questions.exhausted:
        candidates = [failing[:start] + failing[start + size :] for start in range(0, len(failing), size)]
        smaller = questions.first_failing(candidates)
        if smaller is not None:
            failing = smaller
            size = min(size, max(1, len(failing) // 2))
        elif size == 1:
            break
        else:
            size //= 2
    return failing
