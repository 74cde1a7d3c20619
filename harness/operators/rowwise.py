"""Operators that work on each row by itself: RMSNorm, SwiGLU, softmax, and the lookup of an embedding.

Shapes are `[rows, n]`; SwiGLU takes `[rows, 2 n]`, the gate first, as Phi-3's fused projection gives it; an embedding
has `v` rows of n.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.operators import products
from harness.operators.case import Case, Values
from harness.operators.draw import Stream, drawn
from harness.operators.estimate import Array, Estimate, exact, growth
from harness.operators.numerics import DIVISION, EXP, ROOT, Numerics
from harness.operators.rounding import FORMATS, round_to
from harness.target import Precision

Inputs = Mapping[str, NDArray[Any]]

EPSILON = 1e-5
"""Of Phi-3's RMSNorm (rms_norm_eps)."""


def draw_rms_norm(case: Case) -> dict[str, NDArray[Any]]:
    """`x` `[rows, n]` and `weight` `[n]`, float32. Values are as small as 0.01, where epsilon matters."""
    stream = Stream(case.seed)
    weight = round_to(1.0 + 0.5 * stream.bell(case["n"]), case.grid)
    # The squares of large values must not overflow in single precision, in which every exporter has them computed.
    large = min(FORMATS[case.grid].greatest / 2.0, 2.0**56)
    x = drawn(stream, case.values, case.grid, case.count, case["n"], scale=0.02, large=large)
    return {"x": x, "weight": weight}


def rms_norm(case: Case, inputs: Inputs, numerics: Numerics, arithmetic: Arithmetic) -> Estimate:  # noqa: ARG001
    """x / sqrt(mean(x^2) + epsilon) * weight, the statistics in `inner`."""
    x = inputs["x"].astype(np.float64)
    width = x.shape[1]
    root = 1.0 / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + EPSILON)
    # Half of what the mean of squares is off by, then a root, a quotient and epsilon's own rounding.
    mean = 0.5 * np.asarray([growth(width + 3, numerics.inner), numerics.unit * np.sqrt(width + 3)])
    tail = numerics.ulps(ROOT + DIVISION) + numerics.unit
    scale = Estimate(root, root * (mean[0] + tail), np.square(root) * (mean[1] ** 2 + tail**2))
    normalised = numerics.rounded(numerics.entered(x) * scale)
    return numerics.rounded(normalised * exact(inputs["weight"]))


def draw_swiglu(case: Case) -> dict[str, NDArray[Any]]:
    """`x` `[rows, 2 n]` float32: gate, then up. Large gates are those whose exponential overflows."""
    stream = Stream(case.seed)
    large = 200.0 if case.grid is Precision.FP16 else 2.0**40
    return {"x": drawn(stream, case.values, case.grid, case.count, 2 * case["n"], scale=8.0, large=large)}


def swiglu(case: Case, inputs: Inputs, numerics: Numerics, arithmetic: Arithmetic) -> Estimate:  # noqa: ARG001
    """gate * sigmoid(gate) * up."""
    gate, up = np.split(inputs["x"].astype(np.float64), 2, axis=1)
    with np.errstate(over="ignore"):
        sigmoid = 1.0 / (1.0 + np.exp(-gate))
    weight = exact(sigmoid).relative(numerics.ulps(EXP + DIVISION) + numerics.unit).off(numerics.least)
    silu = numerics.rounded(numerics.entered(gate) * numerics.rounded(weight))
    return numerics.rounded(silu * numerics.entered(up))


def draw_softmax(case: Case) -> dict[str, NDArray[Any]]:
    """`x` `[rows, n]` float32. Large ones are those whose exponential overflows unless the greatest is taken off."""
    stream = Stream(case.seed)
    return {"x": drawn(stream, case.values, case.grid, case.count, case["n"], scale=8.0, large=1000.0)}


def softmax(case: Case, inputs: Inputs, numerics: Numerics, arithmetic: Arithmetic) -> Estimate:  # noqa: ARG001
    """exp(x - max x) / sum exp(x - max x)."""
    x = inputs["x"].astype(np.float64)
    away = x - x.max(axis=1, keepdims=True)
    return numerics.rounded(shares(away, numerics))


def shares(away: Array, numerics: Numerics) -> Estimate:
    """The softmax of what lies below its greatest, over the last axis, before it is rounded."""
    powers = np.exp(away)
    share = powers / powers.sum(axis=-1, keepdims=True)
    distance = np.where(np.isfinite(away), np.abs(away), 0.0)
    # The difference is rounded, which the exponential turns into a relative error; the sum is of positive terms.
    own = distance * numerics.unit + numerics.ulps(EXP + DIVISION)
    terms = away.shape[-1]
    worst = own + np.max(own, axis=-1, keepdims=True) + growth(terms, numerics.inner)
    spread = np.sum(np.square(share * own), axis=-1, keepdims=True) + terms * numerics.unit**2
    return Estimate(share, share * worst, np.square(share) * (np.square(own) + spread)).off(numerics.least)


def draw_embedding(case: Case) -> dict[str, NDArray[Any]]:
    """`ids` `[rows]` int64, the first and the last row among them, and a table as products have a weight."""
    inputs = products.draw(_table(case))
    ids = Stream(case.seed + 1).below(case["v"], case.count)
    ids[0], ids[-1] = 0, case["v"] - 1
    return {"ids": ids, **{name: value for name, value in inputs.items() if name != "x"}}


def embedding(case: Case, inputs: Inputs, numerics: Numerics, arithmetic: Arithmetic) -> Estimate:  # noqa: ARG001
    """Rows of the table: as they are stored, but for being rounded to what is computed in."""
    table = products.stored_weight(_table(case), inputs)
    value = table[inputs["ids"]]
    if "w" in inputs and np.array_equal(round_to(value, numerics.precision), value):
        return exact(value)
    return numerics.rounded(exact(value).relative(2.0 * numerics.unit))


def _table(case: Case) -> Case:
    """The case of a product by the table, which is drawn as a weight is."""
    sizes = {**case.sizes, "k": case["n"], "n": case["v"]}
    return msgspec.structs.replace(case, sizes=sizes, rows=(1,), values=Values.PLAIN)
