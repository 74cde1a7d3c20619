"""Where a session must stop or refuse (end tokens, limits, full caches, impossible tokens), and that it lives on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from harness.compare import Outcome, Verdict
from harness.consistency import Allowance, Comparisons
from harness.errors import Unsupported, WorkerRaised
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.stepping import Logits, Stepper, text_of
from harness.worker import NO_MESSAGE

_NEW_TOKENS = 16
_PLACES = (0, 1, 4, 9)
_LIMITS = (1, 2, 5, 11)
# The same text in the same process, shapes and all: what differs by more than this share of the logits is broken.
_AS_BEFORE = 1e-2


class _Checks:
    """What was checked, and what was not as it ought to be."""

    def __init__(self) -> None:
        self.done = 0
        self.wrong: list[str] = []
        self.notes: list[str] = []

    def see(self, right: bool, problem: str) -> None:
        """Count a check; `problem` says what is wrong where it is."""
        self.done += 1
        if not right:
            self.wrong.append(problem)

    def verdict(self) -> Verdict:
        """Passes where something was checked and nothing was wrong."""
        numbers = {"checks": float(self.done), "wrong": float(len(self.wrong))}
        lines = self.wrong or (self.notes if self.done else ["nothing was checked"])
        outcome = Outcome.PASS if self.done and not self.wrong else Outcome.FAIL
        return Verdict(outcome, numbers, {"wrong": 0.0}, "\n".join(lines))


def end_tokens(session: TargetSession) -> Verdict:
    """Greedy decoding ends at the first end token, whichever it is, and at no other token.

    Tokens of the session's own answer are declared end tokens, each in turn and several together. Where the artifact
    names its own, whatever it is told, these must be the checkpoint's.
    """
    checks, prompt = _Checks(), _talkative(session)
    ends = prompt.golden.manifest.end_tokens
    own = Stepper(session).able.own_end_tokens
    if own is not None:
        missing, more = sorted({*ends} - {*own}), sorted({*own} - {*ends})
        checks.see(not missing, f"the artifact does not stop at {missing}, which are end tokens of the checkpoint")
        checks.see(not more, f"the artifact stops at {more}, which are no end tokens of the checkpoint")
        checks.notes.append("the artifact names its end tokens itself; no others can be declared")
        return checks.verdict()
    whole = _generate(session, prompt, _NEW_TOKENS, ends)
    for place in (p for p in _PLACES if p < len(whole)):
        token = whole[place]
        for declared in ((token,), (*ends, token), (token, *whole[place + 1 :])):
            answer = _generate(session, prompt, _NEW_TOKENS, declared)
            due = whole[: min(whole.index(end) for end in declared if end in whole) + 1]
            checks.see(
                answer == due, f"with {_few(declared)} as end tokens: {_answer(answer)}, where {_answer(due)} was due"
            )
    return checks.verdict()


def answer_limit(session: TargetSession) -> Verdict:
    """An answer that is cut short is the beginning of the longer one, and as long as was asked for."""
    checks, prompt = _Checks(), _talkative(session)
    ends = prompt.golden.manifest.end_tokens
    whole = _generate(session, prompt, _NEW_TOKENS, ends)
    for limit in _LIMITS:
        answer = _generate(session, prompt, limit, ends)
        checks.see(
            answer == whole[:limit],
            f"at most {limit} tokens: {_answer(answer)}, where {_answer(whole[:limit])} was due",
        )
    return checks.verdict()


def too_long_prompt(session: TargetSession) -> Verdict:
    """A prompt past what the session takes is refused in words, or computed; the session lives on either way."""
    stepper = Stepper(session)
    most = min(stepper.able.max_prompt or stepper.context, stepper.context)
    stepper.need_room(most + 1)
    return _provoke(session, {f"a prompt of {most + 1} tokens": lambda: stepper.append(text_of(session, most + 1))})


def full_cache(session: TargetSession) -> Verdict:
    """A token more than the cache holds is refused in words, or computed; the session lives on either way."""
    stepper = Stepper(session)
    context = stepper.context
    stepper.need_room(context + 1)
    prompt = stepper.prompt_to_fill(0)

    def overfill() -> Logits:
        stepper.append(text_of(session, prompt))
        for token in text_of(session, context - prompt + 1, start=prompt):
            rows = stepper.append([token])
        return rows

    return _provoke(session, {f"token {context + 1} of a text": overfill})


def impossible_tokens(session: TargetSession) -> Verdict:
    """Token ids outside the vocabulary are refused; computed with, they are somebody else's memory or nothing."""
    stepper = Stepper(session)
    size = session.run.settings.checkpoint.vocabulary
    text = text_of(session, 4)
    asked = {f"token id {bad}": [*text[:2], bad, *text[2:]] for bad in (size, size + 1000, -1, -size - 1)}
    return _provoke(session, {what: _append(stepper, tokens) for what, tokens in asked.items()}, must_refuse=True)


def _append(stepper: Stepper, tokens: Sequence[int]) -> Callable[[], Logits]:
    return lambda: stepper.append(tokens)


def _provoke(session: TargetSession, asked: dict[str, Callable[[], Logits]], *, must_refuse: bool = False) -> Verdict:
    """Ask for what is too much, and after each see that a text gives what it gave before.

    What is not refused must at least be numbers. A process that dies of it is an ERROR, as everywhere.
    """
    stepper, checks = Stepper(session), _Checks()
    text = text_of(session, 24)
    with stepper.left_clean():
        before = stepper.feed([text[:20], *([token] for token in text[20:])])
        for what, ask in asked.items():
            stepper.reset()
            refused = ""
            try:
                rows = ask()
            except WorkerRaised as error:
                refused = error.problem
            if refused:
                words = refused.partition(": ")[2].removeprefix(NO_MESSAGE)
                checks.see(bool(words.strip(" .")), f"{what} was refused without a word")
            elif must_refuse:
                checks.see(False, f"{what} was taken without an error, in a vocabulary of {before.shape[1]}")
            else:
                checks.see(bool(np.isfinite(rows).all()), f"{what} was taken, and gave NaN or Inf")
                checks.notes.append(f"{what} was computed: this runtime has no such limit")
            after = stepper.feed([text[:20], *([token] for token in text[20:])])
            same = Comparisons(Allowance(1.0, _AS_BEFORE, "of the row's RMS, after what was asked", relative=True))
            checks.see(same.see(f"after {what}", before, after, 0), same.verdict().message)
    return checks.verdict()


def _talkative(session: TargetSession) -> PromptCase:
    """The first prompt of the run whose golden answer goes on for long enough, or for longest, of those it can take."""
    run, able = session.run, Stepper(session).able
    found = [run.case(suite, case.id) for suite in run.settings.suites for case in run.golden(suite).manifest.cases]
    found = [p for p in found if not p.case.given and len(p.case.tokens) > 1]
    found = [p for p in found if not able.refuses(len(p.case.tokens), _NEW_TOKENS)]
    if not found:
        raise Unsupported("the run has no prompt to be answered that the session can take", "name a suite: --prompts")
    return max(found, key=lambda prompt: min(len(prompt.case.continuation), _NEW_TOKENS))


def _generate(session: TargetSession, prompt: PromptCase, limit: int, ends: Sequence[int]) -> list[int]:
    asked = {"prompt": list(prompt.case.tokens), "max_new_tokens": limit, "end_tokens": list(ends)}
    tokens: list[int] = session.call("generate", **asked)
    return tokens


def _answer(tokens: Sequence[int]) -> str:
    return f"{len(tokens)} tokens ending in {_few(tokens[-3:])}" if tokens else "nothing"


def _few(tokens: Sequence[int]) -> str:
    return " ".join(map(str, tokens[:5])) + (" ..." if len(tokens) > 5 else "")
