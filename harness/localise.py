"""Where a target breaks: the first sublayer that is further from the reference than honest computing explains.

Each sublayer has been judged on the device's own input (see `harness.reference.sublayers`), so errors of earlier ones
are not in it. The yardstick of a sublayer is what honest variants show on the same input; prefill and decode are kept
apart, since they are different kernels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# Measured with 12 exports of the bundled checkpoint on OpenVINO, ONNX Runtime and PyTorch, on prompts of 1 to 255
# tokens, in FP32, BF16 and FP16, with and without int8 activations: honest sublayers lie at up to 2.5 yardsticks in the
# median and 4.3 at the worst position.
TYPICAL_LIMIT = 6.0
WORST_LIMIT = 10.0
# Of fewer rows the median is no better than the worst.
_FEW = 8
# Half a unit in the last place of FP32: what is closer is equal, also where the variants agree to the last bit.
_FLOOR = 6e-8


class Examined(msgspec.Struct, frozen=True):
    """What was measured, `[n]` at every place in the order of computing: RMS errors relative to the stream's RMS.

    `own`: of each sublayer on the device's own input. `yardsticks`: of honest variants on it. `tipped`: what it costs
    if a few values of every row round the other way, and `seldom` if one does in a few rows, which then shows in all
    rows that attend to these; empty where values are not rounded coarsely. `drift`: of the stream against a reference
    that goes its own way, with the errors of all sublayers before. `arithmetic` is the one in effect by `distances`,
    the geometric means of every permitted one. `prefill` tokens were fed at once.
    """

    arithmetic: str
    distances: Mapping[str, float]
    prefill: int
    own: Mapping[str, Floats]
    yardsticks: Mapping[str, Mapping[str, Floats]]
    tipped: Mapping[str, Floats]
    seldom: Mapping[str, Floats]
    drift: Mapping[str, Floats]


class Sublayer(msgspec.Struct, frozen=True):
    """One place in prefill or in decode: median and worst error, their yardsticks, the mean drift, and the verdict.

    Errors are relative to the stream's RMS. `position` is the worst one, `first` the first beyond the limits, None
    where none is.
    """

    place: str
    phase: str
    typical: float
    worst: float
    position: int
    yardstick_typical: float
    yardstick_worst: float
    drift: float
    first: int | None

    @property
    def ratio_typical(self) -> float:
        """Median error in yardsticks."""
        return self.typical / self.yardstick_typical

    @property
    def ratio_worst(self) -> float:
        """Worst error in yardsticks."""
        return self.worst / self.yardstick_worst


class Localisation(msgspec.Struct, frozen=True):
    """Where a target breaks on one prompt.

    `undisturbed`: by how much the logits of a session that nobody watches lie from those of the one that was watched,
    the mean over positions in units of the logits' centred RMS; a fault that watching undoes shows in it alone. NaN
    where the two have not the same rows. `arithmetic` and `distances` are as in `Examined`.
    """

    target: str
    prompt: str
    arithmetic: str
    distances: Mapping[str, float]
    sublayers: tuple[Sublayer, ...]
    undisturbed: float
    typical_limit: float = TYPICAL_LIMIT
    worst_limit: float = WORST_LIMIT

    @property
    def bad(self) -> tuple[Sublayer, ...]:
        """Every sublayer beyond the limits, in the order of computing, prefill before decode."""
        return tuple(one for one in self.sublayers if one.first is not None)

    @property
    def sentence(self) -> str:
        """`first bad: model.layers.3.self_attn, from prefill on, position 12`, or that nothing is bad."""
        if not self.bad:
            return f"first bad: none on prompt {self.prompt!r}"
        place = self.bad[0].place
        phases = {one.phase: one for one in self.bad if one.place == place}
        when = "from prefill on" if len(phases) == 2 else f"in {next(iter(phases))} only"
        first = next(iter(phases.values())).first
        return f"first bad: {place}, {when}, position {first}"


def judge(found: Examined) -> tuple[Sublayer, ...]:
    """Every place in prefill and in decode, those without positions left out, in the order of computing."""
    length = max(map(len, found.own.values()))
    phases = {"prefill": slice(0, found.prefill), "decode": slice(found.prefill, length)}
    common = {phase: _common(found, rows) for phase, rows in phases.items()}
    return tuple(
        _judge(found, place, phase, rows, common[phase][_kind(place)])
        for place in found.own
        for phase, rows in phases.items()
        if found.own[place][rows].size
    )


def _judge(found: Examined, place: str, phase: str, rows: slice, common: tuple[float, float]) -> Sublayer:
    errors = np.where(np.isfinite(found.own[place]), found.own[place], math.inf)[rows]
    units = [max(_FLOOR, own, shared) for own, shared in zip(_unit(found, place, rows), common, strict=True)]
    start = rows.start
    typical, threshold = float(np.median(errors)), WORST_LIMIT * units[1]
    if typical > TYPICAL_LIMIT * units[0]:  # then rows of the fault are near the median, and honest ones far below
        threshold = min(threshold, max(TYPICAL_LIMIT * units[0], typical / 10))
    beyond = np.flatnonzero(errors > threshold)
    return Sublayer(
        place=place,
        phase=phase,
        typical=typical,
        worst=float(errors.max()),
        position=start + int(errors.argmax()),
        yardstick_typical=units[0],
        yardstick_worst=units[1],
        drift=float(found.drift[place][rows].mean()),
        first=start + int(beyond[0]) if beyond.size else None,
    )


def _unit(found: Examined, place: str, rows: slice) -> tuple[float, float]:
    """The largest median and the largest single error of the variants; what is not finite is none of theirs.

    A value that tips is rare: it has a part in the median where there are too few rows for one, and in attention,
    where one row's key or value is in all rows after it.
    """
    cut = [_finite(variant[place][rows]) for variant in found.yardsticks.values()]
    tipped, seldom = (_finite(rare[place][rows]) if rare else cut[0] for rare in (found.tipped, found.seldom))
    worst = max(float(one.max()) for one in (*cut, tipped))
    lasting = [seldom] if _kind(place) == "self_attn" else []
    return max(float(np.median(one)) for one in (*cut, *lasting)) if len(seldom) >= _FEW else worst, worst


def _finite(errors: Floats) -> Floats:
    return np.nan_to_num(errors, nan=0.0, posinf=0.0)


def _common(found: Examined, rows: slice) -> dict[str, tuple[float, float]]:
    """By kind of sublayer the median over layers: one layer of a short prompt may meet no value that tips."""
    kinds: dict[str, list[tuple[float, float]]] = {}
    for place, errors in found.own.items():
        if errors[rows].size:
            kinds.setdefault(_kind(place), []).append(_unit(found, place, rows))
    return {kind: _medians(units) for kind, units in kinds.items()}


def _medians(units: list[tuple[float, float]]) -> tuple[float, float]:
    mean, worst = np.median(np.array(units), axis=0)
    return float(mean), float(worst)


def _kind(place: str) -> str:
    return place.rpartition(".")[2]
