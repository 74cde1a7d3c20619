"""Products by a weight: float, of 8 bits and of 4.

Shapes: activations `[m, K]`, weight `[n, K]`, result `[m, n]`. Sizes of a case: `k`, `n` and `bits`, the width of what
is stored; of a quantised weight also `group`, columns that share a scale (0 for a whole row), `zero`, 1 where there are
zero points beside the middle of the range, and `root`, 1 where the stored scale is sqrt(K) times what is meant and the
runtime multiplies by FP16(sqrt(1 / K)), as the Intel NPU library does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.codes import unpack
from harness.operators.case import Case
from harness.operators.draw import Stream, drawn
from harness.operators.estimate import Array, Estimate, growth
from harness.operators.numerics import Numerics
from harness.operators.rounding import FORMATS
from harness.target import Precision
from harness.weights import Quantised

# Rows of a weight that are drawn; a larger one repeats them. A prime, so that no tile of a kernel is like another.
_PERIOD = 1031
# Rows of it that are widened to float64 at a time: 32 MiB at most in Phi-3.
_ROWS = 512


def draw(case: Case) -> dict[str, NDArray[Any]]:
    """`x` `[m, K]` float32; and `w` `[p, K]` float32, or `codes` `[p, K]` uint8, `zeros` and `scales` `[p, G]`.

    p rows stand for n, see `whole`; the last of them has one weight for all columns, so that activations of alternating
    sign cancel. Scales are float32 that FP16 represents. The weight depends on sizes and seed alone.
    """
    stream = Stream(case.seed)
    weight = {"w": _floats(stream, case)} if case["bits"] >= 16 else _codes(stream, case)
    large = 0.5 * min(FORMATS[case.grid].greatest, 2.0**60)
    return {"x": drawn(stream, case.values, case.grid, case.count, case["k"], large=large), **weight}


def whole(case: Case, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs with all n rows of the weight: those drawn, over and over."""
    if case["n"] <= _PERIOD:
        return dict(inputs)
    rows = np.arange(case["n"]) % _PERIOD
    return {name: value if name == "x" else value[rows] for name, value in inputs.items()}


def _floats(stream: Stream, case: Case) -> NDArray[np.float32]:
    n, width = min(case["n"], _PERIOD), case["k"]
    halves = stream.words(-(-n * width // 4)).astype("<u8").view("<i2")[: n * width].reshape(n, width)
    weight = halves.astype(np.float32) * np.float32(0.937 / 32768.0 / np.sqrt(width))  # all bits of FP32 are in use
    weight[-1] = weight[-1, 0]
    return weight.astype(np.float16).astype(np.float32) if case["bits"] == 16 else weight


def _codes(stream: Stream, case: Case) -> dict[str, NDArray[Any]]:
    n, width, bits = min(case["n"], _PERIOD), case["k"], case["bits"]
    columns = width + width % 2  # two codes of four bits to a byte
    codes = unpack(stream.octets(n, columns * bits // 8), bits)[:, :width].copy()
    codes[-1] = codes[-1, 0]
    groups = -(-width // (case["group"] or width))
    half = 2 ** (bits - 1)
    zeros = np.full((n, groups), half, dtype=np.uint8)
    if case["zero"]:
        zeros += (stream.octets(n, groups) % (half // 4)).astype(np.uint8)
    grid = 0.75 + 0.25 * stream.uniform(n, groups)
    scales = (grid / half / (1.0 if case["root"] else np.sqrt(width))).astype(np.float16).astype(np.float32)
    return {"codes": codes, "zeros": zeros, "scales": scales}


def stored_weight(case: Case, inputs: Mapping[str, NDArray[Any]], rows: slice = slice(None)) -> Array:
    """Some of the drawn rows of the weight that is meant, `[p, K]` float64."""
    if "w" in inputs:
        return np.asarray(inputs["w"][rows], dtype=np.float64)
    scales = inputs["scales"][rows].astype(np.float64)
    if case["root"]:
        scales = scales * np.float64(np.float16(np.sqrt(1.0 / case["k"])))
    codes, group = inputs["codes"][rows], case["group"] or case["k"]
    missing = -codes.shape[1] % group  # the last block of a row may be short
    padded = np.pad(codes, ((0, 0), (0, missing)))
    high = 2 ** case["bits"] - 1
    return Quantised(padded, scales, inputs["zeros"][rows], case["bits"], 0, high).product()[:, : codes.shape[1]]


def truth(case: Case, inputs: Mapping[str, NDArray[Any]], numerics: Numerics, arithmetic: Arithmetic) -> Estimate:
    """The product `[m, n]`; of a quantised weight with int8 activations by block where the arithmetic has them."""
    x, edges = inputs["x"].astype(np.float64), None
    if arithmetic.block and "codes" in inputs:
        x, edges = int8_blocks(x, arithmetic.block, numerics.unit)
    parts = list(_parts(case, inputs, numerics, x, edges, arithmetic.block))
    columns = np.arange(case["n"]) % min(case["n"], _PERIOD)
    value, worst, square = (np.concatenate(part, axis=1)[:, columns] for part in zip(*parts, strict=True))
    return numerics.rounded(Estimate(value, worst, square))


def _parts(
    case: Case, inputs: Mapping[str, NDArray[Any]], numerics: Numerics, x: Array, edges: Array | None, block: int
) -> Iterator[tuple[Array, Array, Array]]:
    """Result and bounds for some rows of the weight at a time."""
    width = case["k"]
    # A weight is rounded to half precision where that is computed in, unless it meets activations as the code that it
    # is; a code times its scale is rounded in any case.
    once = numerics.form.unit if numerics.precision is not Precision.FP32 and edges is None else 0.0
    once += (0.0 if "w" in inputs else 4.0 * numerics.unit) + numerics.coarsened
    lost = np.where(np.abs(x) < numerics.form.least_normal, np.abs(x), 0.0) if numerics.flushes else np.zeros_like(x)
    lost = lost if edges is None else lost + edges
    for at in range(0, min(case["n"], _PERIOD), _ROWS):
        rows = slice(at, at + _ROWS)
        weight = stored_weight(case, inputs, rows)
        square = weight**2
        # The partial sums of independent terms of either sign are as large as the root of the sum of their squares.
        squares = (x**2 @ square.T) * (once**2 + width * numerics.unit**2) + lost**2 @ square.T
        worst = np.full_like(squares, np.inf)
        if not case.values.independent:
            np.abs(weight, out=square)
            worst = (np.abs(x) @ square.T) * (once + growth(width, numerics.inner)) + lost @ square.T
        if edges is not None:
            worst_apart, squares_apart = _apart(case, inputs, rows, x, block, numerics)
            worst, squares = worst + worst_apart, squares + squares_apart
        yield x @ weight.T, worst + width * numerics.least, squares + width * numerics.least**2


def _apart(
    case: Case, inputs: Mapping[str, NDArray[Any]], rows: slice, x: Array, block: int, numerics: Numerics
) -> tuple[Array, Array]:
    """What is lost where int8 products with codes and the activations' sum times the zero point are taken apart.

    Whole numbers are exact, but either of the two is rounded, a few times, before one is taken off the other: ONNX
    Runtime computes so (MLAS, "block sums"), and so do kernels whose instructions take unsigned codes.
    """
    width, group = x.shape[1], case["group"] or x.shape[1]
    starts = np.arange(0, width, block)
    sums = np.add.reduceat(x, starts, axis=1)
    # The sum of a block is rounded too, as often as it has columns.
    summed = block * numerics.unit**2 * np.add.reduceat(x**2, starts, axis=1)
    magnitudes = np.add.reduceat(np.abs(x), starts, axis=1)
    grid = np.abs(inputs["zeros"][rows].astype(np.float64) * inputs["scales"][rows])[:, starts // group]
    several = 4.0 * numerics.unit
    squares = (sums**2 * (several**2 + starts.size * numerics.unit**2) + summed) @ grid.T**2 * 2.0
    worst = magnitudes @ grid.T * 2.0 * (several + growth(block + starts.size, numerics.inner))
    return worst, squares


def int8_blocks(x: Array, block: int, unit: float) -> tuple[Array, Array]:
    """Activations `[m, K]` as int8 gives them back, by blocks of columns, and what those at a code's edge may move by.

    Symmetric, absmax / 127 for a scale, rounded half to even: ONNX Runtime's MLAS (accuracy_level 4 of MatMulNBits),
    and OpenVINO's dynamic quantisation. A value that lies between two codes by less than its rounding in single
    precision (`unit`) may become either.
    """
    rows, width = x.shape
    padded = np.pad(x, ((0, 0), (0, -width % block))).reshape(rows, -1, block)
    scale = (np.abs(padded).max(axis=-1, keepdims=True) / 127.0).astype(np.float32).astype(np.float64)
    ratio = padded / np.where(scale > 0.0, scale, 1.0)
    codes = np.rint(ratio)
    tie = np.abs(np.abs(ratio - codes) - 0.5) <= 4.0 * unit * np.abs(ratio)
    edges = np.where(tie, scale, 0.0)
    # Where a scale is too small for a normal number it has no inverse, and codes come out as anything up to 128.
    normal = FORMATS[Precision.FP32].least_normal
    edges = np.where(scale < normal, np.abs(padded) + 128.0 * normal, edges)

    def flat(blocks: Array) -> Array:
        return np.asarray(np.broadcast_to(blocks, padded.shape).reshape(rows, -1)[:, :width])

    return flat(codes * scale), flat(edges)
