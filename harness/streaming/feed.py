"""What is asked of a pass over the weights: whole texts without a cache, or the next tokens of texts that have one."""

from __future__ import annotations

import msgspec


class Whole(msgspec.Struct, frozen=True):
    """A text that is computed at once and without a cache.

    `prefill`: of how many tokens the rotation is that of a prompt, the others' that of tokens fed one by one, which
    differs under LongRoPE alone (see `harness.longrope`). `padding`: so many rows are added and thrown away: the last
    bits of a product's rows hang on how many there are, so texts that may grow are computed at their full length.
    """

    tokens: tuple[int, ...]
    prefill: int
    padding: int = 0


class Step(msgspec.Struct, frozen=True):
    """The next tokens of a text: they are at the positions from `start` on, what lies before is in the cache.

    `slot`: the number of the text. `length`: how long the text is by whose LongRoPE factors keys are rotated.
    `wanted`: of how many of the last tokens the next token is asked.
    """

    slot: int
    tokens: tuple[int, ...]
    start: int
    length: int
    wanted: int
