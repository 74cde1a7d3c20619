"""Every sublayer of a model judged on the device's own input.

The reference computes attention k from the residual stream that the device had before it, and is held against what
the device had after it; then the device's own values take the place of the reference's. So an error counts where it
is made, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic, CachePrecision
from harness.localise import Examined
from harness.reference.artifact import ArtifactReference
from harness.reference.kernels import PLAIN, VARIANTS, Variant
from harness.reference.model import Phi3, TokenSequence
from harness.states import LOGITS

# Relative changes that have a few int8 activations a row, or one in a few rows, round the other way; they are far
# less themselves than what that costs.
_TIPPING = Variant("tipped", jitter=2e-5)
_SELDOM = Variant("seldom", jitter=5e-7)
_Held = dict[str, NDArray[np.float32]]


def examine(
    reference: ArtifactReference,
    states: Mapping[str, NDArray[np.float32]],
    tokens: Sequence[int],
    prefill: int,
    permitted: Sequence[Arithmetic],
) -> Examined:
    """Relative errors of every sublayer of a device, and of honest variants on the same input.

    `states` are those of `harness.states.GivesStates` for `tokens`. The arithmetic in effect is taken to be the
    permitted one in which the sublayers lie nearest on the geometric mean, which a fault in a few does not sway.
    """
    fed = TokenSequence(
        tuple(tokens), 0 if prefill == 1 else prefill
    )  # one token is computed by the kernels of decoding
    found = {
        arithmetic: _errors(_sublayers(reference, fed, arithmetic.systematic, states), states)
        for arithmetic in sorted(permitted, key=lambda one: one.weights.value)
    }
    distances = {arithmetic: _distance(errors, fed.prefill) for arithmetic, errors in found.items()}
    nearest = min(permitted, key=lambda one: (distances[one], -one.block))
    expected = _sublayers(reference, fed, nearest.systematic, states)

    def tipped(variant: Variant) -> dict[str, NDArray[np.float64]]:
        return _errors(expected, _sublayers(reference, fed, nearest, states, variant)) if _tips(nearest) else {}

    return Examined(
        arithmetic=str(nearest),
        distances={str(arithmetic): distance for arithmetic, distance in distances.items()},
        prefill=fed.prefill,
        own=found[nearest],
        yardsticks={
            variant.name: _errors(expected, _sublayers(reference, fed, nearest, states, variant))
            for variant in VARIANTS
        },
        tipped=tipped(_TIPPING),
        seldom=tipped(_SELDOM),
        drift=_errors(_walk(reference.model(nearest), fed, nearest.systematic, PLAIN, {}), states),
    )


def _sublayers(
    reference: ArtifactReference,
    fed: TokenSequence,
    arithmetic: Arithmetic,
    states: Mapping[str, NDArray[np.float32]],
    variant: Variant = PLAIN,
) -> _Held:
    generator = np.random.default_rng(20261125)
    shaken = {
        place: rows * (1 + variant.jitter * generator.uniform(-1, 1, rows.shape)).astype(np.float32)
        if variant.jitter
        else rows
        for place, rows in states.items()
        if place != LOGITS
    }
    return _walk(reference.model(arithmetic), fed, arithmetic, variant, shaken)


def _tips(arithmetic: Arithmetic) -> bool:
    """Whether it rounds so coarsely that one value that rounds the other way shows."""
    return arithmetic.block > 0 or arithmetic.cache is CachePrecision.U8


def _walk(
    model: Phi3,
    fed: TokenSequence,
    arithmetic: Arithmetic,
    variant: Variant,
    states: Mapping[str, NDArray[np.float32]],
) -> _Held:
    """What the reference computes at every place, going on from `states` where they have the place."""
    computed: _Held = {}

    def tap(_: int, place: str, x: torch.Tensor) -> torch.Tensor | None:
        computed[place] = x.numpy().copy()
        return torch.from_numpy(np.array(states[place])) if place in states else None

    logits = model.logits([fed], arithmetic, variant, tap)[0]
    return {**computed, LOGITS: logits.numpy()}


def _errors(expected: _Held, given: Mapping[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float64]]:
    """At every place `[n]`: RMS of the difference in units of the RMS expected; logits are centred first."""
    found = {}
    for place, wanted in expected.items():
        ours, theirs = wanted.astype(np.float64), given[place].astype(np.float64)
        if place == LOGITS:
            ours, theirs = (x - x.mean(axis=1, keepdims=True) for x in (ours, theirs))
        scale = np.sqrt((ours**2).mean(axis=1))
        found[place] = np.sqrt(((theirs - ours) ** 2).mean(axis=1)) / np.maximum(scale, 1e-150)
    return found


def _distance(errors: Mapping[str, NDArray[np.float64]], prefill: int) -> float:
    """The geometric mean over places, prefill and decode apart; what is not finite has no part in it."""
    parts = [rows for error in errors.values() for rows in (error[:prefill], error[prefill:])]
    means = np.array([rows.mean() for rows in parts if rows.size])
    means = means[np.isfinite(means)]
    return float(np.exp(np.log(means + 1e-9).mean())) if means.size else float("inf")


def as_plain(found: Examined) -> dict[str, object]:
    """The Struct as a dict whose arrays stay arrays, to be sent to the controller."""
    return {name: getattr(found, name) for name in msgspec.structs.asdict(found)}
