"""The operations of a worker on the reference it has opened: prompts that drive activations high, and their peaks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.overflow import HardPrompt, Peaks


class HardPrompts:
    """Looks at the inner values of the reference on an artifact's exact weights."""

    def __init__(self, reference: Callable[[], Any]) -> None:
        self._reference = reference

    def do_hard_prompts(self, special: list[int], ordinary: list[int], length: int) -> list[HardPrompt]:
        """See `harness.reference.activations.search`."""
        from harness.reference.activations import search

        return search(self._reference(), special, ordinary, length)

    def do_peaks(self, tokens: list[int]) -> Peaks:
        """See `harness.reference.activations.peaks_of`."""
        from harness.reference.activations import peaks_of

        return peaks_of(self._reference(), tokens)
