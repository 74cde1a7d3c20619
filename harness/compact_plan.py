"""What a compact golden keeps of a row of logits, and which entries of the vocabulary it looks at.

A plan divides the bytes of a position between the likeliest tokens and two samples of all the others:

- *even*: the entries that come next on a walk through the vocabulary, in an order drawn once. Every position looks at
  others, so that a suite looks at each entry as often as at any other. They follow from seed and place, and are not
  stored.
- *drawn*: entries drawn in proportion to their probability, which are.

A **place** says where on the walk a position stands. Positions that every session has logits for, from the last token
of a prompt on, go forward from the beginning, so that theirs is a walk without gaps where a session gives no others;
those before go backward from there. Rows of a fresh pass past LongRoPE's switch begin elsewhere.

Random numbers are hashes of a counter (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA
2014: the finaliser of SplitMix64), the same on every machine and in every version of NumPy.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

Places = NDArray[np.int64]
Indices = NDArray[np.int64]

# With the header of its file a row comes to less than 2048 bytes.
_MOST_BYTES = 2032
# Rows of a small vocabulary are kept whole, unless somebody asks.
_SMALL_VOCABULARY = 8192
# A compact row is at most so large a part of a whole one.
_SHARE = 16
# How the bytes are divided: between the likeliest tokens, the even sample and the drawn one. For KL the first and the
# last count, for the centred RMS error and for single entries the second.
_TOP, _EVEN = 0.375, 0.3
_SEED = 20261130
_FRESH = 1 << 33
_ORDER, _DRAWS = 1, 2


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How many of the likeliest tokens are kept of a row, how many of the even sample and how many drawn ones."""

    vocabulary: int
    top: int
    even: int
    drawn: int
    seed: int

    @property
    def row(self) -> np.dtype[np.void]:
        """A row as it is stored, packed.

        `tail`: of all entries that are not among the likeliest the log-sum-exp in nat, the mean and the standard
        deviation in logits. `following`: the logit of the token that follows in the text. `top`: the likeliest tokens,
        the likeliest first, of equal ones that of the lower number.
        """
        index = "<u2" if self.vocabulary <= 1 << 16 else "<u4"
        return np.dtype(
            [
                ("tail", "<f8", (3,)),
                ("following", "<f4"),
                ("top", index, (self.top,)),
                ("top_logits", "<f4", (self.top,)),
                ("even_logits", "<f4", (self.even,)),
                ("drawn", index, (self.drawn,)),
                ("drawn_logits", "<f4", (self.drawn,)),
            ]
        )

    def problem(self) -> str:
        """What is wrong with a plan that somebody else made; empty where nothing is."""
        counts = (self.top, self.even, self.drawn)
        if min(counts) < 2 or self.top >= self.vocabulary or self.even > self.vocabulary:
            return f"{self.top} tokens, {self.even} and {self.drawn} more are no sample of {self.vocabulary}"
        if max(counts) > 1 << 20 or not 0 <= self.seed < 1 << 63:
            return "its compact rows are of an impossible size or seed"
        return ""

    def even_entries(self, places: Places) -> Indices:
        """`[n, even]`: the entries that positions at these places look at."""
        steps = places[:, None] * self.even + np.arange(self.even)
        return np.asarray(_order(self.seed, self.vocabulary)[steps % self.vocabulary])

    def uniforms(self, place: int) -> NDArray[np.float64]:
        """`[drawn]`: uniform in [0, 1), by which a position draws its entries."""
        counters = np.arange(self.drawn, dtype=np.uint64) + np.uint64(place * self.drawn % (1 << 64))
        return (_hash(self.seed, _DRAWS, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def plan_for(vocabulary: int, *, compact: bool | None = None) -> Plan | None:
    """The plan for a vocabulary, None where rows are to be kept whole: by default where it is small.

    Raises ValueError where a vocabulary is too small for any sample and `compact` asks for one.
    """
    if not (vocabulary > _SMALL_VOCABULARY if compact is None else compact):
        return None
    size = min(_MOST_BYTES, 4 * vocabulary // _SHARE)
    token = 6 if vocabulary <= 1 << 16 else 8
    left = size - 28
    top, even = int(left * _TOP) // token, int(left * _EVEN) // 4
    plan = Plan(vocabulary, top, even, max(0, left - top * token - even * 4) // token, _SEED)
    if plan.problem():
        raise ValueError(f"a vocabulary of {vocabulary} is too small for compact rows")
    return plan


class Lengths(NamedTuple):
    """Tokens of a prompt, of prompt and continuation, and LongRoPE's switch where they pass it, else 0."""

    prompt: int
    total: int
    switch: int


def places_of(texts: Sequence[Lengths]) -> list[tuple[Places, Places]]:
    """For every text of a suite, in its order, the places of its rows and of those of a fresh pass past the switch."""
    found = []
    decoded, prompt, fresh = 0, 0, _FRESH
    for one in texts:
        before, after = one.prompt - 1, one.total - one.prompt + 1
        rows = np.concatenate([np.arange(prompt - before, prompt), np.arange(decoded, decoded + after)])
        anew = one.total - one.switch if one.switch else 0
        found.append((rows.astype(np.int64), np.arange(fresh, fresh + anew, dtype=np.int64)))
        decoded, prompt, fresh = decoded + after, prompt - before, fresh + anew
    return found


@functools.lru_cache(maxsize=4)
def _order(seed: int, vocabulary: int) -> Indices:
    drawn = _hash(seed, _ORDER, np.arange(vocabulary, dtype=np.uint64))
    return drawn.argsort(kind="stable").astype(np.int64)


def _hash(seed: int, stream: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits a counter."""
    start = np.asarray([seed * 8 + stream], dtype=np.uint64)
    return _mixed(_mixed(start) + counters * np.uint64(0x9E3779B97F4A7C15))


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
