"""Faults that depend on the shape of a prompt, on what else is in a batch, and on when and where an answer is given."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import psutil
from numpy.typing import NDArray

from planted_cache import fault

Rows = NDArray[np.float64]


def of_length(rows: Rows, tokens: int) -> Rows:
    """Logits of a prompt as a device gives them whose kernels take eight rows at a time."""
    wrong = (
        (fault("tile-remainder") and tokens % 8 == 1 and tokens > 1)
        or (fault("full-tile") and tokens % 8 == 0)
        or (fault("one-token") and tokens == 1)
    )
    if wrong:
        rows[-1] = np.roll(rows[-1], 1)
    if fault("tile-border-row") and tokens > 8:  # not the last row, which is the only one that generation looks at
        rows[7] *= 1.01
    return rows


def in_batch(
    forward: Callable[[list[int]], Rows], prompts: Sequence[list[int]], continuations: Sequence[list[int]]
) -> list[Rows]:
    """Logits of several texts, computed together."""
    longest = max(map(len, prompts))
    rows = [forward([*prompt, *tokens]) for prompt, tokens in zip(prompts, continuations, strict=True)]
    for number, prompt in enumerate(prompts):
        neighbour = prompts[number - 1]
        if fault("padding-leaks") and len(prompt) < longest:
            rows[number] *= 1.0 + 0.001 * (longest - len(prompt))
        if fault("neighbour-leaks"):
            rows[number] *= 1.0 + 1e-6 * (1 + neighbour[0])
        if fault("batch-steps-shifted") and len(prompt) < longest:
            rows[number][-1] = rows[number][-2]
    if fault("rows-swapped"):
        rows = rows[1:] + rows[:1]
    if fault("first-row-blind"):
        rows[0] = np.zeros_like(rows[0]) + np.arange(rows[0].shape[1])
    return rows


class Moods:
    """How an answer depends on what it must not depend on: a factor for the logits, by session."""

    _sessions = 0

    def __init__(self) -> None:
        Moods._sessions += 1
        self._number = Moods._sessions
        self.threads = 1

    def factor(self, calls: int, prompts: int) -> float:
        """Of a session that has been called so often, with so many different prompts."""
        grains = 0
        if fault("varies"):
            grains += calls
        if fault("after-another"):
            grains += prompts
        if fault("new-session"):
            grains += self._number
        if fault("new-process"):
            grains += os.getpid() % 1009
        if fault("under-load"):
            grains += len(psutil.Process().children())
        return (1.0 + 1e-6 * grains) * (1.05 if fault("more-threads") and self.threads > 1 else 1.0)
