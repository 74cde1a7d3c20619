"""Making compact rows of whole ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.compact_plan import Places, Plan
from harness.metrics import Floats, Ints


def compacted(logits: NDArray[np.float32], following: Ints, places: Places, plan: Plan) -> NDArray[Any]:
    """`[n]` of `plan.row` from finite logits `[n, V]`.

    `following`: `[n]`, the tokens that follow in the text, -1 where there is none. `places`: `[n]`.
    """
    packed = np.zeros(logits.shape[0], dtype=plan.row)
    even = plan.even_entries(places)
    for number, place in enumerate(places.tolist()):
        row, out = np.asarray(logits[number]), packed[number]
        top = _likeliest(row, plan.top)
        out["top"], out["top_logits"] = top, row[top]
        # A row without a following token repeats its best: nothing asks for it.
        out["following"] = row[following[number] if following[number] >= 0 else top[0]]
        out["even_logits"] = row[even[number]]
        tail = row.astype(np.float64)
        tail[top] = -np.inf
        others = tail[np.isfinite(tail)]
        highest = others.max()
        weights = np.exp(tail - highest)
        drawn = _draw(weights, plan.uniforms(place))
        out["drawn"], out["drawn_logits"] = drawn, row[drawn]
        out["tail"] = (np.log(weights.sum()) + highest, others.mean(), others.std())
    return packed


def _likeliest(row: NDArray[np.float32], count: int) -> Ints:
    """The entries with the highest logits, the highest first, of equal ones the first first."""
    least = np.partition(row, row.size - count)[row.size - count]
    above = np.flatnonzero(row > least)
    found = np.concatenate([above, np.flatnonzero(row == least)[: count - above.size]])
    return np.asarray(found[np.argsort(-row[found], kind="stable")])


def _draw(weights: Floats, uniforms: Floats) -> Ints:
    """Entries in proportion to their weights, with replacement; never one without weight."""
    reached = np.cumsum(weights)
    found = np.searchsorted(reached, uniforms * reached[-1], side="right")
    return np.asarray(np.minimum(found, int(np.flatnonzero(weights)[-1])))
