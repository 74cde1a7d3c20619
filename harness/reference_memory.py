"""Whether a reference is computed with all weights in memory, or a layer at a time."""

from __future__ import annotations

import psutil

from harness.checkpoint import Checkpoint
from harness.errors import ResourceError
from harness.layout import Layout
from harness.streaming.room import least_for_reference


def must_stream(checkpoint: Checkpoint, tokens: int, memory: int | None = None, *, rounded: bool = False) -> bool:
    """Whether the references on weights of a checkpoint's size are computed a layer at a time.

    `tokens`: of the longest text. `memory`: bytes that may be taken, what is free by default. `rounded`: arithmetics
    that round the weights are asked for, so that weights are held twice. Raises ResourceError where a layer at a time
    does not fit either.
    """
    free = int(psutil.virtual_memory().available) if memory is None else memory
    whole = whole_reference(checkpoint, tokens, rounded=rounded)
    if whole <= free:
        return False
    needed = least_for_reference(Layout.of(checkpoint.config), tokens, rounded=rounded)
    if needed > free:
        raise ResourceError(
            f"a reference on weights of {checkpoint.name} needs about {whole / 2**30:.1f} GiB of memory, and "
            f"{needed / 2**30:.1f} GiB a layer at a time; {free / 2**30:.1f} GiB may be used",
            "close other programs, raise --memory, or judge on shorter prompts (--prompts FILE)",
        )
    return True


def whole_reference(checkpoint: Checkpoint, tokens: int, *, rounded: bool = False) -> int:
    """Bytes that a reference takes with all weights in FP32, and with what a text of so many tokens takes beside."""
    scores = tokens * tokens * int(checkpoint.config["num_attention_heads"]) * 4 * 3
    weights = checkpoint.parameters() * 4 * (2 if rounded else 1)
    return weights + tokens * checkpoint.vocabulary * 4 * 3 + scores + (1 << 30)
