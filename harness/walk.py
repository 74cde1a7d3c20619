"""A random walk through everything that a cache can be put through, against a reference that keeps no state.

Hypothesis draws the walks (always the same ones) and shrinks one that fails to the shortest that does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from harness.caching import interleaved
from harness.compare import Outcome, Verdict
from harness.consistency import Comparisons
from harness.drawn import fixed_settings
from harness.errors import HarnessError, Unsupported
from harness.sessions import TargetSession
from harness.stepping import Logits, Oracle, Stepper, text_of

WALKS, STEPS = 16, 14
_TEXTS = 2
_LONGEST = 48
_CHUNK = 9
# A prompt of one token has a case of its own: a defect of that alone would hide all others.
_SHORTEST_PROMPT = 2
# What hypothesis may take to shorten a walk that fails.
_SHRINKING_SECONDS = 40.0


class Fed(msgspec.Struct):
    """Token ids of a text, how many were fed at once as its prompt, and the last row that they gave."""

    tokens: list[int]
    prefill: int
    last: Logits | None

    def copy(self) -> Fed:
        """Another one, which later tokens do not change."""
        return Fed(list(self.tokens), self.prefill, self.last)


class Seen(NamedTuple):
    """Rows `[m, V]` that a step gave: those of the last m tokens of a text."""

    step: str
    tokens: tuple[int, ...]
    prefill: int
    rows: Logits


class Stopped(BaseException):
    """The session failed in a step, which ends all walks: to repeat a crash a hundred times helps nobody.

    Not an Exception, since hypothesis would take one for a failure to be shrunk.
    """

    def __init__(self, error: HarnessError, steps: list[str]) -> None:
        super().__init__(str(error))
        self.error = error
        self.steps = steps


def walk(session: TargetSession) -> Verdict:
    """Walk at random, and judge every row on the way. Raises what the session raises when a step fails."""
    journey = _Journey(session)

    class Walk(_Machine):
        def __init__(self) -> None:
            super().__init__(journey)

    try:
        run_state_machine_as_test(Walk, settings=fixed_settings(WALKS, (Phase.generate, Phase.shrink), STEPS))
    except (_Wrong, _Enough, Flaky):
        return journey.failed()
    except Stopped as stopped:
        error = stopped.error
        raise _with_steps(error, stopped.steps) from None
    finally:
        journey.leave()
    return journey.found.verdict("\n".join(f"left out: {why}" for why in journey.lacking.values()))


def _with_steps(error: HarnessError, steps: list[str]) -> HarnessError:
    error.problem = f"after {', '.join(steps[:-1]) or 'nothing'}: {error.problem}"
    return error


class _Wrong(AssertionError):
    """A row of a walk is not what it ought to be."""


class _Enough(BaseException):
    """Shrinking has taken long enough."""


class _Journey:
    """What all walks of a session share."""

    def __init__(self, session: TargetSession) -> None:
        self.session = session
        self.stepper = Stepper(session)
        self.oracle = Oracle(session)
        self.allowance = self.oracle.allowance()
        self.found = Comparisons(self.allowance)
        self.stream = text_of(session, 4096)
        self.lacking = _lacking(session, self.stepper, self.stream)
        self.chunk = min(_CHUNK, self.stepper.able.max_append or _CHUNK)
        self.walks = self.wrong = 0
        self._shortest: tuple[list[str], Verdict] | None = None
        self._deadline = 0.0

    def judge(self, seen: list[Seen], steps: list[str]) -> None:
        """Hold what a walk gave against the oracle: one pass for all texts of which one is the beginning of another."""
        self.walks += 1
        own = Comparisons(self.allowance)
        agree = True
        for longest, inside in _by_longest(seen):
            expected = self.oracle.rows(longest.tokens, longest.prefill)
            for one in inside:
                first, end = len(one.tokens) - one.rows.shape[0], len(one.tokens)
                for found in (own, self.found):
                    rows = expected.rows[first:end]
                    agree &= found.see(one.step, rows, one.rows, first, expected.spread[first:end])
        if not agree:
            self._keep(steps, own.verdict())
            raise _Wrong

    def failed(self) -> Verdict:
        """The verdict by the shortest walk that failed."""
        assert self._shortest is not None
        steps, verdict = self._shortest
        numbers = {
            **verdict.numbers,
            "walks": float(self.walks),
            "wrong": float(self.wrong),
            "steps": float(len(steps)),
        }
        message = f"shortest walk that fails, of {len(steps)} steps: {', '.join(steps)}\n{verdict.message}"
        return Verdict(Outcome.FAIL, numbers, verdict.limits, message)

    def _keep(self, steps: list[str], verdict: Verdict) -> None:
        self.wrong += 1
        if self._shortest is None:
            self._deadline = time.monotonic() + _SHRINKING_SECONDS
        if self._shortest is None or len(steps) < len(self._shortest[0]):
            self._shortest = list(steps), verdict
        if time.monotonic() > self._deadline:
            raise _Enough

    def leave(self) -> None:
        """Forget everything, if the session lives."""
        if self.session.alive:
            if "switch" not in self.lacking:
                self.stepper.switch(0)
            self.stepper.reset()


def _lacking(session: TargetSession, stepper: Stepper, stream: list[int]) -> dict[str, str]:
    """What the session does not offer, and why; and texts in turns, where these mix without any walk."""
    asked: dict[str, Callable[[], None]] = {
        "rewind": lambda: stepper.rewind(2),
        "fork": lambda: stepper.fork(0),
        "switch": lambda: stepper.switch(0),
    }
    found = {}
    for name, ask in asked.items():
        stepper.reset()
        stepper.append(stream[:3])
        try:
            ask()
        except Unsupported as error:
            found[name] = error.problem.removeprefix(f"{session.target}: ")
    stepper.reset()
    if "switch" not in found and interleaved(session).outcome is not Outcome.PASS:
        found["switch"] = "texts in turns, which mix: see test_cache_interleaved"
    return found


def _by_longest(seen: list[Seen]) -> list[tuple[Seen, list[Seen]]]:
    """Groups of texts, each with the longest one, of which all others are the beginning."""
    groups: list[tuple[Seen, list[Seen]]] = []
    for one in sorted(seen, key=lambda s: -len(s.tokens)):
        for longest, inside in groups:
            if longest.prefill == one.prefill and longest.tokens[: len(one.tokens)] == one.tokens:
                inside.append(one)
                break
        else:
            groups.append((one, [one]))
    return groups


class _Machine(RuleBasedStateMachine):
    """One walk. What it gave is judged at its end."""

    def __init__(self, journey: _Journey) -> None:
        super().__init__()
        self._journey = journey
        self._stepper = journey.stepper
        self._texts: dict[int, Fed] = {0: Fed([], 0, None)}
        self._text = 0
        self._kept: dict[int, tuple[int, Fed]] = {}
        self._seen: list[Seen] = []
        self._steps: list[str] = []
        self._broken_off = False
        if "switch" not in journey.lacking:
            for text in reversed(range(_TEXTS)):
                self._do("", functools.partial(self._stepper.switch, text))
                self._do("", self._stepper.reset)
        else:
            self._do("", self._stepper.reset)

    @property
    def _now(self) -> Fed:
        return self._texts[self._text]

    def _offers(self, name: str) -> bool:
        return name not in self._journey.lacking

    @precondition(lambda self: len(self._now.tokens) < _LONGEST - _CHUNK)
    @rule(count=st.integers(_SHORTEST_PROMPT, _CHUNK), start=st.integers(0, 4000))
    def append(self, count: int, start: int) -> None:
        """Feed some tokens at once: the prompt, if they are the first."""
        if self._now.tokens:
            count = min(count, self._journey.chunk)
        self._feed(f"append {count}", self._journey.stream[start : start + count])

    @precondition(lambda self: self._now.last is not None and len(self._now.tokens) < _LONGEST)
    @rule()
    def step(self) -> None:
        """Feed the likeliest token, as greedy decoding does."""
        assert self._now.last is not None
        self._feed("step", [int(self._now.last.argmax())])

    @precondition(lambda self: self._offers("rewind") and len(self._now.tokens) > 1)
    @rule(share=st.integers(1, 8))
    def rewind(self, share: int) -> None:
        """Go back, by an eighth of the text or more."""
        length = max(1, len(self._now.tokens) * (8 - share) // 8)
        self._do(f"rewind to {length}", lambda: self._stepper.rewind(length))
        fed = self._now
        self._texts[self._text] = Fed(fed.tokens[:length], min(fed.prefill, length), None)

    @rule()
    def reset(self) -> None:
        """Forget all tokens."""
        self._do("reset", self._stepper.reset)
        self._texts[self._text] = Fed([], 0, None)
        self._kept.clear()

    @precondition(lambda self: self._offers("fork") and self._now.tokens)
    @rule(name=st.integers(0, 1))
    def fork(self, name: int) -> None:
        """Keep the state."""
        self._do(f"keep {name}", lambda: self._stepper.fork(name))
        self._kept[name] = (self._text, self._now.copy())

    @precondition(lambda self: any(text == self._text for text, _ in self._kept.values()))
    @rule(name=st.integers(0, 1), start=st.integers(0, 4000))
    def branch(self, name: int, start: int) -> None:
        """Return to a state of this text that was kept, and go on from there, without which nothing would show."""
        names = [key for key, (text, _) in sorted(self._kept.items()) if text == self._text]
        name = names[name % len(names)]
        self._do(f"return to {name}", lambda: self._stepper.resume(name))
        self._texts[self._text] = self._kept[name][1].copy()
        self._feed("append 1", self._journey.stream[start : start + 1])

    @precondition(lambda self: self._offers("switch"))
    @rule()
    def switch(self) -> None:
        """Go on with the other text."""
        self._text = (self._text + 1) % _TEXTS
        self._do(f"text {self._text}", lambda: self._stepper.switch(self._text))
        self._texts.setdefault(self._text, Fed([], 0, None))

    def _feed(self, step: str, tokens: list[int]) -> None:
        rows = self._do(step, lambda: self._stepper.append(tokens))
        fed = self._now
        prefill = fed.prefill if fed.tokens else len(tokens)
        self._texts[self._text] = Fed([*fed.tokens, *tokens], prefill, rows[-1])
        self._seen.append(Seen(f"step {len(self._steps)}, {step}", tuple(self._now.tokens), prefill, rows))

    def _do(self, step: str, act: Callable[[], Any]) -> Any:
        if step:
            self._steps.append(step)
        try:
            return act()
        except HarnessError as error:
            self._broken_off = True
            raise Stopped(error, self._steps) from None
        except BaseException:
            self._broken_off = True
            raise

    def teardown(self) -> None:
        """Judge the walk, if it came to its end: hypothesis calls this too where a step has failed or was interrupted.

        What is raised here would take the place of that.
        """
        if self._broken_off:
            return
        try:
            self._journey.judge(self._seen, self._steps)
        except HarnessError as error:
            raise Stopped(error, self._steps) from None
