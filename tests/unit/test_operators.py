"""Single operators: cases as words, drawn values, bounds on rounding, and the verdict on what a device gave."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import phi3_float64
from harness.arithmetic import Arithmetic, CachePrecision
from harness.compare import Outcome
from harness.drawn import examples
from harness.errors import Unsupported, UsageError
from harness.operators import attention, products
from harness.operators.bench import Offer
from harness.operators.case import Case, Values, parse_case
from harness.operators.catalogue import OPERATORS, operator_of
from harness.operators.draw import digest
from harness.operators.estimate import Estimate, exact, growth
from harness.operators.examine import examine
from harness.operators.judging import conclude, judge_case
from harness.operators.numerics import Numerics
from harness.operators.rounding import FORMATS, round_to
from harness.operators.strategy import TRUE_SHAPES, series, true_shape
from harness.target import Precision, Target

FP32 = Numerics(Precision.FP32)
# What cases draw, for ever: recorded values are of these inputs, and controller and worker may have another NumPy.
DRAWN = (
    ("softmax/fp32/2/n=17/masked/0", 3443803966),
    ("matmul-float/bf16/3/k=17,n=5,bits=32/outliers/7", 1361203487),
    ("matmul-int4/fp16/1+2/k=256,n=33,bits=4,group=128,zero=1,root=0/wide/11", 3651094280),
    ("rms-norm/fp16/3/n=96/subnormal/5", 1136669352),
    ("longrope-long/fp32/3/heads=2,d=96,r=72,first=4096/plain/1", 3930659428),
    ("attention-window/bf16/7+1/heads=4,kv=2,d=32,window=3/large/2", 1603771906),
    ("embedding/fp32/5/n=16,v=9,bits=16/plain/3", 1137433117),
    ("swiglu/fp32/2/n=33/large/4", 2136330275),
)


def offer(precision: Precision = Precision.FP32, *, static: bool = False) -> Offer:
    quantised = {"zero": 1, "root": 0}
    weights = {
        "matmul-float": {"bits": 16},
        "matmul-int8": {"bits": 8, "group": 0, **quantised},
        "matmul-int4": {"bits": 4, "group": 32, **quantised},
        "embedding": {"bits": 16},
    }
    return Offer(Numerics(precision), weights, static=static)


def drawn(text: str) -> tuple[Case, dict[str, Any]]:
    case = parse_case(text)
    return case, operator_of(case).draw(case)


@pytest.mark.parametrize(("text", "expected"), DRAWN)
def test_a_case_is_one_word_and_draws_the_same_bytes_everywhere(text: str, expected: int) -> None:
    case, inputs = drawn(text)
    assert str(case) == text
    assert digest(inputs) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "softmax", "softmax/fp32/2/n=17/plain", "softmax/fp32/0/n=17/plain/0", "softmax/fp99/2/n=17/plain/0"),
        *("softmax/fp32/2/n=x/plain/0", "softmax/fp32/2/n=17/pretty/0", "softmax/fp32/2/n=17/plain/-1"),
    ],
)
def test_what_is_no_case_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match="no case of an operator") as refused:
        parse_case(text)
    assert "softmax/fp32/2/n=17/plain/0" in refused.value.remedy


@pytest.mark.parametrize("text", ["sotfmax/fp32/2/n=17/plain/0", "softmax/fp32/2/k=17/plain/0"])
def test_an_unknown_operator_or_a_size_that_is_missing_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"no operator|lacks the size"):
        operator_of(parse_case(text))


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_drawn_shapes_are_the_same_each_time_and_of_every_kind(operator: str) -> None:
    found = examples(series(operator, offer()), 4)
    assert found == examples(series(operator, offer()), 4)
    for cases in found:
        assert len({case.values for case in cases}) == len(cases)
        assert len({(tuple(case.sizes.items()), case.seed) for case in cases}) == 1
        assert all(set(operator_of(case).sizes) <= set(case.sizes) for case in cases)


def test_where_each_number_of_rows_is_a_graph_a_shape_has_one() -> None:
    for cases in examples(series("softmax", offer(static=True)), 4):
        assert len({case.rows for case in cases}) == 1


def test_partial_rotary_is_drawn_in_numbers_that_every_runtime_takes() -> None:
    shapes = {(cases[0]["d"], cases[0]["r"]) for cases in examples(series("rotary", offer()), 4)}
    assert all(rotated % 16 == 0 for _, rotated in shapes)
    assert {rotated < size for size, rotated in shapes} == {False, True}


@pytest.mark.parametrize("name", TRUE_SHAPES)
def test_true_shapes_are_those_of_phi_3_mini(name: str) -> None:
    case = true_shape(name, "matmul-int4", offer())
    assert {name: (case["k"], case["n"])}.items() <= {
        "qkv": (3072, 9216),
        "o": (3072, 3072),
        "gate-up": (3072, 16384),
        "down": (8192, 3072),
    }.items()
    assert case.rows == (1, 2, 17)


@pytest.mark.parametrize("grid", list(FORMATS))
@pytest.mark.parametrize("values", list(Values))
def test_values_are_of_their_kind_and_exact_in_their_precision(values: Values, grid: Precision) -> None:
    case = Case("softmax", grid, (3,), {"n": 130}, values, 9)
    x = operator_of(case).draw(case)["x"]
    form = FORMATS[grid]
    finite = np.isfinite(x)
    assert np.array_equal(round_to(x[finite], grid), x[finite])
    size = np.abs(x[finite & (x != 0)])
    checks = {
        Values.SUBNORMAL: size.max() < form.least_normal,
        Values.TINY: form.least_normal < size.max() < 32 * form.least_normal,
        Values.EQUAL: np.unique(x).size == 1,
        Values.ALTERNATING: float(x[:, :130].sum()) == 0.0,
        Values.ZEROS: not x[0].any() and x[1].any(),
        Values.MASKED: not finite.all() and bool(finite.any(axis=1).all()),
        Values.LARGE: size.max() > 100,
        Values.OUTLIERS: size.max() > 30 * np.median(size),
    }
    assert checks.get(values, True)
    assert (values is Values.MASKED) or finite.all()


@given(st.floats(-65000, 65000, width=32))
def test_rounding_is_numpys_and_half_to_even(x: float) -> None:
    assert round_to(np.asarray([x]), Precision.FP16)[0] == np.float32(np.float16(np.float32(x)))
    brain = float(round_to(np.asarray([x]), Precision.BF16)[0])
    assert abs(brain - x) <= abs(x) * 2.0**-8 + 2.0**-134


def test_a_tie_of_bf16_goes_to_the_even_neighbour() -> None:
    ties = np.asarray([1 + 2.0**-8, 1 + 3 * 2.0**-8, -1 - 2.0**-8])
    assert round_to(ties, Precision.BF16).tolist() == [1.0, 1 + 2.0**-6, -1.0]
    assert FORMATS[Precision.BF16].spacing(np.asarray([1.0, 2.0, 0.0])).tolist() == [2.0**-7, 2.0**-6, 2.0**-133]


def test_bounds_hold_for_arithmetic_in_single_precision_and_are_not_far_off() -> None:
    rng = np.random.default_rng(3)
    x, y = (rng.normal(size=10_000).astype(np.float32) for _ in range(2))
    form = FORMATS[Precision.FP32]
    found = ((exact(x) * exact(y)).rounded(form) + exact(x)).rounded(form)
    error = np.abs((x * y + x).astype(np.float64) - found.value)
    assert (error <= found.worst).all()
    assert 0.1 < np.sqrt(np.mean(np.square(error / found.deviation))) < 1.0


def test_a_sum_grows_with_its_terms_until_nothing_can_be_said() -> None:
    assert growth(1, Precision.FP32) == pytest.approx(2.0**-24, rel=1e-6)
    assert growth(4096, Precision.BF16) == math.inf


def test_the_truth_of_rows_is_that_of_the_oracle() -> None:
    case, inputs = drawn("rms-norm/fp32/3/n=96/plain/5")
    found = operator_of(case).truth(case, inputs, FP32, Arithmetic()).value
    x, weight = inputs["x"].astype(np.float64), inputs["weight"].astype(np.float64)
    assert np.allclose(found, phi3_float64._rms_norm(x, weight, {"rms_norm_eps": 1e-5}), rtol=1e-14)
    case, inputs = drawn("swiglu/fp32/3/n=33/plain/5")
    found = operator_of(case).truth(case, inputs, FP32, Arithmetic()).value
    assert np.allclose(found, phi3_float64._swiglu(inputs["x"].astype(np.float64)), rtol=1e-14)


@pytest.mark.parametrize("window", [0, 3])
def test_the_truth_of_attention_and_rotation_is_that_of_the_oracle(window: int) -> None:
    name = "attention-window" if window else "attention"
    case, inputs = drawn(f"{name}/fp32/7+1+1/heads=4,kv=2,d=32,window={window}/plain/5")
    found = operator_of(case).truth(case, inputs, FP32, Arithmetic()).value
    flat = [inputs[part].astype(np.float64).reshape(9, -1) for part in ("query", "key", "value")]
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "sliding_window": window or None}
    still = (np.ones((9, 1, 16)), np.zeros((9, 1, 16)))
    assert np.allclose(
        found.reshape(9, -1), phi3_float64._attention(config, np.concatenate(flat, 1), still), rtol=1e-12
    )
    case, inputs = drawn("rotary/fp32/5/heads=2,d=32,r=24,first=3/plain/5")
    found = operator_of(case).truth(case, inputs, FP32, Arithmetic()).value
    angles = inputs["positions"][:, None, None] * inputs["frequencies"].astype(np.float64)
    turned = phi3_float64._rotate(inputs["x"].astype(np.float64), (np.cos(angles), np.sin(angles)))
    assert np.allclose(found, turned, rtol=1e-14)


def test_int8_activations_round_to_even_and_know_which_lie_between_two_codes() -> None:
    x = np.asarray([[127.0, 2.5, 3.0, -127.0]])
    values, edges = products.int8_blocks(x, 2, 2.0**-24)
    assert values.tolist() == [[127.0, 2.0, 3.0, -127.0]]
    assert edges.tolist() == [[0.0, 1.0, 0.0, 0.0]]
    values, edges = products.int8_blocks(np.asarray([[0.0, 0.0, 1e-42]]), 2, 2.0**-24)
    assert values[0, :2].tolist() == [0.0, 0.0]
    assert edges[0, 2] > 1e-42  # its scale is too small to have an inverse


def test_a_u8_cache_keeps_the_ends_of_a_row() -> None:
    x = np.asarray([[-1.0, 0.001, 1.0]])
    values, off = attention.u8_rows(x, 2.0**-24)
    assert np.allclose(values[0, [0, 2]], [-1.0, 1.0], atol=1e-12)
    assert 0.0 < abs(values[0, 1] - 0.001) < 1.0 / 255
    assert (off < 1e-3).all()


@pytest.mark.parametrize("block", [0, 32])
def test_the_arithmetic_in_effect_is_the_one_whose_result_lies_nearest(block: int) -> None:
    case, inputs = drawn("matmul-int8/fp32/17/k=128,n=33,bits=8,group=0,zero=1,root=0/plain/3")
    permitted = Numerics(Precision.FP32, permitted=(Arithmetic(), Arithmetic(block=32)))
    device = products.truth(case, inputs, permitted, Arithmetic(block=block)).value.astype(np.float32)
    judged = judge_case(case, device, permitted)
    assert judged.right
    assert ("int8 activations by 32" in judged.how) is bool(block)
    only = Numerics(Precision.FP32, permitted=(Arithmetic(block=32 - block),))
    assert not judge_case(case, device, only).right


def test_a_cache_in_8_bits_is_not_taken_for_a_fault_where_it_is_documented() -> None:
    case, inputs = drawn("attention/fp32/7+1/heads=2,kv=2,d=32,window=0/plain/3")
    kept = Arithmetic(cache=CachePrecision.U8)
    device = attention.truth(case, inputs, FP32, kept).value.astype(np.float32)
    assert not judge_case(case, device, FP32).right
    assert judge_case(case, device, Numerics(Precision.FP32, permitted=(Arithmetic(), kept))).right


def softmax_case() -> tuple[Case, Any]:
    case, inputs = drawn("softmax/fp32/3/n=17/plain/2")
    return case, operator_of(case).truth(case, inputs, FP32, Arithmetic()).value.astype(np.float32)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda y: y[:, :-1], "a result of shape [3, 16] where [3, 17] is due"),
        (lambda y: np.where(np.arange(17) == 4, np.nan, y), "element [0, 4] of [3, 17] is nan where"),
        (lambda y: np.where(np.arange(17) == 4, np.inf, y), "element [0, 4] of [3, 17] is inf where"),
        (lambda y: y * np.float32(1.001), "x what its roundings allow"),
    ],
)
def test_a_verdict_names_element_and_values_and_how_to_replay(spoil: Any, words: str) -> None:
    case, right = softmax_case()
    verdict = conclude([judge_case(case, spoil(right), FP32)], 0, "some:cpu:fp32")
    assert verdict.outcome is Outcome.FAIL
    assert words in verdict.message
    assert f"phi3-conformance operator some:cpu:fp32 '{case}'" in verdict.message


def test_a_verdict_says_by_how_much_of_a_row_the_worst_case_fails() -> None:
    case, right = softmax_case()
    wrong = right.copy()
    wrong[1, right[1].argmax()] *= np.float32(1.01)
    verdict = conclude([judge_case(case, right, FP32), judge_case(case, wrong, FP32)], 1, "some:cpu:fp32")
    assert verdict.message.startswith("1 of 2 cases fail, by at most 0.01 of the largest value of a row")
    assert verdict.numbers["left_out"] == 1.0


def test_a_result_beyond_the_precision_may_be_infinite_and_of_the_right_sign_only() -> None:
    case = parse_case("rms-norm/fp16/1/n=2/large/0")
    numerics = Numerics(Precision.FP16)
    inputs = operator_of(case).draw(case)
    value = operator_of(case).truth(case, inputs, numerics, Arithmetic()).value
    assert np.isfinite(value).all()  # large values are drawn so that results fit
    assert not judge_case(case, np.full_like(value, np.inf), numerics).right
    from harness.operators.judging import _errors

    beyond = Estimate(np.asarray([1e6, -1e6, 1.0]))
    assert _errors(np.asarray([np.inf, np.inf, np.inf]), beyond, numerics).tolist() == [0.0, np.inf, np.inf]


def answering(answer: dict[str, Any]) -> Any:
    def call(operation: str, **arguments: Any) -> Any:
        import msgspec

        return msgspec.to_builtins(offer()) if operation == "operator_offer" else [answer] * len(arguments["cases"])

    return call


def test_an_operator_that_takes_no_shape_is_unsupported_with_the_runtimes_reason() -> None:
    with pytest.raises(Unsupported, match="only squares"):
        examine(answering({"unsupported": "only squares"}), Target("a", "cpu", Precision.FP32), "softmax", [0])


def test_other_inputs_than_the_controllers_are_no_answer() -> None:
    answer = {"output": np.zeros((1, 1), np.float32), "digest": 1}
    with pytest.raises(UsageError, match="has drawn other inputs"):
        examine(answering(answer), Target("a", "cpu", Precision.FP32), "softmax", [0])
