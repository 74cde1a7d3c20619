"""Every sublayer of a model judged on the device's own input.

The reference computes attention k from the residual stream that the device had before it, and is held against what
the device had after it; then the device's own values take the place of the reference's. So an error counts where it
is made, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic, CachePrecision
from harness.localise import Examined
from harness.reference.artifact import ArtifactReference
from harness.reference.kernels import PLAIN, VARIANTS, Variant
from harness.reference.model import Steps, TokenSequence, together
from harness.states import LOGITS

# Relative changes that have a few int8 activations a row, or one in a few rows, round the other way; they are far
# less themselves than what that costs.
_TIPPING = Variant("tipped", jitter=2e-5)
_SELDOM = Variant("seldom", jitter=5e-7)
_Held = Mapping[str, NDArray[np.float32]]
Errors = NDArray[np.float64]


def examine(
    reference: ArtifactReference,
    states: _Held,
    tokens: Sequence[int],
    prefill: int,
    permitted: Sequence[Arithmetic],
) -> Steps[Examined]:
    """Relative errors of every sublayer of a device, and of honest variants on the same input.

    `states` are those of `harness.states.GivesStates` for `tokens`. The arithmetic in effect is taken to be the
    permitted one in which the sublayers lie nearest on the geometric mean, which a fault in a few does not sway.
    """
    fed = TokenSequence(
        tuple(tokens), 0 if prefill == 1 else prefill
    )  # one token is computed by the kernels of decoding
    found = yield from _first(reference, fed, permitted, states)
    distances = {arithmetic: _distance(errors, fed.prefill) for arithmetic, errors in found.items()}
    nearest = min(permitted, key=lambda one: (distances[one], -one.block))
    # The one that the others are held against comes first.
    expected = _Walk(reference, fed, nearest.systematic, states)
    drifting = _Walk(reference, fed, nearest.systematic, {}, given=states)
    coarse = (_TIPPING, _SELDOM) if _tips(nearest) else ()
    others = {
        variant.name: _Walk(reference, fed, nearest, states, variant, against=expected.computed)
        for variant in (*VARIANTS, *coarse)
    }
    yield from together([walk.forward for walk in (expected, drifting, *others.values())])
    tipped = {variant.name: others[variant.name].errors for variant in coarse}
    return Examined(
        arithmetic=str(nearest),
        distances={str(arithmetic): distance for arithmetic, distance in distances.items()},
        prefill=fed.prefill,
        own=found[nearest],
        yardsticks={variant.name: others[variant.name].errors for variant in VARIANTS},
        tipped=tipped.get(_TIPPING.name, {}),
        seldom=tipped.get(_SELDOM.name, {}),
        drift=drifting.errors,
    )


def _first(
    reference: ArtifactReference, fed: TokenSequence, permitted: Sequence[Arithmetic], states: _Held
) -> Steps[dict[Arithmetic, dict[str, Errors]]]:
    """The errors of every sublayer by every permitted arithmetic."""
    order = sorted(permitted, key=lambda one: one.weights.value)
    walks = {one: _Walk(reference, fed, one.systematic, states, given=states) for one in order}
    yield from together([walk.forward for walk in walks.values()])
    return {one: walk.errors for one, walk in walks.items()}


class _Walk:
    """What the reference computes at every place, going on from `states` where they have the place.

    Held against what was `given`, or against what one before it computes, place by place; kept where neither is there.
    """

    def __init__(
        self,
        reference: ArtifactReference,
        fed: TokenSequence,
        arithmetic: Arithmetic,
        states: _Held,
        variant: Variant = PLAIN,
        *,
        given: _Held | None = None,
        against: _Held | None = None,
    ) -> None:
        self.computed: dict[str, NDArray[np.float32]] = {}
        self.errors: dict[str, Errors] = {}
        self._given, self._against = given, against
        self._states = states
        self._jitter = variant.jitter
        self._number = {place: number for number, place in enumerate(states)}
        conclude = partial(self._hold, LOGITS)
        self.forward = reference.forward(fed, arithmetic, conclude, variant, self._see)

    def _see(self, place: str, x: torch.Tensor) -> torch.Tensor | None:
        self._hold(place, x)
        if place not in self._states:
            return None
        rows = np.array(self._states[place])
        if self._jitter:
            generator = np.random.default_rng((20261125, self._number[place]))
            rows *= (1 + self._jitter * generator.uniform(-1, 1, rows.shape)).astype(np.float32)
        return torch.from_numpy(rows)

    def _hold(self, place: str, x: torch.Tensor) -> None:
        rows = x.numpy()
        if self._given is not None:
            self.errors[place] = _error(place, rows, self._given[place])
        elif self._against is not None:
            self.errors[place] = _error(place, self._against[place], rows)
        else:
            self.computed[place] = rows.copy()


def _tips(arithmetic: Arithmetic) -> bool:
    """Whether it rounds so coarsely that one value that rounds the other way shows."""
    return arithmetic.block > 0 or arithmetic.cache is CachePrecision.U8


def _error(place: str, wanted: NDArray[np.float32], given: NDArray[np.float32]) -> Errors:
    """`[n]`: RMS of the difference in units of the RMS wanted; logits are centred first."""
    ours, theirs = wanted.astype(np.float64), given.astype(np.float64)
    if place == LOGITS:
        ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
    scale = np.sqrt((ours**2).mean(axis=1))
    found: Errors = np.sqrt(((theirs - ours) ** 2).mean(axis=1)) / np.maximum(scale, 1e-150)
    return found


def _distance(errors: Mapping[str, Errors], prefill: int) -> float:
    """The geometric mean over places, prefill and decode apart; what is not finite has no part in it."""
    parts = [rows for error in errors.values() for rows in (error[:prefill], error[prefill:])]
    means = np.array([rows.mean() for rows in parts if rows.size])
    means = means[np.isfinite(means)]
    return float(np.exp(np.log(means + 1e-9).mean())) if means.size else float("inf")


def as_plain(found: Examined) -> dict[str, object]:
    """The Struct as a dict whose arrays stay arrays, to be sent to the controller."""
    return {name: getattr(found, name) for name in msgspec.structs.asdict(found)}
