"""The operators of Phi-3 that are judged: how their inputs are drawn and what they ought to give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.errors import UsageError
from harness.operators import attention, products, rotary, rowwise
from harness.operators.case import Case
from harness.operators.estimate import Estimate
from harness.operators.numerics import Numerics

Inputs = dict[str, NDArray[Any]]
Truth = Callable[[Case, Mapping[str, NDArray[Any]], Numerics, Arithmetic], Estimate]


class Operator(NamedTuple):
    """How an operator's inputs are drawn, and what they give: both are functions of the case alone.

    `sizes`: the names of the sizes that a case of it has.
    """

    draw: Callable[[Case], Inputs]
    truth: Truth
    sizes: tuple[str, ...]


_QUANTISED = ("bits", "group", "zero", "root")
_ROTARY = Operator(rotary.draw, rotary.truth, ("heads", "d", "r", "first"))
_ATTENTION = Operator(attention.draw, attention.truth, ("heads", "kv", "d", "window"))

OPERATORS: Mapping[str, Operator] = {
    "matmul-float": Operator(products.draw, products.truth, ("k", "n", "bits")),
    "matmul-int8": Operator(products.draw, products.truth, ("k", "n", *_QUANTISED)),
    "matmul-int4": Operator(products.draw, products.truth, ("k", "n", *_QUANTISED)),
    "rms-norm": Operator(rowwise.draw_rms_norm, rowwise.rms_norm, ("n",)),
    "rotary": _ROTARY,
    "longrope-short": _ROTARY,
    "longrope-long": _ROTARY,
    "attention": _ATTENTION,
    "attention-window": _ATTENTION,
    "swiglu": Operator(rowwise.draw_swiglu, rowwise.swiglu, ("n",)),
    "softmax": Operator(rowwise.draw_softmax, rowwise.softmax, ("n",)),
    "embedding": Operator(rowwise.draw_embedding, rowwise.embedding, ("n", "v", "bits")),
}
"""By name. `matmul-*` and `embedding` are of the weights that a target has."""


def operator_of(case: Case) -> Operator:
    """The operator of a case. Raises UsageError where there is none of that name, or a size of it is missing."""
    if case.operator not in OPERATORS:
        raise UsageError(f"there is no operator {case.operator!r}", f"one of {', '.join(OPERATORS)}")
    found = OPERATORS[case.operator]
    missing = [name for name in found.sizes if name not in case.sizes]
    if missing:
        raise UsageError(f"{case} lacks the size {missing[0]}", f"give {', '.join(found.sizes)}")
    return found
