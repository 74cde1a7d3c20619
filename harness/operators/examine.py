"""Have a bench run an operator on every kind of value, judge what it gives, and shrink what fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import hypothesis
import msgspec
from hypothesis import Phase

from harness.compare import Verdict
from harness.drawn import examples, fixed_settings
from harness.errors import Unsupported, UsageError
from harness.operators.bench import Offer
from harness.operators.case import Case, Values
from harness.operators.catalogue import operator_of
from harness.operators.draw import digest
from harness.operators.judging import Judged, conclude, judge_case
from harness.operators.strategy import series, true_shape
from harness.target import Precision, Target

Call = Callable[..., Any]
"""Carries out an operation of a worker: `harness.sessions.TargetSession.call`, or a worker's own."""

# How often a worker is asked while a failing case is shrunk; each may be a graph to compile.
_ASKED = 60


class Bound:
    """A worker's bench, bound to a target."""

    def __init__(self, call: Call, target: Target) -> None:
        # A worker knows no host: there, the target is one of this machine.
        self._name = str(msgspec.structs.replace(target, host=None))
        self._call = call
        self.target = target
        self.offer = msgspec.convert(call("operator_offer", target=self._name), Offer)

    def require(self, operator: str) -> None:
        """Raise Unsupported, with the reason, where the bench lacks an operator."""
        if operator in self.offer.lacks:
            raise Unsupported(f"{self.target}: {self.offer.lacks[operator]}")

    def judge(self, asked: Sequence[Case]) -> tuple[list[Judged], str]:
        """Every case that the runtime takes, run in one call and judged, and why it does not take others."""
        answers = self._call("operators", target=self._name, cases=[str(case) for case in asked])
        judged, refused = [], ""
        for case, answer in zip(asked, answers, strict=True):
            if "unsupported" in answer:
                refused = str(answer["unsupported"])
                continue
            _check_inputs(case, answer)
            judged.append(judge_case(case, answer["output"], self.offer.numerics))
        return judged, refused

    def verdict(self, asked: Sequence[Case]) -> Verdict:
        """One verdict on cases. Raises Unsupported where the runtime takes none of them."""
        judged, refused = self.judge(asked)
        if not judged:
            raise Unsupported(f"{self.target}: {refused}")
        return conclude(judged, len(asked) - len(judged), str(self.target))


def examine(call: Call, target: Target, operator: str, shapes: Sequence[int]) -> Verdict:
    """One operator in some of the shapes that are drawn, by their numbers, in each with every kind of value.

    Shape 0 is the simplest; an operator of few sizes may have fewer shapes. What fails is shrunk first.
    Raises Unsupported where the target lacks the operator.
    """
    bound = Bound(call, target)
    bound.require(operator)
    every = examples(series(operator, bound.offer), max(shapes) + 1)
    drawn = [case for number in shapes if number < len(every) for case in every[number]]
    judged, refused = bound.judge(drawn)
    if not judged:
        raise Unsupported(f"{target}: {refused}")
    verdict = conclude(judged, len(drawn) - len(judged), str(target))
    wrong = next((one.case for one in judged if not one.right), None)
    if wrong is None:
        return verdict
    simplest = _shrink(bound, operator, wrong.values, max(shapes) + 1)
    if simplest is None:
        note = "asked again, none of these fails: the device does not repeat itself"
        return msgspec.structs.replace(verdict, message=f"{note}\n{verdict.message}")
    smallest = conclude([simplest], 0, str(target))
    return msgspec.structs.replace(
        verdict, message=f"the simplest case that fails:\n{smallest.message}\n{verdict.message}"
    )


def examine_true_shape(call: Call, target: Target, operator: str, name: str) -> Verdict:
    """A product of Phi-3-mini in its own shape. Raises Unsupported where the target has no such weights."""
    bound = Bound(call, target)
    bound.require(operator)
    return bound.verdict([true_shape(name, operator, bound.offer)])


def replay(call: Call, target: Target, case: Case) -> Verdict:
    """One case over again. Raises UsageError where it is none, Unsupported where the target lacks its operator.

    Also UsageError where the target would round the case's values before it computes: the bounds do not count that.
    """
    operator_of(case)
    bound = Bound(call, target)
    bound.require(case.operator)
    grid = bound.offer.numerics.grid
    if grid not in (case.grid, Precision.FP32):
        raise UsageError(
            f"{case} has values of {case.grid.value}, which {target} would round to {grid.value} first",
            f"write it with {grid.value} in its second place",
        )
    return bound.verdict([case])


def _check_inputs(case: Case, answer: Mapping[str, Any]) -> None:
    if answer["digest"] != digest(operator_of(case).draw(case)):
        raise UsageError(
            f"{case}: the worker has drawn other inputs than the controller",
            "install this version of the harness there",
        )


def _shrink(bound: Bound, operator: str, values: Values, shapes: int) -> Judged | None:
    """The simplest failing case with such values, found by hypothesis from the shapes that were drawn; None if none."""
    failing: list[Judged] = []
    asked: dict[str, Judged | None] = {}

    def ask(case: Case) -> Judged | None:
        if str(case) not in asked and len(asked) < _ASKED:
            judged, _ = bound.judge([case])
            asked[str(case)] = next((one for one in judged if not one.right), None)
        return asked.get(str(case))

    @hypothesis.seed(0)
    @fixed_settings(shapes, (Phase.generate, Phase.shrink))
    @hypothesis.given(series(operator, bound.offer))
    def attempt(cases: tuple[Case, ...]) -> None:
        wrong = next((one for one in map(ask, (case for case in cases if case.values is values)) if one), None)
        if wrong is not None:
            failing.append(wrong)
            raise _StillWrong

    with contextlib.suppress(_StillWrong):
        attempt()
    return failing[-1] if failing else None


class _StillWrong(Exception):
    """A case still fails."""
