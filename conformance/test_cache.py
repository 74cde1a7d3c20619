"""The cache of keys and values: the same logits however a text is fed, and whatever was fed before it."""

import pytest

from harness import caching
from harness.judge import Judge
from harness.sessions import TargetSession
from harness.walk import walk


def test_cache_token_by_token(session: TargetSession, judge: Judge) -> None:
    """Decoding gives what one prefill gives."""
    judge.conclude(caching.token_by_token(session))


def test_cache_chunks(session: TargetSession, judge: Judge) -> None:
    """Chunked prefill of any split gives what one prefill gives."""
    judge.conclude(caching.in_chunks(session))


def test_cache_reset(session: TargetSession, judge: Judge) -> None:
    """Of what was fed before a reset nothing is left."""
    judge.conclude(caching.cleared(session))


def test_cache_rewind(session: TargetSession, judge: Judge) -> None:
    """After going back the cache holds what it held."""
    judge.conclude(caching.rewound(session))


def test_cache_branch(session: TargetSession, judge: Judge) -> None:
    """A kept state can be returned to again and again."""
    judge.conclude(caching.branched(session))


def test_cache_interleaved(session: TargetSession, judge: Judge) -> None:
    """Texts that are fed in turns do not mix."""
    judge.conclude(caching.interleaved(session))


@pytest.mark.parametrize("how", ["decode", "chunk"])
def test_cache_window(session: TargetSession, judge: Judge, how: str) -> None:
    """The sliding window moves over a text as it is decoded, and over one that is fed in chunks."""
    judge.conclude(caching.across_window(session, at_once=how == "chunk"))


@pytest.mark.slow
def test_cache_capacity(session: TargetSession, judge: Judge) -> None:
    """The last tokens that there is room for are computed like any others."""
    judge.conclude(caching.at_capacity(session))


@pytest.mark.slow
def test_cache_walk(session: TargetSession, judge: Judge) -> None:
    """Append, step, rewind, reset and branch at random: every row is that of the text fed so far."""
    judge.conclude(walk(session))
