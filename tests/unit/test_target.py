from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.target import Precision, Target, Unavailable, matches

_WORDS = st.from_regex(r"[a-z0-9]+(?:-[a-z0-9]+)*", fullmatch=True)
_DEVICES = st.from_regex(r"[a-z]+(?:\.[0-9]+)?", fullmatch=True)
_TARGETS = st.builds(Target, _WORDS, _DEVICES, st.sampled_from(Precision), st.none() | _WORDS)


@given(_TARGETS)
def test_a_target_parses_to_what_it_was_printed_from(target: Target) -> None:
    assert Target.parse(str(target)) == target


@given(st.text(max_size=20) | st.from_regex(r"[a-z.:-]{3,12}:(fp16|int4)", fullmatch=True))
def test_any_text_is_a_target_that_prints_as_written_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert str(Target.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "openvino",
        "openvino:npu",
        "openvino:npu:int4:lab1:x",
        "openvino::int4",
        "OpenVINO:npu:int4",
        "openvino:npu :int4",
        "openvino:npu:int4\n",
        "openvino:npu:int4:",
        "openvino:gpu..1:int4",
        "openvino:*:int4",
    ],
)
def test_another_form_is_refused_with_the_form_expected(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    assert repr(text) in caught.value.problem
    assert "backend:device:precision" in caught.value.remedy


@pytest.mark.parametrize("precision", ["int3", "fp8", "fp64"])
def test_an_unknown_precision_is_named_and_the_known_ones_are_listed(precision: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(f"openvino:npu:{precision}")
    assert repr(precision) in caught.value.problem
    assert all(known.value in caught.value.remedy for known in Precision)


@pytest.mark.parametrize(
    ("device", "base", "index"), [("gpu", "gpu", None), ("gpu.0", "gpu", 0), ("gpu.12", "gpu", 12)]
)
def test_a_device_splits_into_base_and_index(device: str, base: str, index: int | None) -> None:
    target = Target("openvino", device, Precision.FP16)
    assert (target.base_device, target.index) == (base, index)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("openvino:npu:int4", True),
        ("openvino:*:int4", True),
        ("*:npu:*", True),
        ("openvino:*", True),
        ("*:int[48]", True),
        ("openvino:npu:int8", False),
        ("OPENVINO:*", False),
        ("npu", False),
        ("", False),
    ],
)
def test_globs_match_the_whole_target_and_case_counts(pattern: str, expected: bool) -> None:
    assert matches(Target.parse("openvino:npu:int4"), pattern) is expected


@given(_TARGETS)
def test_every_target_without_magic_characters_matches_itself(target: Target) -> None:
    assert matches(target, str(target))
    assert matches(target, "*")


def test_what_is_unavailable_says_why_and_what_would_help() -> None:
    assert str(Unavailable("no NPU", "install the driver")) == "no NPU; install the driver"


def test_an_index_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="whose index is no number"):
        Target.parse("ort-genai:dml.x:int4")
