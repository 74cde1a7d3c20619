"""Known faults that a part of the implementation error may be: a matched filter.

Rounding in half precision is random, and hides every fault that moves the logits by less; but it does not resemble
one. A *suspect* is a fault that kernels are known to have (another scale of attention, a window that is one off). The
reference computes with it, and the *share* of its effect that is in the device's error is estimated by least squares,
each position weighted by its yardstick: 0 for an honest device, 1 for one with the fault, to within the standard
error, which falls with the number of positions and not with the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare import Outcome, Verdict

Floats = NDArray[np.float64]

# Of a suspect's whole effect: nearer to having the fault than to not having it.
GUILTY = 0.5
# Standard errors that a share must lie beyond that; and the largest standard error at which anything is concluded.
_SIGMAS = 3.0
_BLIND = 0.15
# What is twice the effect of a fault that one has or has not is another fault.
_TOO_MUCH = 1.5
# Neighbouring positions share keys, values and rounding: they are left out together for the standard error.
_BLOCK = 8
# Blocks with an effect, of which a standard error is known: of one it is always 0, and of two much too often small.
_FEWEST = 3


class Lineup(msgspec.Struct, frozen=True):
    """What the worker measured: for every suspect `[n]` products of its effect with the error, and of it with itself.

    Positions of all prompts one after another, `lengths` of them each; both products are sums over the vocabulary of
    centred logits, weighted. `error`: the error's own, `[n]`. `sized`: the suspects that have a size, small enough for
    their effect to be in proportion to it: a device may have more of one, or the opposite.
    """

    lengths: list[int]
    products: Mapping[str, Floats]
    powers: Mapping[str, Floats]
    error: Floats
    sized: Sequence[str] = ()


class Suspicion(msgspec.Struct, frozen=True):
    """One suspect: the share of its effect that was found, its standard error, and what part of the error it explains.

    `explained` is a share of the error's weighted power. Where a suspect has no effect on the prompts asked, or the
    standard error is too large to conclude anything or too few positions tell it, `heard` is false. `sized` as in
    `Lineup`.
    """

    name: str
    share: float
    deviation: float
    explained: float
    heard: bool
    sized: bool

    @property
    def guilty(self) -> bool:
        """Whether the device has the fault, or one of the same effect."""
        if not self.heard or not (self.sized or 0.0 < self.share < _TOO_MUCH):
            return False
        return abs(self.share) - _SIGMAS * self.deviation > GUILTY


def weigh(lineup: Lineup) -> list[Suspicion]:
    """Every suspect, those that explain most of the error first."""
    starts = _blocks(lineup.lengths)
    whole = float(lineup.error.sum())
    found = []
    for name, products in lineup.products.items():
        tops = np.add.reduceat(products, starts)
        bottoms = np.add.reduceat(lineup.powers[name], starts)
        top, bottom, sized = float(tops.sum()), float(bottoms.sum()), name in lineup.sized
        if not bottom > 0.0:
            found.append(Suspicion(name, 0.0, math.inf, 0.0, heard=False, sized=sized))
            continue
        share = top / bottom
        # The sandwich estimate of a ratio, a block of positions being one observation.
        deviation = float(np.sqrt(np.square(tops - share * bottoms).sum())) / bottom
        explained = top * top / bottom / whole if whole > 0.0 else 0.0
        known = np.count_nonzero(bottoms) >= _FEWEST and deviation <= max(_BLIND, abs(share) / 6)
        found.append(Suspicion(name, share, deviation, explained, bool(known), sized))
    return sorted(found, key=lambda one: -one.explained)


def _blocks(lengths: Sequence[int]) -> list[int]:
    """Where each block of neighbouring positions begins; none spans two prompts."""
    starts: list[int] = []
    at = 0
    for length in lengths:
        starts += range(at, at + length, _BLOCK)
        at += length
    return starts


def judge_suspects(found: Sequence[Suspicion]) -> Verdict:
    """No suspect is guilty. The one that explains most is named."""
    numbers = {f"share of {one.name}": one.share for one in found if one.heard}
    numbers |= {f"deviation of {one.name}": one.deviation for one in found if one.heard}
    limits = {"share": GUILTY}
    if not numbers:
        message = (
            "of no suspect the share can be told: none has an effect on the prompts asked, or its standard error is "
            f"above {_BLIND:g}"
        )
        return Verdict(Outcome.FAIL, {}, limits, message)
    guilty = [one for one in found if one.guilty]
    if not guilty:
        return Verdict(Outcome.PASS, numbers, limits)
    first = guilty[0]
    message = (
        f"implementation error: the device computes as if with {first.name}: {first.share:.3g} of its effect "
        f"(standard error {first.deviation:.2g}; allowed: {GUILTY:g}), which explains {100 * first.explained:.3g} % of "
        "the error's power"
    )
    return Verdict(Outcome.FAIL, numbers, limits, message)
