"""The same question asked again: at once, after others, in a new session or process, under load, on other threads.

Where a runtime repeats itself to the last bit, by its documentation or as measured (`Capabilities.repeats_exactly`), so
must every answer here be. Where it does not, answers may lie apart by what honest rounding comes to, and how far they
do is in the verdict. Of other numbers of threads nobody promises more than that: sums are split in other places.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec

from harness.backend import SessionInfo, TakesThreads
from harness.compare import Verdict
from harness.errors import Stage, StageError, Unsupported
from harness.sessions import TargetSession
from harness.spread import Spread
from harness.stepping import Logits, Oracle, Stepper, text_of

# The question: a prompt that no tile divides, and some tokens decoded after it.
_PROMPT, _STEPS = 45, 3
_AGAIN = 3
# Lengths of what is fed between two answers: a token alone, and more than the question has.
_OTHERS = (1, 70)


def again(session: TargetSession) -> Verdict:
    """The same question several times in a row, each time after a reset."""
    stepper, found = Stepper(session), _spread(session)
    first = _answer(session, stepper)
    for time in range(_AGAIN - 1):
        found.see(f"answer {time + 2} to the same question", first, _answer(session, stepper))
    return found.verdict()


def after_others(session: TargetSession) -> Verdict:
    """The same question after other prompts, a shorter and a longer one."""
    stepper, found = Stepper(session), _spread(session)
    first = _answer(session, stepper)
    with stepper.left_clean():
        for length in _OTHERS:
            stepper.reset()
            stepper.append(text_of(session, length, start=700))
            found.see(f"the answer after another prompt, of {length} tokens,", first, _answer(session, stepper))
    return found.verdict()


def under_load(session: TargetSession) -> Verdict:
    """The same question while every core of the machine is kept busy."""
    stepper, found = Stepper(session), _spread(session)
    first = _answer(session, stepper)
    with _contention(session):
        for time in range(2):
            found.see(f"answer {time + 1} under load", first, _answer(session, stepper))
    return found.verdict()


def new_session(session: TargetSession) -> Verdict:
    """The same question to the artifact loaded once more in the same process. Raises Unsupported where none can be."""
    if getattr(session.run.backends[session.target.backend], "one_model_a_process", False):
        raise Unsupported("the runtime can load one model to a process", "a new process is a case of its own")
    stepper, found = Stepper(session), _spread(session)
    first = _answer(session, stepper)
    try:
        _load_again(session, {})
    except StageError:
        if session.alive:
            session.restart()
        raise
    found.see("the first answer of a new session", first, _answer(session, stepper))
    return found.verdict()


def new_process(session: TargetSession) -> Verdict:
    """The same question to a new process, where it is the very first one, and again once it is warm."""
    stepper, found = Stepper(session), _spread(session)
    before = _answer(session, stepper)
    session.restart(spare_the_old=True)
    first = _answer(session, stepper)
    found.see("the first answer of a new process", before, first)
    for _ in range(2):
        warm = _answer(session, stepper)
    found.see("an answer after the first of its process", first, warm)
    return found.verdict()


def other_threads(session: TargetSession) -> Verdict:
    """The same question on another number of threads: one, or two where it is one by default."""
    backend, info = session.run.backends[session.target.backend], session.info
    if not isinstance(backend, TakesThreads):
        raise Unsupported("the runtime cannot be told how many threads to take")
    option = backend.threads_option(session.target)
    default = info.properties.get(option, "") if info else ""
    count = 2 if default == "1" else 1
    stepper = Stepper(session)
    found = Spread(Oracle(session).allowance())
    first = _answer(session, stepper)
    try:
        loaded = _load_again(session, {option: str(count)})
        other = _answer(session, stepper)
    finally:
        if session.alive:
            _load_again(session, {})
    back = loaded.properties.get(option, str(count))  # some runtimes tell nothing of it
    if back != str(count):
        raise Unsupported(f"the runtime took {option}={count} and did not heed it: it reads back as {back}")
    found.see(f"the answer with {option}={count}", first, other)
    return found.verdict(f"{option}={count} against the default{' of ' + default if default else ''}")


def _load_again(session: TargetSession, options: Mapping[str, str]) -> SessionInfo:
    """Load the artifact in the same process, in place of the session there, with more options; what it then says."""
    loading = session.loading
    found = session.call("load", **{**loading, "options": {**loading["options"], **options}})
    return msgspec.convert(found, SessionInfo)


def _spread(session: TargetSession) -> Spread:
    exact = Stepper(session).able.repeats_exactly
    return Spread(None if exact else Oracle(session).allowance())


def _answer(session: TargetSession, stepper: Stepper) -> Logits:
    """Logits of the question, those of its prompt (or of its last token) and of the tokens decoded after it."""
    text = text_of(session, _PROMPT + _STEPS)
    with stepper.left_clean():
        return stepper.feed([text[:_PROMPT], *([token] for token in text[_PROMPT:])])


@contextmanager
def _contention(session: TargetSession) -> Iterator[None]:
    """Keep the machine busy that the session is on. Raises StageError(run) unless it was so all along."""
    started = session.call("contend")
    try:
        yield
    except BaseException:
        if session.alive:
            session.call("relent")
        raise
    busy = session.call("relent")
    if busy < started:
        raise StageError(Stage.RUN, f"of {started} busy processes {started - busy} had ended before they were told to")
