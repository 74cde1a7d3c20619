"""Driving a session step by step: what some sessions can do beyond `append` and `reset`, and the operations for it.

A runtime offers more than feeding tokens: going back in the cache, keeping a state and returning to it, holding
several texts at once, computing several in one batch. Each is a protocol of its own; a session without it, or whose
runtime does it wrong by its documentation, is UNSUPPORTED, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from harness.backend import Session
from harness.errors import Unsupported
from harness.witness import Witness

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


@runtime_checkable
class Rewinds(Protocol):
    """A session that can forget its last tokens."""

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens of those fed, at least one.

        Raises Unsupported where the cache cannot go back so far.
        """
        ...


@runtime_checkable
class Branches(Protocol):
    """A session whose state can be kept and returned to, any number of times."""

    def fork(self) -> Any:
        """The state as it is now: a copy, which later tokens do not change."""
        ...

    def resume(self, state: Any) -> None:
        """Go on from a state that `fork` gave, which stays as it is."""
        ...


@runtime_checkable
class Interleaves(Protocol):
    """A session that can hold several texts at once, each with a cache of its own."""

    def switch(self, text: int) -> None:
        """Make a text the one that `append`, `reset` and the like mean: 0 is the first, a new number an empty one."""
        ...


@runtime_checkable
class Batches(Protocol):
    """A session that computes several prompts at once, padded on the side that the runtime wants."""

    def batch(self, prompts: Sequence[Tokens], continuations: Sequence[Tokens]) -> list[Logits]:
        """Logits `[n_i + m, V]` float32 of each prompt `[n_i]`, then its continuation `[m]` fed token by token.

        Continuations are of one length. Rows of padding are left out. The session is reset before and after.
        """
        ...


class Steps:
    """The operations of a worker on its session, one by one."""

    def __init__(self, loaded: Callable[[], Session], watched: Callable[[], Witness]) -> None:
        self._loaded = loaded
        self._watched = watched
        self._kept: dict[int, Any] = {}

    def do_reset(self) -> None:
        """Forget all tokens, and the states kept."""
        self._kept.clear()
        self._loaded().reset()

    def do_append(self, tokens: list[int]) -> Any:
        """Feed tokens; see `Session.append`."""
        with self._watched().work():
            return self._loaded().append(np.asarray(tokens, dtype=np.int64))

    def do_rewind(self, length: int) -> None:
        """Keep the first tokens only; see `Rewinds`."""
        session = self._loaded()
        if not isinstance(session, Rewinds):
            raise Unsupported("the runtime offers no way back in its cache")
        session.rewind(length)

    def do_fork(self, name: int) -> None:
        """Keep the state under a number; see `Branches`."""
        session = self._loaded()
        if not isinstance(session, Branches):
            raise Unsupported("the runtime offers no copy of its state")
        self._kept[name] = session.fork()

    def do_resume(self, name: int) -> None:
        """Return to a state kept; see `Branches`."""
        session = self._loaded()
        assert isinstance(session, Branches)  # it has forked
        session.resume(self._kept[name])

    def do_switch(self, text: int) -> None:
        """Go on with another text; see `Interleaves`."""
        session = self._loaded()
        if not isinstance(session, Interleaves):
            raise Unsupported("a session of the runtime holds one text")
        session.switch(text)

    def do_batch(self, prompts: list[list[int]], continuations: list[list[int]]) -> Any:
        """Several prompts at once; see `Batches`."""
        session = self._loaded()
        if not isinstance(session, Batches):
            raise Unsupported("the runtime computes one text at a time")
        with self._watched().work():
            return session.batch(
                [np.asarray(prompt, dtype=np.int64) for prompt in prompts],
                [np.asarray(tokens, dtype=np.int64) for tokens in continuations],
            )
