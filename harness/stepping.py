"""A started session driven step by step, and what it ought to give, from a reference that keeps no state."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic, CachePrecision
from harness.backend import Capabilities
from harness.consistency import Allowance
from harness.decompose import at_once
from harness.errors import Unsupported
from harness.longrope import crossed, switch_of
from harness.metrics import centred_rms_error
from harness.sessions import TargetSession

Logits = NDArray[np.float32]

# Below this share of the logits' own size nothing is told apart: a few roundings of FP32.
_FLOOR = 1e-6
# A cache is filled by so many steps of one token at most.
_MOST_STEPS = 256
# Logits of one text that are asked for at once, in bytes: the session's, the reference's and what compares them are
# held at the same time. That is 8,371 tokens of a vocabulary of 32,064, or 1,341 of one of 200,064.
_MOST_LOGITS = 1 << 30


class Expected(NamedTuple):
    """What a text ought to give: rows `[n, V]`, and how far right answers lie apart at each, in logits, `[n]`."""

    rows: Logits
    spread: NDArray[np.float64]


class Stepper:
    """Operations on a session, one by one. All raise what `TargetSession.call` raises."""

    def __init__(self, session: TargetSession) -> None:
        self._session = session

    @property
    def able(self) -> Capabilities:
        """What the session can take."""
        return self._session.info.capabilities if self._session.info else Capabilities()

    @property
    def context(self) -> int:
        """The most tokens that a text may have, by the checkpoint and by the session."""
        context = self._session.run.settings.checkpoint.max_tokens
        return min(context, self.able.max_tokens or context)

    @property
    def holdable(self) -> int:
        """The most tokens of a text whose logits are asked for at once, for want of memory to compare more in."""
        return _MOST_LOGITS // (4 * self._session.run.settings.checkpoint.vocabulary)

    def prompt_to_fill(self, steps: int) -> int:
        """The longest prompt after which so many tokens, or more, are needed one by one to fill the context.

        Raises Unsupported where these would be too many, as in a session that takes short prompts only.
        """
        prompt = min(self.context - steps, self.able.max_prompt or self.context)
        if self.context - prompt > _MOST_STEPS:
            raise Unsupported(f"{self.context - prompt} steps would be needed to fill the cache", self.able.longer)
        return prompt

    def need_room(self, tokens: int) -> None:
        """Raises Unsupported where the logits of so many tokens are more than are asked for at once."""
        if tokens > self.holdable:
            size = tokens * 4 * self._session.run.settings.checkpoint.vocabulary / (1 << 30)
            remedy = "load the session for a shorter context, where its runtime has an option for that"
            raise Unsupported(
                f"the logits of {tokens} tokens are {size:.1f} GiB, and 1 GiB is compared at most", remedy
            )

    def reset(self) -> None:
        """Forget all tokens."""
        self._session.call("reset")

    def append(self, tokens: Sequence[int]) -> Logits:
        """Feed `[n]` tokens: `[n, V]` float32, or `[1, V]` where only the last token has logits."""
        rows: Logits = self._session.call("append", tokens=list(tokens))
        return rows

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens."""
        self._session.call("rewind", length=length)

    def fork(self, name: int) -> None:
        """Keep the state under a number."""
        self._session.call("fork", name=name)

    def resume(self, name: int) -> None:
        """Return to a state kept."""
        self._session.call("resume", name=name)

    def switch(self, text: int) -> None:
        """Go on with another text."""
        self._session.call("switch", text=text)

    def batch(self, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]) -> list[Logits]:
        """Several prompts at once, each with a continuation of the same length: `[n_i + m, V]` float32 of each."""
        asked = {"prompts": [list(p) for p in prompts], "continuations": [list(c) for c in continuations]}
        rows: list[Logits] = self._session.call("batch", **asked)
        return rows

    def feed(self, chunks: Sequence[Sequence[int]]) -> Logits:
        """All chunks of one text after a reset, the first as a prompt: their rows one after the other."""
        self.reset()
        return np.concatenate([self.append(chunk) for chunk in chunks])

    @contextmanager
    def left_clean(self) -> Iterator[Stepper]:
        """See that whatever was fed is forgotten in the end, if its process lives on."""
        self.reset()
        try:
            yield self
        finally:
            if self._session.alive:
                self.reset()


class Oracle:
    """What a session ought to give for any text, each computed anew, in the arithmetic found to be in effect.

    From the reference on the artifact's exact weights where there is one, else from the FP32 golden reference, by the
    looser limits on the total error.
    """

    def __init__(self, session: TargetSession) -> None:
        self._session = session
        inference = session.infer()
        self._references = session.references() if inference is not None else None
        self._inference = inference

    def allowance(self, text: Sequence[int] = ()) -> Allowance:
        """How far a row of the session may lie from what it ought to be.

        With a text, fed at once: by not less than honest variants lie apart on this text.
        """
        policy = self._session.run.settings.policy
        if self._inference is None:
            bound = policy.limits_of(self._session.compute_class).logits.relative_worst
            return Allowance(1.0, bound.limit, f"of the row's RMS: {bound.origin}", relative=True)
        bound = policy.implementation_of(self._inference.arithmetic.compute_class).worst
        unit = max(self._inference.pooled.get("prefill_worst", 0.0), self._inference.pooled.get("decode_worst", 0.0))
        if text and self._references is not None:
            variants = self._references.yardsticks(text, len(text), self._inference.arithmetic)
            unit = max(unit, *(float(errors.max()) for errors in variants.values()))
        return Allowance(max(unit, _FLOOR), bound.limit, f"the yardstick; {bound.origin}")

    def rows(self, tokens: Sequence[int], prefill: int) -> Expected:
        """What a text ought to give of which `prefill` tokens were fed at once, and the others in whatever way.

        Those may meet keys and values as computed or as the cache gives them back: `spread` is how far these lie apart.
        Past LongRoPE's switch that a text crosses after its prompt, keys of before keep the short factors; no chunk may
        lie on both sides of it.
        """
        run = self._session.run
        switch = crossed(switch_of(run.settings.checkpoint.config), prefill, len(tokens))
        if self._references is None or self._inference is None:
            rows = run.golden_rows(tokens, prefill if switch else None)
            return Expected(rows, np.zeros(rows.shape[0]))
        arithmetic = self._inference.arithmetic
        if switch:
            before = self.rows(tokens[:switch], prefill).spread
            spread = np.concatenate([before, np.full(len(tokens) - switch, before.max())])
            return Expected(self._references.logits(tokens, at_once(prefill), arithmetic), spread)
        whole = self._references.logits(tokens, len(tokens), arithmetic)
        if prefill >= len(tokens) or not _rounds(arithmetic):
            return Expected(whole, np.zeros(whole.shape[0]))
        cached = self._references.logits(tokens, at_once(prefill), arithmetic)
        return Expected(cached, centred_rms_error(whole, cached))


def _rounds(arithmetic: Arithmetic) -> bool:
    """Whether the cache gives back other keys and values than were put in."""
    return arithmetic.systematic.cache is not CachePrecision.F32


def text_of(session: TargetSession, length: int, start: int = 0) -> list[int]:
    """`length` token ids of the goldens' prompts, one prompt after the other and over again, from the `start`th on.

    Sensible text: on token ids drawn at random, a model's rounding is not what it is on its users' prompts.
    """
    run = session.run
    cases = [case for suite in run.settings.suites for case in run.golden(suite).manifest.cases]
    tokens = list(itertools.chain.from_iterable(case.sequence for case in sorted(cases, key=lambda c: c.id)))
    if not tokens:
        raise Unsupported("the run has no prompts to take a text from")
    start += start // len(tokens)  # a text that begins where another does, times later, is not to be the same
    return list(itertools.islice(itertools.cycle(tokens), start, start + length))
