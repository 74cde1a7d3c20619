"""The cache of keys and values: a text gives the same logits however it was fed, and whatever was fed before it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from harness.compare import Verdict
from harness.consistency import Comparisons
from harness.drawn import examples
from harness.errors import Unsupported
from harness.longrope import switch_of
from harness.sessions import TargetSession
from harness.stepping import Expected, Logits, Oracle, Stepper, text_of

_LENGTH = 40
_SPLITS = 12
# Tokens short of the window at which a text that is to cross it begins, and by how many it does.
_BEFORE, _PAST = 6, 12


def token_by_token(session: TargetSession) -> Verdict:
    """Decoding gives what one prefill gives: two tokens at once, then one by one."""
    return _fed(session, [_steps(2, _LENGTH)])


def in_chunks(session: TargetSession) -> Verdict:
    """Chunked prefill of any split gives what one prefill gives."""
    _need_appends(session)
    return _fed(session, examples(_splits(_LENGTH), _SPLITS))


def across_window(session: TargetSession, *, at_once: bool) -> Verdict:
    """A text that crosses the sliding window while it is decoded, or by a chunk."""
    window = session.run.settings.checkpoint.window
    total = window + _PAST
    stepper = Stepper(session)
    if total > stepper.context:
        raise Unsupported(f"the session holds {stepper.context} tokens; the window is {window}", stepper.able.longer)
    stepper.need_room(total)
    if not at_once:
        return _fed(session, [_steps(window - _BEFORE, total)])
    _need_appends(session)
    # LongRoPE's switch counts as a window where there is none. A chunk over it meets the long factors as a whole.
    over = [_BEFORE, _PAST] if switch_of(session.run.settings.checkpoint.config) == window else [_BEFORE + _PAST]
    return _fed(session, [[window - _BEFORE, *over], [window // 2, window // 2, _PAST]])


def at_capacity(session: TargetSession) -> Verdict:
    """The last tokens that the context has room for are computed like any others."""
    stepper = Stepper(session)
    capacity = stepper.context
    stepper.need_room(capacity)
    return _fed(session, [_steps(stepper.prompt_to_fill(4), capacity)], last=8)


def rewound(session: TargetSession) -> Verdict:
    """After going back, the cache holds what it held: other tokens may follow."""
    oracle, stepper = Oracle(session), Stepper(session)
    found = Comparisons(oracle.allowance())
    text, other = text_of(session, 24), text_of(session, 6, start=500)
    with stepper.left_clean():
        stepper.append(text)
        for keep in (23, 20, 7, 1):
            try:
                stepper.rewind(keep)
            except Unsupported:
                if not found.failed:  # what it did wrong before is not excused by what it does not offer
                    raise
                break
            fed = [*text[:keep], *other]
            rows = _one_by_one(stepper, other)
            _see(found, f"back to {keep} of {len(text)} tokens", oracle.rows(fed, keep), rows, len(fed))
            stepper.rewind(keep)
            _one_by_one(stepper, text[keep:])
    return found.verdict()


def branched(session: TargetSession) -> Verdict:
    """A kept state can be returned to, again and again, whatever has been fed since."""
    oracle, stepper = Oracle(session), Stepper(session)
    found = Comparisons(oracle.allowance())
    text = text_of(session, 20)
    with stepper.left_clean():
        stepper.append(text)
        stepper.fork(0)
        for start in (500, 700, 500):
            other = text_of(session, 5, start=start)
            rows = _one_by_one(stepper, other)
            _see(found, f"branch with text {start}", oracle.rows([*text, *other], len(text)), rows, len(text) + 5)
            stepper.resume(0)
    return found.verdict()


def interleaved(session: TargetSession) -> Verdict:
    """Texts that are fed in turns do not mix."""
    oracle, stepper = Oracle(session), Stepper(session)
    found = Comparisons(oracle.allowance())
    texts = [text_of(session, length, start) for length, start in ((20, 0), (9, 500), (31, 900))]
    prompts = [len(text) - 6 for text in texts]
    rows: list[list[Logits]] = [[] for _ in texts]
    try:
        for turn in range(7):
            for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
                stepper.switch(number)
                if turn == 0:
                    stepper.reset()
                    stepper.append(text[:prompt])
                else:
                    rows[number].append(stepper.append(text[prompt + turn - 1 : prompt + turn]))
    finally:
        if session.alive:
            _forget_texts(stepper, len(texts))
    for number, (text, prompt) in enumerate(zip(texts, prompts, strict=True)):
        _see(found, f"text {number + 1} of 3", oracle.rows(text, prompt), np.concatenate(rows[number]), len(text))
    return found.verdict()


def cleared(session: TargetSession) -> Verdict:
    """After a reset a text gives what it gave before: of what was fed in between nothing is left."""
    stepper, oracle = Stepper(session), Oracle(session)
    found = Comparisons(oracle.allowance())
    text = text_of(session, 12)
    expected = oracle.rows(text, 8)
    with stepper.left_clean():
        for before in (0, 1, 40, 3):
            if before:
                stepper.reset()
                stepper.append(text_of(session, before, start=700))
            stepper.reset()
            rows = np.concatenate([stepper.append(text[:8]), _one_by_one(stepper, text[8:])])
            _see(found, f"after a reset of {before} tokens", expected, rows, len(text))
    return found.verdict()


def _fed(session: TargetSession, splits: Sequence[Sequence[int]], last: int | None = None) -> Verdict:
    """Feed texts in chunks of the lengths given, and hold the rows, or the last so many, against the oracle's."""
    oracle, stepper = Oracle(session), Stepper(session)
    # By the text's own yardstick, where it is not so long that this would cost more than all the rest.
    found = Comparisons(oracle.allowance(() if last else text_of(session, sum(splits[0]))))
    with stepper.left_clean():
        for split in splits:
            text = text_of(session, sum(split))
            borders = np.cumsum([0, *split])
            stepper.reset()
            fed = [stepper.append(text[a:b]) for a, b in itertools.pairwise(borders)]
            rows = np.concatenate(fed)[-(last or len(text)) :]
            if stepper.able.whole_prompt_logits and rows.shape[0] < (last or len(text)):
                found.miss(f"{len(text)} tokens fed as {_shown(split)}: {rows.shape[0]} rows of logits")
                continue
            _see(found, f"{len(text)} tokens fed as {_shown(split)}", oracle.rows(text, split[0]), rows, len(text))
    return found.verdict()


def _see(found: Comparisons, what: str, expected: Expected, rows: Logits, length: int) -> None:
    """Compare the rows there are, which are a text's last ones."""
    count = rows.shape[0]
    found.see(what, expected.rows[-count:], rows, length - count, expected.spread[-count:])


def _one_by_one(stepper: Stepper, tokens: Sequence[int]) -> Logits:
    return np.concatenate([stepper.append([token]) for token in tokens])


def _forget_texts(stepper: Stepper, count: int) -> None:
    for number in reversed(range(count)):
        stepper.switch(number)
        stepper.reset()


def _need_appends(session: TargetSession) -> None:
    able = Stepper(session).able
    if able.max_append is not None and able.max_append < _LENGTH:
        raise Unsupported(f"after the prompt the session takes {able.max_append} token at a time")


def _steps(prompt: int, total: int) -> list[int]:
    return [prompt, *[1] * (total - prompt)]


@st.composite
def _splits(draw: st.DrawFn, total: int) -> list[int]:
    """Ways of cutting a text: the first chunk is of two tokens at least, which is a prompt's own case."""
    borders = draw(st.sets(st.integers(2, total - 1), min_size=1, max_size=8))
    edges = [0, *sorted(borders), total]
    return [b - a for a, b in itertools.pairwise(edges)]


def _shown(split: Sequence[int]) -> str:
    """`16, then 24 of one`, or the chunks' lengths where they are few."""
    if len(split) > 6 and set(split[1:]) == {1}:
        return f"{split[0]}, then {len(split) - 1} one by one"
    return " + ".join(map(str, split))
