"""What the battery plants, and what became of it."""

from __future__ import annotations

import enum
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.products import Products

Logits = NDArray[np.float32]


class Cause(str, enum.Enum):
    """What a finding is put down to. Where several checks fail, the first in this order names the cause."""

    PROTOCOL = "protocol"
    EVIDENCE = "evidence"
    AUDIT = "weight audit"
    IMPLEMENTATION = "implementation error"
    QUANTISATION = "quantisation error"


class Planted(msgspec.Struct, frozen=True):
    """A fault: its name, its strength in words, where it was planted, and the cause it ought to be put down to."""

    name: str
    strength: str
    place: str
    expected: Cause


class Trial(msgspec.Struct, frozen=True):
    """One fault or legitimate variant, judged.

    `failed`: which of the product's checks failed, with the first line of each. `effect`: how far the fault moves the
    logits of the same device, in multiples of its yardstick; None where there are no logits to compare. `noise`: how
    far other honest devices lie from the same one, in that unit. `ratios`: the largest mean and the largest worst
    implementation error that was judged, in yardsticks. `rules`: for each rule in use elsewhere whether it would have
    raised an alarm; None where it says nothing of such a fault.
    """

    planted: Planted
    failed: dict[Cause, str]
    effect: float | None
    rules: dict[str, bool | None]
    noise: float = 1.0
    ratios: tuple[float, float] = (0.0, 0.0)

    @property
    def caught(self) -> bool:
        """Whether any check failed."""
        return bool(self.failed)

    @property
    def cause(self) -> Cause | None:
        """What the product puts it down to."""
        return next((cause for cause in Cause if cause in self.failed), None)

    @property
    def needed(self) -> bool:
        """Whether missing it counts: its effect is above the noise of honest ways of computing the same."""
        return self.effect is None or self.effect > self.noise


class Answers(msgspec.Struct, frozen=True):
    """What a device gave: logits `[n, V]` float32 for each prompt, the arithmetics that it may use, single products."""

    logits: list[Logits]
    permitted: tuple[Any, ...]
    products: Products = {}
