"""Faults planted in single operators: each is found by the operator's own case, and named with its shape and seed."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

from harness.compare import Outcome, Verdict
from harness.errors import Unsupported, UsageError
from harness.operators.bench import Operators
from harness.operators.case import parse_case
from harness.operators.catalogue import OPERATORS
from harness.operators.examine import examine, replay
from harness.target import Precision, Target
from support import PLANTED

TARGET = Target("planted", "cpu", Precision.FP32)
SHAPES = [0, 1, 2, 3]
FAULTS = (
    ("tail", "matmul-float"),
    ("half-sums", "matmul-float"),
    ("channel", "matmul-int8"),
    ("zero-points", "matmul-int8"),
    ("weights", "matmul-int8"),
    ("nibbles", "matmul-int4"),
    ("epsilon", "rms-norm"),
    ("half-squares", "rms-norm"),
    ("rotary-base", "rotary"),
    ("half-angles", "rotary"),
    ("interleaved", "rotary"),
    ("half-angles", "longrope-long"),
    ("longrope-factor", "longrope-short"),
    ("longrope-factor", "longrope-long"),
    ("scale", "attention"),
    ("later", "attention"),
    ("kv-heads", "attention"),
    ("stale-cache", "attention"),
    ("softmax-overflow", "attention"),
    ("window", "attention-window"),
    ("gate-up", "swiglu"),
    ("naive-sigmoid", "swiglu"),
    ("softmax-overflow", "softmax"),
    ("mask", "softmax"),
    ("embedding", "embedding"),
    ("rows-reversed", "rms-norm"),
    ("narrow", "rms-norm"),
)
# Those of a size that BF16 does not hide: a scale of attention 1 % off is within its rounding of scores.
FAULTS_IN_HALF = (
    ("tail", "matmul-float"),
    ("channel", "matmul-int8"),
    ("nibbles", "matmul-int4"),
    ("epsilon", "rms-norm"),
    ("rotary-base", "rotary"),
    ("half-angles", "longrope-long"),
    ("scale-far", "attention"),
    ("kv-heads", "attention"),
    ("window", "attention-window"),
    ("softmax-overflow", "softmax"),
    ("gate-up", "swiglu"),
)


class Direct:
    """The planted backend's bench in this process, asked as a worker is."""

    def __init__(self, precision: Precision = Precision.FP32) -> None:
        sys.path.append(str(PLANTED))
        try:
            self._bench: Any = importlib.import_module("planted_operators").PlantedBench
        finally:
            sys.path.remove(str(PLANTED))
        self._precision = precision
        backend: Any = self
        self._operators = Operators(lambda: backend, lambda: None)
        self.asked = 0

    name = "planted"

    def operators(self, target: Target) -> Any:  # noqa: ARG002 - there is one
        return self._bench(self._precision)

    def call(self, operation: str, **arguments: Any) -> Any:
        self.asked += 1
        return getattr(self._operators, f"do_{operation}")(**arguments)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Verdict]:
    """Plant a fault and examine an operator: `planted("epsilon", "rms-norm")`."""

    def find(fault: str, operator: str, precision: Precision = Precision.FP32) -> Verdict:
        monkeypatch.setenv("PLANTED_FAULT", f"operator-{fault}")
        return examine(Direct(precision).call, TARGET, operator, SHAPES)

    return find


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
@pytest.mark.parametrize("operator", OPERATORS)
def test_an_honest_device_is_right(planted: Any, operator: str, precision: Precision) -> None:
    verdict = planted("none", operator, precision)
    assert verdict.outcome is Outcome.PASS, verdict.message
    # Something was held against a bound, and neither was it so tight nor so wide that it says nothing.
    assert verdict.numbers["elements"] > 30
    exact = operator == "embedding"
    assert exact or 0.02 < max(verdict.numbers["worst"], verdict.numbers["mean"]) < 1.0


@pytest.mark.parametrize(("fault", "operator"), FAULTS)
def test_a_fault_is_found_and_named(planted: Any, fault: str, operator: str) -> None:
    verdict = planted(fault, operator)
    assert verdict.outcome is Outcome.FAIL, f"{fault} was not found: {verdict.numbers}"
    first, second, third = verdict.message.splitlines()[:3]
    assert first == "the simplest case that fails:"
    assert second.startswith("1 of 1 cases fail")
    assert third.startswith(f"{operator}/fp32/")
    assert "is due" in third or "a result of shape" in third
    replayed = replay(Direct().call, TARGET, parse_case(third.split(":")[0]))
    assert replayed.outcome is Outcome.FAIL


@pytest.mark.parametrize(("fault", "operator"), FAULTS_IN_HALF)
def test_in_half_precision_too(planted: Any, fault: str, operator: str) -> None:
    assert planted(fault, operator, Precision.BF16).outcome is Outcome.FAIL


def test_what_no_single_element_shows_all_of_them_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are 1 % off hide in the rounding of BF16, element by element, and not in its mean."""
    monkeypatch.setenv("PLANTED_FAULT", "operator-weights")
    case = "matmul-int8/bf16/17/k=768,n=257,bits=8,group=0,zero=1,root=0/plain/7"
    verdict = replay(Direct(Precision.BF16).call, TARGET, parse_case(case))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.numbers["worst"] < 1.0 < verdict.numbers["mean"]
    assert "all elements together" in verdict.message


def test_a_weight_of_many_rows_repeats_the_drawn_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_FAULT", "")
    case = "matmul-int4/fp32/1+2+17/k=3072,n=3072,bits=4,group=32,zero=0,root=0/plain/1"
    found = replay(Direct().call, TARGET, parse_case(case))
    assert (found.outcome, found.numbers["elements"]) == (Outcome.PASS, 20 * 3072), found.message
    monkeypatch.setenv("PLANTED_FAULT", "operator-tiles")
    assert replay(Direct().call, TARGET, parse_case(case)).outcome is Outcome.FAIL


def test_what_is_lacking_is_unsupported_with_the_reason(planted: Any) -> None:
    with pytest.raises(Unsupported, match="this device has no SwiGLU"):
        planted("lacking", "swiglu")


def test_shrinking_asks_a_bounded_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_FAULT", "operator-epsilon")
    direct = Direct()
    examine(direct.call, TARGET, "rms-norm", SHAPES)
    assert direct.asked < 70


def test_a_fault_that_does_not_come_again_still_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED_FAULT", "operator-epsilon")
    direct = Direct()

    def call(operation: str, **arguments: Any) -> Any:
        found = direct.call(operation, **arguments)
        if operation == "operators":
            monkeypatch.delenv("PLANTED_FAULT", raising=False)
        return found

    verdict = examine(call, TARGET, "rms-norm", SHAPES)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.message.startswith("asked again, none of these fails: the device does not repeat itself")


def test_a_run_fails_names_the_case_and_says_what_raised(conform: Any) -> None:
    result = conform("-m", "not slow", fault="operator-epsilon,operator-raises", suites=("test_operators",))
    assert result.status == 1
    outcomes = {case.id.split("::")[1]: case for case in result.cases}
    wrong = outcomes["test_operators[planted:cpu:fp32-rms-norm]"]
    assert wrong.outcome == "FAIL"
    assert "replay: phi3-conformance operator planted:cpu:fp32 'rms-norm/fp32/" in wrong.message
    raised = outcomes["test_operators[planted:cpu:fp32-softmax]"]
    assert (raised.outcome, raised.stage) == ("ERROR", "run")
    assert "softmax/fp32/" in raised.message
    assert "CL_OUT_OF_RESOURCES" in raised.message
    assert outcomes["test_operators[planted:cpu:fp32-attention-window]"].outcome == "PASS"


def test_a_case_that_the_target_would_round_first_is_refused_with_the_edit() -> None:
    case = parse_case("softmax/fp32/2/n=17/plain/1")
    with pytest.raises(UsageError, match=r"round to bf16 first\n.*with bf16 in its second place"):
        replay(Direct(Precision.BF16).call, TARGET, case)
    assert replay(Direct().call, TARGET, parse_case("softmax/bf16/2/n=17/plain/1")).outcome is Outcome.PASS
