"""Wearing a session out: loaded again and again, cancelled, computed beside another, killed; does it answer as before?

Every round ends with the same two texts. The first answers are held against what they ought to be, the later ones
against the first: bit for bit where the runtime repeats itself, else by the yardstick. What the process holds is
counted at the end of every round, and judged by its growth (`harness.growth`).
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare import Outcome, Verdict
from harness.consistency import Allowance, Comparisons
from harness.endurance import Cancelled
from harness.errors import Stage, StageError, Unsupported, WorkerDied
from harness.growth import FEWEST, WARM_UP, Series, judge_growth
from harness.resources import Resources
from harness.sessions import TargetSession
from harness.stepping import Oracle, Stepper, text_of
from harness.target import DeviceKind

Text = tuple[list[int], list[int]]
"""A prompt, and the tokens that are fed after it one by one."""

ENOUGH = WARM_UP + FEWEST
"""Rounds of a long soak, at least: its growth can be told from these."""
_MIB = 1 << 20
_FEW = 4
# A generation that is to be stopped would go on for so many tokens, and is stopped after so many, in turn: when all is
# steady, in its prompt, and where the prompt has just ended.
_NEW_TOKENS, _STOP_AFTER = 48, (3, 0, 1)
# A process is killed so many seconds after it was told to be, in the middle of calls.
_KILL_SECONDS = 0.2
_KILL_TRIES = 200


def loads(session: TargetSession, seconds: float = 0.0, least: int = _FEW) -> Verdict:
    """Load, answer and unload in one process, over and over."""
    _need_second_model(session)
    worn = Worn(session, "load")
    for number in _rounds(seconds, least):
        if number:
            session.call("load", **session.loading)
        worn.answer(f"after {number} loads")
        worn.look()
    return worn.verdict()


def calls(session: TargetSession, seconds: float = 0.0, least: int = _FEW) -> Verdict:
    """Answer, over and over."""
    worn = Worn(session, "call")
    for number in _rounds(seconds, least):
        worn.answer(f"round {number + 1}")
        worn.look()
    return worn.verdict()


def cancels(session: TargetSession, seconds: float = 0.0, least: int = 1) -> Verdict:
    """Stop generations before they are done, by every way that the runtime has, and answer."""
    ways = session.call("ways_to_cancel")
    if not ways:
        raise Unsupported(f"{session.target}: the runtime offers no way to stop generating")
    worn = Worn(session, "call")
    prompt = text_of(session, 16)
    for number in _rounds(seconds, max(least, len(ways))):
        way, after = ways[number % len(ways)], _STOP_AFTER[number // len(ways) % len(_STOP_AFTER)]
        asked = {"way": way, "prompt": prompt, "max_new_tokens": _NEW_TOKENS, "after": after}
        found = msgspec.convert(session.call("cancel", **asked), Cancelled)
        if not found.raised and found.tokens > max(after, 1):  # some ways are heard after a token only
            worn.fail(f"{way}: the generation was not stopped after {after} tokens, it gave {found.tokens}")
        worn.answer(f"after a stop by {way}{f' ({found.raised})' if found.raised else ''}")
        worn.look()
    return worn.verdict()


def two_sessions(session: TargetSession, seconds: float = 0.0, least: int = 1) -> Verdict:
    """Compute with two sessions of one process, in turns and at once; then with one of them alone."""
    _need_second_model(session)
    worn = Worn(session, "load")
    for _ in _rounds(seconds, least):
        session.call("load_beside", **session.loading)
        try:
            for at_once in (False, True):
                how = "at once, in threads" if at_once else "in turns"
                for texts in (worn.texts, worn.texts[::-1]):
                    found = session.call("both", texts=[list(text) for text in texts], at_once=at_once)
                    for name, text, rows in zip(("first", "second"), texts, found, strict=True):
                        worn.see(f"{name} of two sessions {how}", text, rows, beside=True)
        finally:
            if session.alive:
                session.call("close_beside")
        worn.answer("after the second session was closed")
        worn.look()
    return worn.verdict()


def processes(session: TargetSession, seconds: float = 0.0, least: int = _FEW) -> Verdict:
    """Answer in new processes; every other one is killed in the middle of a call."""
    worn = Worn(session, "process")
    for number in _rounds(seconds, least):
        if number % 2:
            _kill(session, worn.texts[0])
        elif number:
            session.restart()
        worn.answer(f"in process {number + 1}, the one before it {'killed' if number % 2 else 'ended'}")
        worn.look()
    return worn.verdict()


def two_processes(session: TargetSession, seconds: float = 0.0, least: int = 1) -> Verdict:
    """Compute in two processes at once, where processes may share the device; then in one of them alone."""
    if session.kind is not DeviceKind.CPU:
        raise Unsupported(
            f"one process at a time has a {session.kind.value}: see docs/design.md, and two sessions in one"
        )
    worn = Worn(session, "call")
    other = session.run.crew.take(session.target)
    try:
        other.call(Stage.LOAD, "load", **session.loading)
        with ThreadPoolExecutor(1) as pool:
            for number in _rounds(seconds, least):
                first, second = worn.texts if number % 2 else worn.texts[::-1]
                waiting = pool.submit(other.call, Stage.RUN, "teacher_force", prompt=second[0], continuation=second[1])
                worn.see("this process of two", first, _fed(session, first), beside=True)
                worn.see("the other process of two", second, waiting.result(), beside=True)
                worn.look()
    finally:
        other.stop()
    worn.answer("after the other process had ended")
    return worn.verdict()


class Worn:
    """A session's answers from the first on, and what its process held at the end of every round, `what` a round is."""

    def __init__(self, session: TargetSession, what: str) -> None:
        self._session = session
        self._what = what
        self._held: list[Resources] = []
        self._failures: list[str] = []
        oracle = Oracle(session)
        allowed = oracle.allowance()
        exact = Allowance(1.0, 0.0, "bit for bit as at first: the runtime repeats itself")
        self._right, self._beside = Comparisons(allowed), Comparisons(allowed)
        self._same = Comparisons(exact if Stepper(session).able.repeats_exactly else allowed)
        whole = (text_of(session, 20), text_of(session, 12, start=500))
        self.texts: tuple[Text, ...] = tuple((text[:-3], text[-3:]) for text in whole)
        self._first: list[NDArray[np.float32]] = []
        for number, text in enumerate(self.texts):
            expected, rows = oracle.rows([*text[0], *text[1]], len(text[0])), _fed(session, text)
            count = rows.shape[0]
            place = expected.rows.shape[0] - count
            what_it_is = f"text {number + 1} at first"
            self._right.see(what_it_is, expected.rows[-count:], rows, place, expected.spread[-count:])
            self._first.append(np.array(rows))

    def answer(self, when: str) -> None:
        """Ask for both texts again."""
        for text in self.texts:
            self.see(when, text, _fed(self._session, text))

    def see(self, when: str, text: Text, rows: NDArray[np.float32], *, beside: bool = False) -> None:
        """Compare rows with the first ones of a text; `beside`: another session computed, so threads were fewer."""
        first = self._first[self.texts.index(text)]
        place = len(text[0]) + len(text[1]) - first.shape[0]
        (self._beside if beside else self._same).see(when, first, rows, place)

    def look(self) -> None:
        """Count what the process holds."""
        found = self._session.call("resources", device=self._session.target.device)
        self._held.append(msgspec.convert(found, Resources))

    def fail(self, message: str) -> None:
        """Note something else that is wrong; once, however often."""
        if message not in self._failures:
            self._failures.append(message)

    def verdict(self) -> Verdict:
        """Answers and growth in one; of few rounds growth is not told."""
        parts = [self._right.verdict(), self._same.verdict()]
        if self._beside.verdict().numbers["compared"]:
            parts.append(self._beside.verdict())
        if len(self._held) >= _FEW:
            parts.append(judge_growth(self._series(), self._what))
        failed = [part.message for part in parts if part.outcome is not Outcome.PASS]
        failed += self._failures
        numbers = self._right.verdict().numbers | {f"same_{k}": v for k, v in self._same.verdict().numbers.items()}
        numbers |= {f"beside_{k}": v for k, v in self._beside.verdict().numbers.items()} if len(parts) > 2 else {}
        growth = parts[-1] if len(self._held) >= _FEW else None
        numbers |= growth.numbers if growth is not None else {"rounds": float(len(self._held))}
        limits = {"same_worst_ratio": self._same.allowance.limit, **(growth.limits if growth is not None else {})}
        return Verdict(Outcome.FAIL if failed else Outcome.PASS, numbers, limits, "\n".join(failed))

    def _series(self) -> list[Series]:
        limits = self._session.run.settings.policy.limits_of_soak()
        memory = limits.memory_a_call if self._what == "call" else limits.memory_a_load
        held, found = self._held, []
        found.append(Series("memory", "MiB", [one.memory / _MIB for one in held], memory))
        found.append(Series("handles", "", [float(one.handles) for one in held], limits.handles))
        found.append(Series("threads", "", [float(one.threads) for one in held], limits.threads))
        device = [one.device_memory / _MIB for one in held if one.device_memory is not None]
        if len(device) == len(held):
            found.append(Series("device_memory", "MiB", device, limits.device_memory))
        return found


def _rounds(seconds: float, least: int) -> Iterator[int]:
    """Number rounds until both the time is up and there are as many as are needed."""
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number >= least and time.monotonic() >= end:
            return
        yield number


def _fed(session: TargetSession, text: Text) -> NDArray[np.float32]:
    rows: NDArray[np.float32] = session.call("teacher_force", prompt=text[0], continuation=text[1])
    return rows


def _kill(session: TargetSession, text: Text) -> None:
    """Have the process killed while it computes. Raises StageError(run) where it outlives that."""
    deaths = session.process.deaths
    session.call("end_abruptly", seconds=_KILL_SECONDS)
    try:
        for _ in range(_KILL_TRIES):
            _fed(session, text)
            time.sleep(0.0)
    except WorkerDied as error:
        if sys.platform != "win32" and "signal SIGKILL" not in error.problem:
            raise  # it died of something else
        session.process.deaths = deaths  # it was told to die
        return
    raise StageError(Stage.RUN, f"{session.target} outlived being killed")


def _need_second_model(session: TargetSession) -> None:
    if not session.call("can_load_again"):
        raise Unsupported(
            f"{session.target}: the runtime ends a process that loads a second model",
            "load each in a process of its own: test_soak_processes does",
        )
