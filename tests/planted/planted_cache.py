"""What the planted session remembers of its texts: a cache that is right, unless a fault is planted in it."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from harness import phi3_float64
from harness.checkpoint import Checkpoint


def fault(name: str) -> bool:
    """Whether this fault is planted."""
    return name in os.environ.get("PLANTED_FAULT", "").split(",")


class PlantedCache:
    """The token ids that a device believes it has been fed, by text."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._texts: dict[int, list[int]] = {0: []}
        self._text = 0
        self._broken = False

    @property
    def tokens(self) -> list[int]:
        """The text that is being fed."""
        return self._texts[self._text]

    def reset(self) -> None:
        """Forget the text."""
        left = self.tokens[-1:] if fault("reset-leaks") and len(self.tokens) > 30 else []
        self._texts[self._text] = left

    def refuse(self, tokens: Sequence[int]) -> None:
        """Raise what a runtime raises for a text that is too long, or for impossible tokens."""
        size = self._checkpoint.vocabulary
        if not fault("takes-any-token") and not all(0 <= token < size for token in tokens):
            self._broken |= fault("dies-inside-after-refusal")
            raise RuntimeError(f"Gather: index out of bounds, the vocabulary has {size} entries")
        if len(self.tokens) + len(tokens) > self._checkpoint.max_tokens and not fault("no-limit"):
            self._broken |= fault("dies-inside-after-refusal")
            raise RuntimeError("" if fault("refuses-without-a-word") else "the KV cache is full")

    def feed(self, tokens: Sequence[int]) -> NDArray[np.float64]:
        """Logits `[n, V]` of n more tokens."""
        chunk, first = bool(self.tokens) and len(tokens) > 1, not self.tokens
        if chunk and fault("chunk-forgets"):
            self._texts[self._text] = []
        if chunk and fault("chunk-over-border") and len(self.tokens) % 16 > (len(self.tokens) + len(tokens)) % 16 > 0:
            tokens = [tokens[0], *tokens[:-1]]
        self.tokens.extend(tokens)
        seen = self.tokens
        if fault("cache-wraps") and len(seen) >= self._checkpoint.max_tokens - 1:
            seen = [*seen[:-2], seen[-1]]
        rows = self._forward([token % self._checkpoint.vocabulary for token in seen])[-len(tokens) :]
        if first and fault("sees-later"):
            rows[:-1] += 1e-3 * tokens[-1]
        return rows * (1.5 if self._broken else 1.0)

    def rewind(self, length: int) -> None:
        """Keep the first tokens."""
        del self.tokens[length + fault("rewinds-one-short") :]

    def fork(self) -> list[int]:
        """A copy of the text."""
        return self.tokens if fault("branch-shared") else list(self.tokens)

    def resume(self, kept: list[int]) -> None:
        """Go on from a copy."""
        self._texts[self._text] = kept if fault("branch-shared") else list(kept)

    def switch(self, text: int) -> None:
        """Go on with another text."""
        if not fault("texts-mix"):
            self._text = text
            self._texts.setdefault(text, [])

    def _forward(self, tokens: list[int]) -> NDArray[np.float64]:
        window = self._checkpoint.config.get("sliding_window")
        if fault("window-never-moves") and window and len(tokens) > window:
            self._checkpoint.config["sliding_window"] = None
        try:
            return phi3_float64.forward(self._checkpoint, [tokens])[0]
        finally:
            self._checkpoint.config["sliding_window"] = window
