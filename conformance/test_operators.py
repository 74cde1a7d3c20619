"""The operators of Phi-3 as small graphs on the device, against float64: error in units of its precision."""

import pytest

from harness.judge import Judge
from harness.operators.catalogue import OPERATORS
from harness.operators.examine import examine, examine_true_shape
from harness.operators.strategy import TRUE_SHAPES, weights_of
from harness.sessions import TargetSession


@pytest.mark.parametrize("operator", OPERATORS)
def test_operators(session: TargetSession, operator: str, judge: Judge) -> None:
    """On every kind of value, an operator is off by no more than the roundings that its precision makes."""
    judge.conclude(examine(session.call, session.target, operator, shapes=[1]))


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
def test_operators_in_many_shapes(session: TargetSession, operator: str, judge: Judge) -> None:
    """The same in more shapes, drawn around the borders of tiles."""
    judge.conclude(examine(session.call, session.target, operator, shapes=[0, 2, 3]))


@pytest.mark.slow
@pytest.mark.parametrize("product", TRUE_SHAPES)
def test_products_in_true_shape(session: TargetSession, product: str, judge: Judge) -> None:
    """A product of Phi-3-mini by weights of the target's precision, fed one row, two and seventeen."""
    operator = weights_of(session.target.precision)
    judge.conclude(examine_true_shape(session.call, session.target, operator, product))
