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
    """How an operator's inputs are drawn, and what they give: both are functions of the case alone."""

    draw: Callable[[Case], Inputs]
    truth: Truth


_PRODUCT = Operator(products.draw, products.truth)
_ROTARY = Operator(rotary.draw, rotary.truth)
_ATTENTION = Operator(attention.draw, attention.truth)

OPERATORS: Mapping[str, Operator] = {
    "matmul-float": _PRODUCT,
    "matmul-int8": _PRODUCT,
    "matmul-int4": _PRODUCT,
    "rms-norm": Operator(rowwise.draw_rms_norm, rowwise.rms_norm),
    "rotary": _ROTARY,
    "longrope-short": _ROTARY,
    "longrope-long": _ROTARY,
    "attention": _ATTENTION,
    "attention-window": _ATTENTION,
    "swiglu": Operator(rowwise.draw_swiglu, rowwise.swiglu),
    "softmax": Operator(rowwise.draw_softmax, rowwise.softmax),
    "embedding": Operator(rowwise.draw_embedding, rowwise.embedding),
}
"""By name. `matmul-*` and `embedding` are of the weights that a target has."""


def operator_of(case: Case) -> Operator:
    """The operator of a case. Raises UsageError where there is none of that name."""
    if case.operator not in OPERATORS:
        raise UsageError(f"there is no operator {case.operator!r}", f"one of {', '.join(OPERATORS)}")
    return OPERATORS[case.operator]
