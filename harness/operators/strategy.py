"""The cases of an operator: shapes and hard values drawn by hypothesis, and Phi-3's own shapes.

Sizes are drawn from lists, around the borders of the tiles that kernels work in; the first of each list is the
simplest, which is what hypothesis shrinks to.
"""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.operators.bench import Offer
from harness.operators.case import Case, Values
from harness.operators.catalogue import OPERATORS
from harness.target import Precision

# Around the borders of 16, 32 and 128, between which kernels take their tails. Only products have tiles so large.
_FEW_ROWS = (1, 2, 3, 15, 16, 17, 31, 33)
_ROWS = (*_FEW_ROWS, 127, 129)
_WIDTHS = (1, 2, 16, 15, 17, 31, 32, 33, 64, 127, 128, 129, 255, 768)
_SEEDS = st.sampled_from(range(1000))

_FINITE = tuple(values for values in Values if values is not Values.MASKED)
_KINDS = {
    "softmax": tuple(Values),
    "attention": (Values.PLAIN, Values.LARGE, Values.EQUAL, Values.ALTERNATING, Values.ZEROS, Values.TINY),
    "embedding": (Values.PLAIN,),
}
_SIZES: Mapping[str, Mapping[str, tuple[int, ...]]] = {
    "rms-norm": {"n": (2, *_WIDTHS[2:], 3072)},
    "swiglu": {"n": (*_WIDTHS, 8192)},
    "softmax": {"n": (*_WIDTHS, 2047, 4096)},
    "embedding": {"n": (2, 16, 32, 96, 128, 256), "v": (3, 17, 64, 257)},
    "rotary": {"heads": (1, 2, 8), "d": (96, 32, 128), "first": (0, 1, 127, 2047, 4000)},
    "attention": {"heads": (1, 2, 4, 8), "d": (96, 32, 64, 128)},
}


def series(operator: str, offer: Offer) -> SearchStrategy[tuple[Case, ...]]:
    """A case for every kind of value, all of one shape and one weight, so that one graph serves for all of them."""
    family = _family(operator)
    sizes = _products(operator, offer) if family == "matmul" else _sizes(operator, offer)
    kinds = _KINDS.get(family, _FINITE)
    counts = st.sampled_from(_ROWS if family == "matmul" else _FEW_ROWS)
    rows = _calls() if family == "attention" else counts.map(lambda count: (count,))
    grid, named = offer.numerics.grid, OPERATORS[operator].sizes

    def make(shape: dict[str, int], seed: int, calls: tuple[tuple[int, ...], ...]) -> tuple[Case, ...]:
        pairs = zip(kinds, calls, strict=True)
        ordered = {name: shape[name] for name in (*named, *shape)}  # hypothesis draws them in any order
        return tuple(Case(operator, grid, rows, ordered, values, seed) for values, rows in pairs)

    once = rows.map(lambda calls: (calls,) * len(kinds))
    return st.builds(make, sizes, _SEEDS, once if offer.static else st.tuples(*[rows] * len(kinds)))


def _family(operator: str) -> str:
    head = operator.split("-")[0]
    return {"longrope": "rotary", "rms": "rms-norm"}.get(head, head)


def _sizes(operator: str, offer: Offer) -> SearchStrategy[dict[str, int]]:
    listed = {name: st.sampled_from(sizes) for name, sizes in _SIZES[_family(operator)].items()}
    drawn = st.fixed_dictionaries(listed)
    if operator in offer.weights:
        return drawn.map(lambda sizes: {**sizes, **offer.weights[operator]})
    if operator == "attention":
        return st.tuples(drawn, st.sampled_from((1, 2, 4))).map(lambda pair: _grouped(pair[0], pair[1], 0))
    if operator == "attention-window":
        windows = st.sampled_from((1, 2, 7, 16, 31))
        return st.tuples(drawn, st.sampled_from((1, 2, 4)), windows).map(lambda three: _grouped(*three))
    if operator == "longrope-long":  # past the original context, where the long factors begin
        return drawn.map(lambda sizes: {**sizes, "r": sizes["d"], "first": sizes["first"] + 4096})
    if _family(operator) == "rotary":  # Phi-4-mini rotates three quarters of a head of 128
        partial = st.sampled_from((False, True))
        return st.tuples(drawn, partial).map(lambda pair: {**pair[0], "r": _rotated(pair[0]["d"], partial=pair[1])})
    return drawn


def _rotated(size: int, *, partial: bool) -> int:
    """How many components of a head are rotated: about three quarters, a multiple of 16, since not all take others."""
    return size * 3 // 4 // 16 * 16 if partial else size


def _grouped(sizes: Mapping[str, int], sharing: int, window: int) -> dict[str, int]:
    """Sizes of attention, as many heads as may be sharing keys and values."""
    kv = max(1, sizes["heads"] // sharing)
    return {"heads": sizes["heads"], "kv": kv, "d": sizes["d"], "window": window}


def _calls() -> SearchStrategy[tuple[int, ...]]:
    """A prompt at once, a prompt and tokens one by one, a prompt in chunks."""
    return st.sampled_from(((1,), (2,), (17,), (33,), (1, 1), (7, 1, 1), (16, 1), (31, 1, 1, 1), (5, 12), (16, 16, 1)))


def _products(operator: str, offer: Offer) -> SearchStrategy[dict[str, int]]:
    stored = offer.weights[operator]
    group = stored.get("group", 0)
    widths = (group, 2 * group, 3 * group) if group else _WIDTHS
    drawn = st.fixed_dictionaries({"k": st.sampled_from(widths), "n": st.sampled_from(_WIDTHS)})
    return drawn.map(lambda sizes: {**sizes, **stored})


# Input and output channels of Phi-3-mini's products.
TRUE_SHAPES = {"qkv": (3072, 9216), "o": (3072, 3072), "gate-up": (3072, 16384), "down": (8192, 3072)}


def true_shape(name: str, operator: str, offer: Offer) -> Case:
    """A product of Phi-3-mini, fed one row, then two, then seventeen: each is another kernel's work.

    Seventeen only where each of these is another graph to compile.
    """
    width, n = TRUE_SHAPES[name]
    sizes = {"k": width, "n": n, **offer.weights[operator]}
    rows = (17,) if offer.static else (1, 2, 17)
    return Case(operator, offer.numerics.grid, rows, sizes, Values.PLAIN, 20261125)


def weights_of(precision: Precision) -> str:
    """The product by weights of a precision."""
    return {Precision.INT8: "matmul-int8", Precision.INT4: "matmul-int4"}.get(precision, "matmul-float")
