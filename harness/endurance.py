"""What a worker does to wear its session out: count what it holds, cancel it, load another beside it, end abruptly."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.backend import Backend, Session, teacher_force
from harness.errors import Unsupported
from harness.resources import Resources, resources
from harness.target import Target
from harness.witness import Witness

Tokens = NDArray[np.int64]


class Cancelled(msgspec.Struct, frozen=True):
    """What became of a generation that was stopped: how many tokens it gave, and what the runtime raised, if it did."""

    tokens: int
    raised: str = ""


@runtime_checkable
class Cancels(Protocol):
    """A session whose runtime can stop generating before it is done."""

    def ways_to_cancel(self) -> Sequence[str]:
        """The names of what the runtime offers for that."""
        ...

    def cancel(self, way: str, prompt: Tokens, max_new_tokens: int, after: int) -> Cancelled:
        """Begin to generate and stop it by one of these ways once `after` tokens are there, at once where none tells.

        No end token ends it. The session is left as the runtime leaves it; it must be usable after `reset`.
        """
        ...


@runtime_checkable
class TellsDeviceMemory(Protocol):
    """A backend whose runtime tells how much of a device's memory is in use."""

    def device_memory(self, device: str) -> int | None:
        """Bytes in use on a device, None where the runtime does not tell."""
        ...


class Endurance:
    """Operations of a worker on the session that it has loaded, and on a second one."""

    def __init__(
        self, opened: Callable[[], Backend], loaded: Callable[[], Session], watched: Callable[[], Witness]
    ) -> None:
        self._opened = opened
        self._loaded = loaded
        self._watched = watched
        self._second: Session | None = None

    def do_resources(self, device: str) -> Resources:
        """What this process holds, with the memory in use on a device."""
        backend = self._opened()
        told = backend.device_memory(device) if isinstance(backend, TellsDeviceMemory) else None
        return resources(told)

    def do_can_load_again(self) -> bool:
        """Whether the runtime can have a second model in a process, at once or after the first."""
        return not getattr(self._opened(), "one_model_a_process", False)

    def do_ways_to_cancel(self) -> list[str]:
        """The names of what the runtime offers to stop generating; see `Cancels`."""
        session = self._loaded()
        return list(session.ways_to_cancel()) if isinstance(session, Cancels) else []

    def do_cancel(self, way: str, prompt: list[int], max_new_tokens: int, after: int) -> Cancelled:
        """Begin to generate and stop it; see `Cancels`."""
        session = self._loaded()
        if not isinstance(session, Cancels):
            raise Unsupported("the runtime offers no way to stop generating")
        with self._watched().work():
            found = session.cancel(way, _ids(prompt), max_new_tokens, after)
        session.reset()
        return found

    def do_load_beside(self, artifact: str, target: str, options: dict[str, str], trust_remote_code: bool) -> None:
        """Load a second session, beside the first."""
        parsed = Target.parse(target)
        loaded = self._opened().load(Path(artifact), parsed, options=options, trust_remote_code=trust_remote_code)
        self._second = loaded

    def do_both(self, texts: list[list[list[int]]], *, at_once: bool) -> list[Any]:
        """Logits of two texts (prompt and continuation), the first by the first session and the second by the second.

        `at_once`: by a thread each. Else in turns, a call each.
        """
        sessions = (self._loaded(), self._beside())
        with self._watched().work():
            return (_in_threads if at_once else _in_turns)(sessions, texts)

    def do_close_beside(self) -> None:
        """Close the second session; nothing where there is none."""
        session, self._second = self._second, None
        if session is not None:
            session.close()

    def do_end_abruptly(self, seconds: float) -> None:
        """Have this process killed from inside in so many seconds, whatever it does then."""

        def kill() -> None:
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGTERM if sys.platform == "win32" else signal.SIGKILL)

        threading.Thread(target=kill, daemon=True).start()

    def _beside(self) -> Session:
        if self._second is None:
            raise RuntimeError("no second session was loaded in this worker")
        return self._second


def _in_threads(sessions: Sequence[Session], texts: Sequence[Sequence[Sequence[int]]]) -> list[Any]:
    found: list[Any] = [None] * len(sessions)
    start = threading.Barrier(len(sessions))

    def compute(number: int) -> None:
        prompt, continuation = map(_ids, texts[number])
        start.wait()
        try:
            found[number] = teacher_force(sessions[number], prompt, continuation)
        except Exception as error:  # noqa: BLE001 - a runtime may raise anything; it is raised again below
            found[number] = error

    threads = [threading.Thread(target=compute, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, Exception):
            raise one
    return found


def _in_turns(sessions: Sequence[Session], texts: Sequence[Sequence[Sequence[int]]]) -> list[Any]:
    rows: list[list[Any]] = []
    for session, (prompt, _) in zip(sessions, texts, strict=True):
        session.reset()
        rows.append([session.append(_ids(prompt))])
    for step in range(max(len(continuation) for _, continuation in texts)):
        for number, (session, (_, continuation)) in enumerate(zip(sessions, texts, strict=True)):
            if step < len(continuation):
                rows[number].append(session.append(_ids(continuation[step : step + 1])))
    return [np.concatenate(one) for one in rows]


def _ids(tokens: Sequence[int]) -> Tokens:
    return np.asarray(tokens, dtype=np.int64)
