"""A quantised tensor against the checkpoint's: what each group of codes and each scale is off by.

With W the checkpoint's weight divided by what the graph multiplies the activations with, t = W / scale + zero point is
where a weight lies on the artifact's own grid. The stored code must be the nearest there is: exporters compute codes
with an FP32 scale, which FP16 then rounds, so t is only known to `|t - zero point| 2^-11`. That band, and no other, is
allowed. Official exports of the bundled checkpoint by OpenVINO (INT8, INT4 symmetric and asymmetric, channel-wise, NF4,
MXFP4, scale estimation, AWQ), by ONNX Runtime (INT4 and INT8) and by the Intel NPU library keep within it without an
exception.

A scale is held against the rule that most groups of its tensor follow, and so found where it is 0.2 % off. The search
of k-quant is repeated (`audit_search`), and its outcome is such a rule. Where an exporter searched for scales in
another way, there is no rule, and a wrong scale shows by codes that are no longer the nearest: 1 % off in one group of
128 in 19 cases of 20, 2 % always; in one of 32, 1 % in 11 cases of 20, 2 % in 16, 5 % always.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.audit_search import search
from harness.weights import Array, Quantised

Mask = NDArray[np.bool_]

RANGE = "range"
"""How the rule's name begins that gives a group a zero point of its own."""
SEARCH = "k-quant's search"
"""The name of the rule that is the outcome of a search."""

# A float64 of each fits into a core's own cache: with a million of them it takes half as long again.
_CHUNK = 1 << 17
# Float32 arithmetic of the exporter: a quotient and a sum, each rounded.
_FLOAT32 = 2.0**-22
# How far rounding may have taken a scale, relatively, by the dtype it is given in. Float64 ones are products of two
# FP16 numbers, each rounded: what the Intel NPU library holds.
_ROUNDING = {"float16": 2.0**-11, "float32": _FLOAT32, "float64": 2.0**-10}
# How much further than that a scale may be from the rule's.
_MARGIN = 1.5
# Sums in another order, measured: the same choices give scales that are up to 1.6e-5 apart.
_SUMS = 2.0**-15


class Place(msgspec.Struct, frozen=True):
    """Where some rows lie on their grid, `[m, G, g]`, in steps; `zeros` and `scales` are `[m, G, 1]`.

    `least` and `most` enclose t; they differ where an exporter rounded W, after multiplying it, to BF16.
    """

    codes: NDArray[np.int64]
    least: Array
    most: Array
    zeros: Array
    scales: Array
    middle: Array
    """t itself, or the middle of what it may be."""


class Grid(msgspec.Struct, frozen=True):
    """Figures of each group, `[n, G]`.

    `beyond`: codes that are not the nearest to their weight; `worst`: the largest distance of a code from its weight,
    cut off where the storage ends; `error`, `square`, `product`, `power`: sums over the group of the distance d, of
    d^2, of d q and of q^2, q being the code less its zero point. `rules`: for each rule by which exporters choose
    scales, the ratio of the stored scale to the rule's, in magnitude; `SEARCH` stands alone. `zero_points`: whether the
    zero point is the rule's. `slack`: how far from 1 the ratio may be.
    """

    beyond: NDArray[np.int64]
    worst: Array
    error: Array
    square: Array
    product: Array
    power: Array
    rules: dict[str, Array]
    zero_points: Mask
    slack: Array

    def follows(self, rule: str) -> Mask:
        """Where the stored scale is the rule's."""
        within: Mask = np.abs(self.rules[rule] - 1.0) <= self.slack
        return within


def chunks(held: NDArray[Any]) -> Iterator[slice]:
    """Slices of rows of `[n, K]` or `[n]` that bound the memory taken."""
    n, width = held.shape[0], max(1, held.size // max(1, held.shape[0]))
    rows = max(1, _CHUNK // width)
    return (slice(begin, min(n, begin + rows)) for begin in range(0, n, rows))


def place(content: Quantised, weight: Array, rows: slice | NDArray[np.intp], rounded: str) -> Place:
    """Put the checkpoint's `weight`, `[m, K]` of the `rows` given, on the artifact's grid.

    `rounded` is the dtype that a multiplied weight was rounded to before it was quantised: bfloat16 or float16.
    """
    codes = content.codes[rows].astype(np.int64)
    m, groups = codes.shape[0], content.scales.shape[1]
    scales = content.scales[rows].astype(np.float64)[..., None]
    zeros = content.zero_points if content.zero_points.shape[0] == 1 else content.zero_points[rows]
    zeros = np.broadcast_to(zeros.astype(np.float64), (m, groups))[..., None]
    sides = [side.reshape(m, groups, -1) for side in _multiplied(content, weight, rounded)]
    with np.errstate(all="ignore"):
        # No scale at all: a weight of zero is where it belongs, any other is infinitely far away.
        ends = [np.where(side == 0.0, 0.0, side / scales) + zeros for side in sides]
        least, most = (ends[0], ends[0]) if len(ends) == 1 else (np.minimum(*ends), np.maximum(*ends))
        middle = least if len(ends) == 1 else (least + most) / 2
    return Place(codes.reshape(m, groups, -1), least, most, zeros, scales, middle)


def _multiplied(content: Quantised, weight: Array, rounded: str) -> tuple[Array, ...]:
    """What an exporter may have quantised, in value: one, or with AWQ what it is from below and from above."""
    if content.multiplier is None:
        return (weight,)
    exact = weight / content.multiplier.astype(np.float64)
    # The exporter multiplied in float32, with the reciprocal of the multiplier as it is stored.
    near, far = exact * (1 - 2.0**-22), exact * (1 + 2.0**-22)
    if rounded == "bfloat16":
        return _to_bfloat16(near), _to_bfloat16(far)
    if rounded == "float16":
        return near.astype(np.float16).astype(np.float64), far.astype(np.float16).astype(np.float64)
    return near, far


def _to_bfloat16(values: Array) -> Array:
    """OpenVINO's rounding to BF16: odd halves go up, and nothing else does (core/type/bfloat16.hpp)."""
    bits = values.astype(np.float32).view(np.uint32)
    rounded = (bits + ((bits & 0x10000) >> 1)) & np.uint32(0xFFFF0000)
    return np.asarray(rounded.view(np.float32), dtype=np.float64)


def measure(content: Quantised, weight: Array, rows: slice, rounded: str, *, repeat: bool = False) -> Grid:
    """The figures of some rows; `weight` is the checkpoint's, `[m, K]` float64.

    `repeat`: repeat k-quant's search, where the content is of its form, and let its outcome be the one rule.
    """
    at = place(content, weight, rows, rounded)
    lower, upper = bounds(content)
    with np.errstate(all="ignore"):
        band = slack(content, at)
        excess = np.maximum(at.least - upper[at.codes - content.low], lower[at.codes - content.low] - at.most) - band
        distance = distances(content, at)
    q = values(content)[at.codes - content.low] - at.zeros
    clean = np.where(np.isfinite(distance), distance, 1e9)
    searched = repeat and may_be_searched(content)
    if searched:
        rules, zero_points = _searched(content, weight, at)
    else:
        rules, zero_points = _rules(content, at), _zero_points(content, at)
    return Grid(
        beyond=np.asarray((~(excess <= 0)).sum(axis=-1), dtype=np.int64),
        worst=np.abs(clean).max(axis=-1),
        error=clean.sum(axis=-1),
        square=(clean**2).sum(axis=-1),
        product=(clean * q).sum(axis=-1),
        power=(q * q).sum(axis=-1),
        rules=rules,
        zero_points=zero_points,
        slack=_rounding(content, at)[..., 0] * _MARGIN + (_SUMS if searched else 2.0**-20),
    )


def _rounding(content: Quantised, at: Place) -> Array:
    """How far rounding may have taken each scale, `[m, G, 1]`, relatively: further below FP16's normal numbers."""
    least = np.full(at.scales.shape, _ROUNDING.get(content.scales.dtype.name, _FLOAT32))
    if content.scales.dtype != np.float16:
        return least
    with np.errstate(all="ignore"):
        return np.asarray(np.fmax(least, 2.0**-25 / np.abs(at.scales)))


def join(parts: list[Grid]) -> Grid:
    """The figures of consecutive rows as one."""
    fields = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS}
    rules = {name: np.concatenate([part.rules[name] for part in parts]) for name in parts[0].rules}
    return Grid(**fields, rules=rules)


_ARRAYS = ("beyond", "worst", "error", "square", "product", "power", "zero_points", "slack")


def values(content: Quantised) -> Array:
    """What each code from `low` to `high` stands for, in steps."""
    if content.levels is not None:
        return content.levels
    return np.arange(content.low, content.high + 1, dtype=np.float64)


def bounds(content: Quantised) -> tuple[Array, Array]:
    """For each code from `low` to `high`: between which t it is the nearest; without end at the ends of the range."""
    held = values(content)
    finite = np.unique(held[np.isfinite(held)])
    middles = (finite[1:] + finite[:-1]) / 2
    index = np.searchsorted(finite, np.where(np.isfinite(held), held, 0.0))
    lower, upper = np.append(-np.inf, middles)[index], np.append(middles, np.inf)[index]
    lower[~np.isfinite(held)], upper[~np.isfinite(held)] = np.inf, -np.inf  # no weight is stored as what is no number
    return lower, upper


def slack(content: Quantised, at: Place) -> Array:
    """How far t may be from where the exporter saw it: the scale's rounding, the weight's to FP16, and arithmetic."""
    relative = _rounding(content, at)
    with np.errstate(all="ignore"):
        if content.scales.dtype == np.float16:
            relative = relative + _FLOAT32
        # An exporter that goes through FP16 loses what lies below its subnormals.
        lost = 2.0**-25 / np.abs(at.scales)
        lost = lost + np.abs(at.middle - at.zeros) * relative + np.abs(at.middle) * _FLOAT32
    return np.where(np.isfinite(lost), lost, 0.0)


def distances(content: Quantised, at: Place) -> Array:
    """Code less t, in steps, t cut off at the ends of the range."""
    held = values(content)
    inside = np.clip(at.middle, np.nanmin(held), np.nanmax(held))
    apart: Array = held[at.codes - content.low] - inside
    return apart


def _rules(content: Quantised, at: Place) -> dict[str, Array]:
    """The ratio of each stored scale to what each rule gives; where W is known as a range, the nearer of its ends."""
    found: dict[str, Array] = {}
    for side in (at.least,) if at.most is at.least else (at.least, at.most):
        with np.errstate(all="ignore"):
            weight = (side - at.zeros) * at.scales
        weight = np.where(np.isfinite(weight), weight, 0.0)
        for name, scale in _scales(content, weight).items():
            with np.errstate(all="ignore"):
                ratio = np.abs(at.scales[..., 0]) / scale
            # A group of zeros may have any scale.
            ratio = np.where(np.any(weight != 0.0, axis=-1), ratio, 1.0)
            ratio = np.where(np.isfinite(ratio), ratio, 1e9)
            known = found.get(name)
            found[name] = ratio if known is None else np.where(np.abs(ratio - 1) < np.abs(known - 1), ratio, known)
    return found


def _scales(content: Quantised, weight: Array) -> dict[str, Array]:
    """What exporters choose as the magnitude of a group's scale, by the name of the rule; `weight` is `[m, G, g]`."""
    extreme = np.abs(weight).max(axis=-1)
    if content.levels is not None:
        greatest = float(np.nanmax(content.levels))
        with np.errstate(divide="ignore"):
            power = 2.0 ** np.ceil(np.log2(extreme / greatest) - 1e-6)
        return {f"extreme / {greatest:g}": extreme / greatest, f"power of two over extreme / {greatest:g}": power}
    half = 1 << (content.bits - 1)
    span = np.maximum(weight.max(axis=-1), 0.0) - np.minimum(weight.min(axis=-1), 0.0)
    return {
        f"extreme / {half}": extreme / half,  # NNCF's symmetric and ONNX Runtime's
        f"{RANGE} / {2 * half - 1}": span / (2 * half - 1),  # NNCF's asymmetric and ONNX Runtime's
        f"extreme / {half - 1}": extreme / (half - 1),  # neural-compressor's, in the NPU library
        f"extreme / {half - 0.5:g}": extreme / (half - 0.5),  # ONNX Runtime's rtn, symmetric
        f"{RANGE} of the weights alone / {2 * half - 1}": _bare_range(content, weight) / (2 * half - 1),
    }


def _bare_range(content: Quantised, weight: Array) -> Array:
    """The range that ONNX Runtime's rtn takes: zero has no part in it, and weights of FP16 are subtracted in FP16.

    Where all weights of a group are equal the exporter writes the scale 1.
    """
    ends = weight.max(axis=-1), weight.min(axis=-1)  # rounding keeps the order: the same as those of rounded weights
    most, least = (end.astype(np.float16) for end in ends) if content.scales.dtype == np.float16 else ends
    span = (most - least).astype(np.float64)
    return np.where(span > 0.0, span, 2.0**content.bits - 1)


def may_be_searched(content: Quantised) -> bool:
    """Whether this is of the form that k-quant writes: unsigned codes, and a zero point for every group."""
    plain = content.levels is None and content.multiplier is None and content.low == 0 and content.bits in (4, 8)
    return plain and content.zero_points.shape == content.scales.shape and content.scales.dtype != np.float64


def _searched(content: Quantised, weight: Array, at: Place) -> tuple[dict[str, Array], Mask]:
    """The ratio of each stored scale to the outcome of k-quant's search, and whether the zero point is its, `[m, G]`.

    The exporter reads the weights in the dtype that it writes the scales in.
    """
    held = weight.astype(content.scales.dtype).astype(np.float32).reshape(-1, at.codes.shape[-1])
    found, least = (side.astype(np.float64).reshape(at.scales.shape[:2]) for side in search(held, content.bits))
    with np.errstate(all="ignore"):
        ratio = np.where(np.any(at.middle != at.zeros, axis=-1), np.abs(at.scales[..., 0]) / found, 1.0)
        ideal = np.clip(-least / found, content.low, content.high)
    near: Mask = np.abs(at.zeros[..., 0] - ideal) <= 0.5 + (1 + ideal) * _SUMS
    return {SEARCH: np.where(np.isfinite(ratio), ratio, 1e9)}, near


def _zero_points(content: Quantised, at: Place) -> Mask:
    """Whether each zero point is the rule's: where the range's lower end, or zero, falls on the least code."""
    if content.zero_points.size == 1:
        return np.ones(at.scales.shape[:2], dtype=np.bool_)
    with np.errstate(all="ignore"):
        bottom = np.minimum((at.middle - at.zeros).min(axis=-1), 0.0)
        ideal = np.clip(content.low - bottom, content.low, content.high)
        near: Mask = (np.abs(at.zeros[..., 0] - ideal) <= 0.5 + np.abs(bottom) * 2.0**-10) | ~np.isfinite(bottom)
    return near


def nearest_rule(grid: Grid) -> tuple[str, float]:
    """The rule that most groups follow, and their share."""
    shares = {name: float(grid.follows(name).mean()) for name in grid.rules}
    name = max(shares, key=lambda key: (shares[key], -_typical(grid.rules[key])))
    return name, shares[name]


def _typical(ratio: Array) -> float:
    middle = float(np.median(ratio))
    return abs(math.log(middle)) if middle > 0 else math.inf
