"""Several prompts in one batch: each row equals itself alone, whoever its neighbours are and however it is padded.

Batch invariance is no promise of any runtime to the last bit: a product of more rows may be summed in another order. So
rows are held against themselves alone by what honest rounding comes to, and how many positions are the same to the last
bit is recorded. Neighbours of the same shape are another matter: they change no order of anything.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from harness.compare import Outcome, Verdict
from harness.consistency import Allowance, Comparisons
from harness.errors import Unsupported
from harness.longrope import switch_of
from harness.sessions import TargetSession
from harness.stepping import Logits, Oracle, Stepper, text_of

# Tokens that are decoded after each prompt.
_STEPS = 2
# For each batch its rows: how long the prompt is, and where in the goldens' texts it begins.
BATCHES: dict[str, tuple[tuple[int, int], ...]] = {
    "size-1": ((24, 0),),
    "size-2": ((24, 0), (24, 500)),  # of one length, so nothing is padded
    "size-3": ((5, 0), (24, 500), (17, 900)),
    "size-5": ((15, 0), (16, 0), (17, 0), (33, 0), (64, 0)),  # across borders of tiles
    # A row of one token among long ones, and each prompt in two rows.
    "size-8": ((65, 0), (1, 500), (24, 900), (40, 300), (24, 900), (65, 0), (40, 300), (1, 500)),
}
# Places in the goldens' texts that are looked at for one to begin a prompt at.
_SOUGHT = 256
# The length of a row and of its neighbour.
_ROW, _NEIGHBOUR = 20, 33


def like_alone(session: TargetSession, name: str) -> Verdict:
    """Each row of a batch, its prompt and some tokens decoded after it, equals itself alone."""
    # Under LongRoPE the longest row decides on the factors of all of them, by design: no row may be past the switch.
    switch = switch_of(session.run.settings.checkpoint.config)
    longest = max(length for length, _ in BATCHES[name]) if switch is None else max(1, switch - _STEPS)
    rows = [_row(session, min(length, longest), start) for length, start in BATCHES[name]]
    oracle, stepper = Oracle(session), Stepper(session)
    found = Comparisons(oracle.allowance())
    together = _together(stepper, rows)
    alone: dict[tuple[int, ...], Logits] = {}
    with stepper.left_clean():
        for row in dict.fromkeys(rows):
            prompt = row[:-_STEPS]
            alone[row] = stepper.feed([prompt, *([token] for token in row[-_STEPS:])])
    for number, (row, logits) in enumerate(zip(rows, together, strict=True)):
        what = f"row {number + 1} of {len(rows)} ({len(row) - _STEPS} tokens, then {_STEPS})"
        expected = alone[row]
        # A token alone meets itself as the cache gives it back; in a batch, as it was computed.
        spread = oracle.rows(row, 1).spread[-expected.shape[0] :] if len(row) == 1 + _STEPS else 0.0
        found.see(what, expected, logits, len(row) - expected.shape[0], spread)
    return found.verdict()


def neighbours(session: TargetSession) -> Verdict:
    """A row is the same whatever text is in the row beside it, if that is of the same length.

    To the last bit where the runtime repeats itself to the last bit.
    """
    stepper = Stepper(session)
    exact = stepper.able.repeats_exactly
    found = Comparisons(Allowance(1.0, 0.0, "the runtime repeats itself") if exact else Oracle(session).allowance())
    row, one = _row(session, _ROW, 500), _row(session, _NEIGHBOUR, 0)
    other = _row(session, _NEIGHBOUR, 700, unlike=one[0])
    first, second = _together(stepper, [one, row]), _together(stepper, [other, row])
    found.see("a row, and the same row beside another text,", first[1], second[1], len(row) - first[1].shape[0])
    verdict = found.verdict()
    if verdict.outcome is Outcome.PASS and np.array_equal(first[0], second[0]):
        # A batch that answers the same to both texts has not computed what it was given.
        return Verdict(Outcome.FAIL, verdict.numbers, verdict.limits, "two different texts in one row gave the same")
    return verdict


def _together(stepper: Stepper, rows: Sequence[tuple[int, ...]]) -> list[Logits]:
    return stepper.batch([row[:-_STEPS] for row in rows], [row[-_STEPS:] for row in rows])


def _row(session: TargetSession, length: int, start: int, unlike: int | None = None) -> tuple[int, ...]:
    """A prompt with what follows it, as one text, which begins with another token than `unlike`.

    Neither the prompt ends nor does what follows go on from a token that a runtime may take for padding, or for the end
    of the row. Raises Unsupported where the prompts have no such.
    """
    checkpoint = session.run.settings.checkpoint
    padding = {*checkpoint.end_tokens, checkpoint.config.get("pad_token_id")}
    for begin in range(start, start + _SOUGHT):
        text = text_of(session, length + _STEPS, begin)
        if padding.isdisjoint(text[length - 1 : -1]) and text[0] != unlike:
            return tuple(text)
    raise Unsupported("the run's prompts are the same token over and over", "add a prompt with some text to it")
