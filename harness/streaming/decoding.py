"""Greedy decoding of one text, a pass over the weights at a time: what to feed, and what the pass has shown."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from harness.streaming.drafting import MOST, proposed
from harness.streaming.feed import Step

_FIRST_REACH = 4


class Asked(msgspec.Struct, frozen=True):
    """A prompt's tokens and how many new ones are wanted at most; or a continuation that is given, to be scored."""

    id: str
    tokens: tuple[int, ...]
    new_tokens: int
    given: tuple[int, ...] | None = None


class Answer:
    """The answer to one prompt as it grows.

    `draft`: tokens that another model, or another build of this one, has answered with. `drafting`: try drafts and
    repetitions. Whatever is tried, only tokens that a pass has found to be the likeliest become part of the answer.
    """

    def __init__(
        self,
        asked: Asked,
        ends: Sequence[int],
        switch: int | None = None,
        *,
        draft: Sequence[int] = (),
        drafting: bool = True,
    ) -> None:
        """`switch`: LongRoPE's, see `harness.longrope`: past it the whole text is computed anew."""
        self.asked = asked
        self.tokens: list[int] = []
        self._ends = frozenset(ends)
        self._switch = switch
        self._draft = tuple(draft)
        self._reach = _FIRST_REACH if drafting else 0
        self._cached = 0
        self._length = 0
        self._tried: list[int] = []

    @property
    def finished(self) -> bool:
        """Whether it has all its tokens, or an end token."""
        return len(self.tokens) >= self.asked.new_tokens or (bool(self.tokens) and self.tokens[-1] in self._ends)

    def begin_with(self, tokens: Sequence[int]) -> None:
        """Go on from the first tokens of an answer; nothing is in the cache."""
        self.tokens, self._cached, self._length = list(tokens), 0, 0

    def step(self, slot: int) -> Step:
        """What the next pass is to be fed."""
        text = [*self.asked.tokens, *self.tokens]
        most = min(self._reach, self.asked.new_tokens - len(self.tokens) - 1)
        if self._switch is not None and len(text) <= self._switch:
            most = min(most, self._switch - len(text))  # all tokens of a step are rotated by the same factors
        elif self._switch is not None and self._length <= self._switch:
            self._cached = 0
        self._tried = proposed(self.asked.tokens, self.tokens, self._draft, most) if most > 0 else []
        self._length = len(text) + len(self._tried)
        fed = (*text[self._cached :], *self._tried)
        return Step(slot, fed, self._cached, self._length, 1 + len(self._tried))

    def learn(self, best: Sequence[int]) -> None:
        """Take over what a step has shown: the likeliest token after each of those wanted."""
        right = 0
        while right < len(self._tried) and best[right] == self._tried[right]:
            right += 1
        self._cached = self._length - len(self._tried) + right
        for token in best[: right + 1]:
            self.tokens.append(token)
            if token in self._ends:
                break
        if self._tried:
            self._reach = min(MOST, 2 * self._reach) if right == len(self._tried) else max(1, self._reach // 2, right)
