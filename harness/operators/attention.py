"""Grouped-query attention, causal, with a sliding window or without one, with a cache where it is fed in several calls.

Shapes: `query` `[rows, heads, d]`, `key` and `value` `[rows, kv, d]`, result `[rows, heads, d]`; head h reads the keys
of h // (heads / kv). Sizes: `heads`, `kv`, `d` and `window`, how many positions a row sees, itself included; 0 for all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic, CachePrecision
from harness.operators.case import Case, Values
from harness.operators.draw import Stream, drawn
from harness.operators.estimate import Array, Estimate, growth
from harness.operators.numerics import DIVISION, EXP, Numerics
from harness.operators.rounding import FORMATS, round_to
from harness.target import Precision

# Queries and keys of this size give scores with a standard deviation of 3, and of 48 where they are large.
_PLAIN, _LARGE = 6.0, 24.0
_CACHES = {CachePrecision.F16: Precision.FP16, CachePrecision.BF16: Precision.BF16}


def draw(case: Case) -> dict[str, NDArray[Any]]:
    """`query`, `key` and `value`, float32."""
    stream = Stream(case.seed)
    rows, size = case.count, case["d"]

    def make(heads: int, values: Values, scale: float, large: float) -> NDArray[np.float32]:
        found = drawn(stream, values, case.grid, rows, heads * size, scale=scale, large=large)
        return found.reshape(rows, heads, size)

    query = make(case["heads"], case.values, _PLAIN, _LARGE)
    key = make(case["kv"], case.values, _PLAIN, _LARGE)
    plain = Values.PLAIN if case.values is Values.LARGE else case.values
    return {"query": query, "key": key, "value": make(case["kv"], plain, 1.0, 1.0)}


def visible(case: Case, rows: slice) -> NDArray[np.bool_]:
    """`[m, n]`: which of all positions up to the last of these rows each of them sees."""
    distance = np.arange(rows.start, rows.stop)[:, None] - np.arange(rows.stop)[None, :]
    seen: NDArray[np.bool_] = distance >= 0
    return seen & (distance < case["window"]) if case["window"] else seen


def truth(case: Case, inputs: Mapping[str, NDArray[Any]], numerics: Numerics, arithmetic: Arithmetic) -> Estimate:
    """softmax(q k / sqrt(d)) v over what each row sees, each call reading the cache that those before it have left."""
    repeats = case["heads"] // case["kv"]
    query = _by_head(inputs["query"], 1)
    key, value = _by_head(inputs["key"], repeats), _by_head(inputs["value"], repeats)
    kept = [_kept(x, arithmetic.cache, numerics.unit) for x in (key, value)]
    parts = []
    for rows in case.spans:
        # A first call of many rows has no need of the cache; any other reads even its own keys out of it.
        through = rows.start > 0 or rows.stop == 1
        fresh = [(x, numerics.entered(x).worst) for x in (key, value)]
        read = [(x[:, : rows.stop], off[:, : rows.stop]) for x, off in (kept if through else fresh)]
        parts.append(_attend(query[:, rows], read[0], read[1], visible(case, rows), numerics))
    fields = [np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("value", "worst", "square")]
    return numerics.rounded(Estimate(*(field.transpose(1, 0, 2) for field in fields)))


def _by_head(x: NDArray[np.float32], repeats: int) -> Array:
    return np.repeat(x.astype(np.float64).transpose(1, 0, 2), repeats, axis=0)


def _attend(
    query: Array, keys: tuple[Array, Array], values: tuple[Array, Array], seen: NDArray[np.bool_], numerics: Numerics
) -> Estimate:
    """`[heads, m, d]` before it is rounded; keys and values `[heads, n, d]` with what each may be off by."""
    (key, key_off), (value, value_off) = keys, values
    size, terms = query.shape[-1], key.shape[1]
    scale = 1.0 / math.sqrt(size)
    scores = query @ key.transpose(0, 2, 1) * scale
    worst, square = _off_scores(query, key, key_off, scores, scale, numerics)
    scores = np.where(seen, scores, -np.inf)
    away = scores - scores.max(axis=-1, keepdims=True)
    powers = np.exp(away)
    share = powers / powers.sum(axis=-1, keepdims=True)
    exponent = np.where(seen, np.abs(np.where(seen, away, 0.0)) * numerics.unit + numerics.ulps(EXP), 0.0)
    worst, square = np.where(seen, worst + exponent, 0.0), np.where(seen, square + exponent**2, 0.0)
    found = share @ value
    # To first order, a share that is off by a factor e^x moves the result by share (value - result) x.
    apart = np.abs(value[:, None] - found[:, :, None])  # [heads, m, n, d]
    with np.errstate(over="ignore", invalid="ignore"):
        pull = np.where(share > 0.0, share * np.expm1(worst), 0.0) * np.exp(worst.max(axis=-1, keepdims=True))
    # Shares are rounded before the product, or before and after they are divided by their sum.
    own = 2.0 * numerics.form.unit + numerics.ulps(DIVISION)
    total = growth(terms, numerics.inner)
    bound = np.einsum("hmn,hmnd->hmd", pull, apart) + share @ np.abs(value) * (own + total) + np.abs(found) * total
    squares = np.einsum("hmn,hmnd->hmd", np.square(share) * square, np.square(apart))
    squares += np.square(share) @ np.square(value) * (own**2 + terms * numerics.unit**2)
    squares += np.square(found) * terms * numerics.unit**2
    lost = terms * numerics.least * (1.0 + np.abs(value).max(initial=0.0))
    moved = share @ value_off
    return Estimate(found, bound + moved + lost, squares + np.square(share) @ np.square(value_off) + lost**2)


def _off_scores(
    query: Array, key: Array, key_off: Array, scores: Array, scale: float, numerics: Numerics
) -> tuple[Array, Array]:
    """What scores `[heads, m, n]` may be off by: the sum of all bounds, and that of their squares."""
    size = query.shape[-1]
    swapped = key.transpose(0, 2, 1)
    rounded = numerics.form.unit
    # The scale may be taken to the query, which rounds it; a key read out of a cache in 8 bits is rounded again.
    once = 2.0 * rounded + numerics.coarsened
    worst = np.abs(query) @ np.abs(swapped) * scale * (once + growth(size, numerics.inner))
    square = query**2 @ swapped**2 * scale**2 * (once**2 + size * numerics.unit**2)
    moved = key_off.transpose(0, 2, 1)
    worst += np.abs(query) @ moved * scale
    square += query**2 @ moved**2 * scale**2
    # A score is rounded after the product, after its scale and after the mask, where these are operators of their own.
    return worst + 3.0 * rounded * np.abs(scores), square + 3.0 * np.square(rounded * scores)


def _kept(x: Array, cache: CachePrecision, unit: float) -> tuple[Array, Array]:
    """What a cache gives back of `[heads, n, d]`, and what that may be off by."""
    if cache is CachePrecision.U8:
        return u8_rows(x, unit)
    if cache in _CACHES:
        return round_to(x, _CACHES[cache]).astype(np.float64), np.zeros_like(x)
    return x, np.zeros_like(x)


def u8_rows(x: Array, unit: float) -> tuple[Array, Array]:
    """Rows `[..., d]` as a u8 cache gives them back, in 255 steps from least to greatest, and what that may be off by.

    Source: OpenVINO's CPU plugin (attn_quant.cpp): scale = (max - min) / 255, zero point -min / scale, a float. All of
    it is computed in single precision (`unit`); a value between two codes may become either.
    """
    least, most = x.min(axis=-1, keepdims=True), x.max(axis=-1, keepdims=True)
    scale = (most - least) / 255.0
    scale = np.where(scale == 0.0, 1e-4, scale)
    zero = -least / scale
    where = x / scale + zero
    codes = np.clip(np.rint(where), 0.0, 255.0)
    size = 4.0 * unit * (np.abs(zero) + 255.0)
    tie = np.abs(np.abs(where - codes) - 0.5) <= size
    off = np.where(tie, scale, 0.0) + size * scale
    # Nothing is left of a row whose scale is too small for a normal number.
    lost = scale < FORMATS[Precision.FP32].least_normal
    return (codes - zero) * scale, np.where(lost, np.abs(least) + np.abs(most), off)
