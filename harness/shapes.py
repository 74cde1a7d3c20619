"""Prompts of every length: kernels work in tiles, and a length that fills no tile is where they go wrong.

By causality the rows of one pass over the longest text serve all its beginnings, so the reference is asked once, or
once on either side of LongRoPE's switch, where a prompt is rotated by other factors from its first token on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from harness.backend import Capabilities
from harness.checkpoint import Checkpoint
from harness.compare import Outcome, Verdict
from harness.consistency import Comparisons
from harness.errors import Unsupported
from harness.longrope import switch_of
from harness.sessions import TargetSession
from harness.stepping import Expected, Oracle, Stepper, text_of

# Lengths of tiles and chunks are powers of two; no kernel is known to have one below 16 or above 4096.
_BORDERS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# How far past the sliding window lengths are asked.
_PAST = 4
_ONE_TOKEN_PROMPTS = 4
# A session that computes all lengths in one shape is asked one in so many, and one whose runtime compiles for each one
# in so many and those around borders; so much longer than a multiple of it, which is off every border.
_STATIC_STEP, _COMPILED_STEP, _BETWEEN = 16, 32, 5
# Prompts up to here are held against a text of their own, which is sooner computed than the longest.
_SHORT = 72
# The others share a text of this length, or of the window's with what is past it, where that is shorter: the window of
# Phi-3.5-mini has 262,144 tokens.
_LONG = 512


def one_token(session: TargetSession) -> Verdict:
    """A prompt of a single token, which many runtimes take for a step of decoding, after some steps of decoding."""
    oracle, stepper = Oracle(session), Stepper(session)
    found = Comparisons(oracle.allowance())
    with stepper.left_clean():
        stepper.feed([text_of(session, 24), *([token] for token in text_of(session, 2, start=24))])
        for token in dict.fromkeys(text_of(session, _ONE_TOKEN_PROMPTS)):
            stepper.reset()
            expected = oracle.rows([token], 1)
            found.see(f"the prompt of token {token} alone", expected.rows, stepper.append([token]), 0, expected.spread)
    return found.verdict()


def at_border(session: TargetSession, border: int) -> Verdict:
    """Prompts one token short of a border, of just its length, and one past it."""
    return _of_lengths(session, _around(border))


def past_window(session: TargetSession) -> Verdict:
    """Prompts that the sliding window just covers, and that it does not."""
    window = session.run.settings.checkpoint.window
    return _of_lengths(session, range(max(2, window), window + _PAST + 1))


def past(session: TargetSession, length: int) -> Verdict:
    """Prompts around all borders past a length, up to the sliding window."""
    window = session.run.settings.checkpoint.window
    asked = [n for border in _BORDERS for n in _around(border) if length < n <= window + _PAST]
    if not asked:
        raise Unsupported(f"the checkpoint's window is {window}, and prompts past it are a case of their own")
    return _of_lengths(session, asked)


def in_band(session: TargetSession, first: int, last: int) -> Verdict:
    """Prompts of every length from `first` to `last`, up to the sliding window.

    A session that computes all lengths in one shape, or whose runtime compiles for each, is asked fewer. That is
    decided by what the session is and not by how fast it is, so that two drivers of one device are asked the same.
    """
    window = session.run.settings.checkpoint.window
    if first > window:
        raise Unsupported(f"the checkpoint's window is {window}, and prompts past it are a case of their own")
    lengths = range(first, min(last, window) + 1)
    asked, why = _worth_asking(Stepper(session).able, lengths)
    verdict = _of_lengths(session, asked)
    numbers = {**verdict.numbers, "lengths": float(len(lengths)), "asked": float(len(asked))}
    note = f"{len(asked)} of {len(lengths)} lengths were asked: {why}" if why else ""
    message = note if verdict.outcome is Outcome.PASS else verdict.message
    return msgspec.structs.replace(verdict, numbers=numbers, message=message)


def _worth_asking(able: Capabilities, lengths: Sequence[int]) -> tuple[list[int], str]:
    """The lengths of a band that a session is asked, and why they are not all."""
    if able.max_prompt is not None:
        return [n for n in lengths if n % _STATIC_STEP == _BETWEEN], "the session computes all in one shape"
    if able.compiles_lengths:
        asked = [n for n in lengths if n % _COMPILED_STEP == _BETWEEN or _at_any_border(n)]
        return asked, "the runtime compiles for each new length"
    return list(lengths), ""


def _around(border: int) -> list[int]:
    return [border - 1, border, border + 1]


def _at_any_border(length: int) -> bool:
    return any(length in _around(border) for border in _BORDERS)


def _of_lengths(session: TargetSession, lengths: Sequence[int]) -> Verdict:
    """Hold every row of a prompt of each length, or its last where there are no others, against the oracle's."""
    stepper, oracle = Stepper(session), Oracle(session)
    fitting = [n for n in lengths if n <= min(stepper.context, stepper.able.max_prompt or n)]
    if fitting:
        stepper.need_room(fitting[0])
        fitting = [n for n in fitting if n <= stepper.holdable]
    else:
        raise Unsupported(f"the session takes {stepper.able.max_prompt or stepper.context} tokens", stepper.able.longer)
    text = _text(session, max(fitting))
    found = Comparisons(oracle.allowance(text))
    wrong = []
    with stepper.left_clean():
        for length, expected in _expected(session.run.settings.checkpoint, oracle, text, fitting):
            stepper.reset()
            rows = stepper.append(text[:length])
            first = 0 if stepper.able.whole_prompt_logits else length - 1
            if not found.see(f"a prompt of {length} tokens", expected.rows[first:length], rows, first):
                wrong.append(length)
    verdict = found.verdict()
    if not wrong:
        return verdict
    message = f"wrong of {len(fitting)} lengths: {pattern(wrong, fitting)}\n{verdict.message}"
    return msgspec.structs.replace(verdict, message=message)


def _text(session: TargetSession, longest: int) -> list[int]:
    """The text whose beginnings the prompts are; one for all long ones, so that what it ought to give is found once."""
    if longest <= _SHORT:
        return text_of(session, longest)
    checkpoint = session.run.settings.checkpoint
    return text_of(session, max(longest, min(checkpoint.window + _PAST, checkpoint.max_tokens, _LONG)))


def _expected(
    checkpoint: Checkpoint, oracle: Oracle, text: Sequence[int], lengths: Sequence[int]
) -> Iterator[tuple[int, Expected]]:
    """Each length, and what the longest text on its side of LongRoPE's switch ought to give."""
    switch = switch_of(checkpoint.config) or len(text)
    for side in ([n for n in lengths if n <= switch], [n for n in lengths if n > switch]):
        if side:
            longest = min(switch, len(text)) if side[0] <= switch else len(text)
            expected = oracle.rows(text[:longest], longest)
            yield from ((length, expected) for length in side)


def pattern(wrong: Sequence[int], asked: Sequence[int]) -> str:
    """Lengths in words, where possible as a kernel would have it: `17, 33, 49: all that are 16 n + 1`.

    `wrong` and `asked` ascend; the first are among the second.
    """
    shown = ", ".join(f"{a}" if a == b else f"{a} to {b}" for a, b in _runs(wrong, asked))
    for modulus in (4, 8, *_BORDERS):
        residue = wrong[0] % modulus
        alike = [n for n in asked if n >= wrong[0] and n % modulus == residue]
        if len(wrong) > 1 and alike == list(wrong):
            return (
                f"{shown}: all that are {modulus} n + {residue}" if residue else f"{shown}: all multiples of {modulus}"
            )
    return shown


def _runs(wrong: Sequence[int], asked: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first and last of each run of wrong lengths with no right one between."""
    start = last = None
    for n in asked:
        if n in wrong:
            start, last = (n if start is None else start), n
        elif start is not None and last is not None:
            yield start, last
            start = None
    if start is not None and last is not None:
        yield start, last
