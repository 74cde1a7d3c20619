"""What is asked of a reference for a text, and how much of it goes into one pass over the weights."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from harness.arithmetic import Arithmetic

# Rows of all texts of one pass, as far as one can choose: computing with a layer takes longer than reading the next one
# then, so that more would gain nothing, and what lies between layers stays small.
MOST_ROWS = 2048
# A yardstick is had from the reference and its honest variants.
VARIANTS = 4


class Wanted(msgspec.Struct, frozen=True):
    """A text's logits in an arithmetic, or the yardsticks of that.

    `prefill`: of the tokens, how many are fed at once.
    """

    tokens: tuple[int, ...]
    prefill: int
    arithmetic: Arithmetic
    yardsticks: bool = False


def rows(wanted: Iterable[Wanted]) -> int:
    """Rows that a pass computes for all of these: the reference's own once for each text and arithmetic."""
    some = list(wanted)
    plain = {(one.tokens, one.prefill, one.arithmetic.systematic) for one in some}
    varied = sum(len(one.tokens) * VARIANTS for one in some if one.yardsticks)
    return sum(len(tokens) for tokens, _, _ in plain) + varied


def fitting(first: Wanted, others: Sequence[Wanted]) -> list[Wanted]:
    """The first, and of the others, in their order, as many as one pass takes."""
    found = [first]
    for one in others:
        if one not in found and rows([*found, one]) <= MOST_ROWS:
            found.append(one)
    return found
