"""How near a computation comes to the end of FP16, and at which place it first leaves it.

FP16 ends at 65504. What is greater becomes Inf, and the difference or quotient of two such values NaN; a device that
clamps in place of that is wrong without a sign. The FP32 reference tells where a value that large arises: at the places
of the residual stream (`harness.states.places`) and, inside the sublayers between them, at every product, at the scores
of attention before they are scaled, at what the gate lets through (`swiglu`) and at the squares that a norm adds up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.states import EMBEDDED

FP16_MAX = 65504.0
SCORES, SWIGLU, SQUARES = "scores", "swiglu", "squares"
"""The last part of the names of places inside a sublayer that are no module's."""

STREAM, ATTENTION, MLP = "residual stream", "attention", "MLP"
"""Kinds of places that prompts are ranked by."""


class Peak(msgspec.Struct, frozen=True):
    """The greatest magnitude that a place has on a prompt, and the position in the prompt where it has it."""

    magnitude: float
    position: int


Peaks = dict[str, Peak]
"""Peaks by place, in the order of computing."""


class HardPrompt(msgspec.Struct, frozen=True):
    """Token ids that drive activations high, what they are, and the FP32 reference's peaks on them."""

    name: str
    tokens: tuple[int, ...]
    peaks: Peaks


class Broken(NamedTuple):
    """A value of a device that is NaN, Inf or FP16's greatest, and where it is first found."""

    place: str
    position: int
    channel: int
    value: float

    def __str__(self) -> str:
        return f"{self.value:g} at {self.place}, position {self.position}, channel {self.channel}"


def is_result(place: str) -> bool:
    """Whether any runtime in FP16 has a place's values in FP16: not the squares in a norm, which most add in FP32."""
    return not place.endswith(f".{SQUARES}")


def kind_of(place: str) -> str:
    """The kind of a place that has one to be ranked by, else an empty text: logits and norms are large by design."""
    if place == EMBEDDED or place.endswith((".self_attn", ".mlp")):
        return STREAM
    if ".self_attn." in place:
        return ATTENTION
    return MLP if ".mlp." in place else ""


def greatest(peaks: Mapping[str, Peak]) -> tuple[str, Peak]:
    """The place of the greatest result, the earliest of equal ones, with its peak."""
    return max(
        ((place, peak) for place, peak in peaks.items() if is_result(place)), key=lambda found: found[1].magnitude
    )


def first_beyond(peaks: Mapping[str, Peak], limit: float = FP16_MAX) -> str | None:
    """The first place with a result beyond a limit; where no result is, the first norm whose squares are; else None."""
    beyond = [place for place, peak in peaks.items() if not peak.magnitude <= limit]
    return next((place for place in beyond if is_result(place)), beyond[0] if beyond else None)


def inside(place: str, peaks: Mapping[str, Peak]) -> Peaks:
    """The peaks of a place of the residual stream and of all that is computed on the way to it from the one before."""
    layer, _, part = place.rpartition(".")
    norm = {"self_attn": f"{layer}.input_layernorm", "mlp": f"{layer}.post_attention_layernorm"}.get(part, place)
    return {name: peak for name, peak in peaks.items() if name == place or name.startswith((f"{place}.", norm))}


def first_broken(states: Mapping[str, NDArray[np.float32]], order: Sequence[str]) -> Broken | None:
    """The first NaN or Inf among `[n, H]` values by place, in an order of places; None where all are finite."""
    return _first(states, order, lambda rows: ~np.isfinite(rows))


def first_saturated(states: Mapping[str, NDArray[np.float32]], order: Sequence[str]) -> Broken | None:
    """The first value whose magnitude is FP16's greatest: one that was clamped, since by chance none is."""
    return _first(states, order, lambda rows: np.abs(rows) == FP16_MAX)


def device_peaks(states: Mapping[str, NDArray[np.float32]], order: Sequence[str]) -> Peaks:
    """The greatest finite magnitude of a device at every place, in an order of places."""
    found: Peaks = {}
    for place in order:
        rows = np.abs(np.nan_to_num(states[place], nan=0.0, posinf=0.0, neginf=0.0)).max(axis=1)
        found[place] = Peak(float(rows.max()), int(rows.argmax()))
    return found


def cause(peaks: Mapping[str, Peak], place: str | None = None) -> str:
    """A sentence: where, by the FP32 reference, values arise that FP16 cannot hold; inside one place or anywhere."""
    considered = peaks if place is None else inside(place, peaks)
    within = "" if place is None else f" in {place}"
    first = first_beyond(considered)
    if first is None:
        at, peak = greatest(considered)
        return f"FP16 could hold all values{within}: by the FP32 reference the greatest is {peak.magnitude:.3g} at {at}"
    peak = considered[first]
    note = "" if is_result(first) else ", unless they are summed in FP32"
    return (
        f"FP16 ends at {FP16_MAX:.0f}: by the FP32 reference the first values{within} beyond it are those of {first}, "
        f"{peak.magnitude:.3g} at position {peak.position}{note}"
    )


def _first(
    states: Mapping[str, NDArray[np.float32]],
    order: Sequence[str],
    wrong: Callable[[NDArray[np.float32]], NDArray[np.bool_]],
) -> Broken | None:
    for place in order:
        found = np.argwhere(wrong(states[place]))
        if found.size:
            position, channel = map(int, found[0])
            return Broken(place, position, channel, float(states[place][position, channel]))
    return None
