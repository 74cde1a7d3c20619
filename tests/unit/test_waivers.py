from __future__ import annotations

import datetime
from pathlib import Path

import msgspec
import pytest

from harness.errors import PolicyError
from harness.target import Precision, Target
from harness.waivers import Waiver, applying_waivers, read_waivers

_TARGET = Target.parse("ort-genai:dml:int4")
_WAIVER = Waiver(
    id="known",
    targets="ort-genai:*",
    cases=("test_logits[[]window*]",),
    outcomes=("FAIL",),
    message="worst-token KL",
    checkpoints=("phi-3-*",),
    versions={"onnxruntime-genai": ">=0.18,<0.19"},
    reason="a defect",
    url="https://example.com/1",
    owner="somebody",
    expires=datetime.date(2027, 6, 30),
)
_FILE = """\
schema = 1

[[waiver]]
id = "known"
targets = "ort-genai:*"
cases = ["test_logits*"]
outcomes = ["ERROR(run)", "FAIL"]
message = "worst-token KL"
checkpoints = ["phi-3-tiny"]
versions = { onnxruntime-genai = ">=0.18,<0.19" }
reason = "a defect"
url = "https://example.com/1"
owner = "somebody"
expires = 2027-06-30
"""
_FIXED = {"onnxruntime-genai": "0.19.0"}
_BROKEN = {"onnxruntime-genai": "0.18.2"}


def _write(folder: Path, text: str) -> Path:
    path = folder / "waivers.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_waivers_of_the_project_can_be_read(tree: Path) -> None:
    for waiver in read_waivers(tree / "conformance" / "waivers.toml"):
        assert waiver.versions, f"{waiver.id} waives every version there will ever be"


def test_a_waiver_is_read_as_written(tmp_path: Path) -> None:
    (waiver,) = read_waivers(_write(tmp_path, _FILE))
    assert (waiver.id, waiver.expires) == ("known", datetime.date(2027, 6, 30))
    assert waiver.outcomes == ("ERROR(run)", "FAIL")


def test_a_file_may_hold_no_waivers(tmp_path: Path) -> None:
    assert read_waivers(_write(tmp_path, "schema = 1\n")) == ()


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("schema = 1", "schema = 2", "schema 2"),
        ("schema = 1\n", "", "schema"),
        ('id = "known"\n', "", "id"),
        ('id = "known"', 'id = " "', "empty id"),
        ('targets = "ort-genai:*"', 'targets = ""', "empty targets"),
        ('reason = "a defect"', 'reason = ""', "empty reason"),
        ('owner = "somebody"', 'owner = ""', "empty owner"),
        ("https://", "http://", "'http://example.com/1'"),
        ('cases = ["test_logits*"]', "cases = []", "'known' waives no"),
        ('outcomes = ["ERROR(run)", "FAIL"]', "outcomes = []", "'known' waives no"),
        ("FAIL", "FIAL", "FIAL"),
        ('message = "worst-token KL"', 'message = ""', "found in any"),
        ('message = "worst-token KL"', 'message = ".*"', "found in any"),
        ('message = "worst-token KL"', 'message = "("', "no regular expression"),
        ('message = "worst-token KL"\n', "", "message"),
        ('checkpoints = ["phi-3-tiny"]', "checkpoints = []", "no checkpoint"),
        (">=0.18,<0.19", "0.18 or so", "'0.18 or so'"),
        ("expires = 2027-06-30", 'expires = "soon"', "expires"),
        ("expires = 2027-06-30\n", "", "expires"),
        ("owner =", "owners =", "owners"),
        ("[[waiver]]", "[[waivers]]", "waivers"),
        ("[[waiver]]", "[[waiver]", "line 3"),
    ],
)
def test_what_breaks_the_schema_is_named_with_the_file(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in _FILE
    path = _write(tmp_path, _FILE.replace(old, new, 1))
    with pytest.raises(PolicyError) as caught:
        read_waivers(path)
    assert str(path) in caught.value.problem
    assert named in caught.value.problem
    assert "--waivers" in caught.value.remedy


def test_two_waivers_of_one_id_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="same id"):
        read_waivers(_write(tmp_path, _FILE + _FILE.replace("schema = 1", "", 1)))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.toml"):
        read_waivers(tmp_path / "none.toml")


def test_a_file_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "waivers.toml"
    path.write_bytes(_FILE.encode().replace(b"somebody", b"J\xfcrgen"))
    with pytest.raises(PolicyError, match=r"waivers\.toml"):
        read_waivers(path)


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        (_BROKEN, True),
        ({"onnxruntime-genai": "0.18.0"}, True),
        ({"onnxruntime-genai": "0.18.1.dev3"}, True),
        (_FIXED, False),
        ({"onnxruntime-genai": "0.17.9"}, False),
        ({"onnxruntime-genai": "unknown"}, False),
        ({"onnxruntime": "0.18.2"}, False),
        ({}, False),
    ],
)
def test_a_waiver_applies_to_the_versions_that_have_the_defect(installed: dict[str, str], expected: bool) -> None:
    assert _WAIVER.applies(_TARGET, "test_logits[window]", "phi-3-tiny", installed) is expected


@pytest.mark.parametrize(
    ("name", "case", "expected"),
    [
        ("ort-genai:dml:int4", "test_logits[window]", True),
        ("ort-genai:cpu:fp16", "test_logits[window-twice]", True),
        ("openvino:npu:int4", "test_logits[window]", False),
        ("ort-genai:dml:int4", "test_logits[greeting]", False),
        ("ort-genai:dml:int4", "test_logits", False),
        ("ort-genai:dml:int4", "test_greedy[window]", False),
    ],
)
def test_a_waiver_covers_what_its_globs_match(name: str, case: str, expected: bool) -> None:
    assert _WAIVER.covers(Target.parse(name), case) is expected
    assert _WAIVER.applies(Target.parse(name), case, "phi-3-tiny", _BROKEN) is expected


@pytest.mark.parametrize(("day", "expected"), [(29, False), (30, True)])
def test_a_waiver_counts_until_the_day_before_it_expires(day: int, expected: bool) -> None:
    assert _WAIVER.expired(datetime.date(2027, 6, day)) is expected


def test_a_waiver_applies_to_its_checkpoints_only() -> None:
    assert _WAIVER.applies(_TARGET, "test_logits[window]", "phi-3-tiny", _BROKEN)
    assert not _WAIVER.applies(_TARGET, "test_logits[window]", "Phi-4-mini", _BROKEN)


@pytest.mark.parametrize(
    ("outcome", "message", "expected"),
    [
        ("FAIL", "worst-token KL 0.1 nat", True),
        ("FAIL", "nan among the logits", False),
        ("ERROR(run)", "worst-token KL 0.1 nat", False),
    ],
)
def test_a_waiver_expects_its_own_failure_and_no_other(outcome: str, message: str, expected: bool) -> None:
    assert _WAIVER.expects(outcome, message) is expected


def test_all_waivers_that_apply_are_found_even_if_expired() -> None:
    def named(name: str, *, targets: str = "*", expires: int = 2027) -> Waiver:
        day = datetime.date(expires, 1, 1)
        return Waiver(name, targets, ("*",), ("FAIL",), "m", ("*",), {}, "r", "https://x", "o", day)

    waivers = (named("other", targets="openvino:*"), named("old", expires=2000), named("new"))
    found = applying_waivers(waivers, _TARGET, "test_logits[window]", "any", {})
    assert [waiver.id for waiver in found] == ["old", "new"]
    assert applying_waivers(waivers[:1], _TARGET, "test_logits[window]", "any", {}) == []


def test_a_waiver_of_a_target_covers_it_on_every_host_and_one_of_a_host_on_that_host_only() -> None:
    everywhere = msgspec.structs.replace(_WAIVER, targets="ort-genai:dml:int4")
    one = msgspec.structs.replace(_WAIVER, targets="ort-genai:dml:int4:lab1")
    there, elsewhere = Target.parse("ort-genai:dml:int4:lab1"), Target.parse("ort-genai:dml:int4:lab2")
    assert everywhere.covers(there, "test_logits[window]")
    assert one.covers(there, "test_logits[window]")
    assert not one.covers(elsewhere, "test_logits[window]")
    assert not one.covers(_TARGET, "test_logits[window]")


def test_a_waiver_for_a_precision_applies_where_the_runtime_reports_it() -> None:
    half = msgspec.structs.replace(_WAIVER, computes=(Precision.BF16,))
    case = (_TARGET, "test_logits[window]", "phi-3-tiny", _BROKEN)
    assert half.applies(*case, Precision.BF16)
    assert not half.applies(*case, Precision.FP32)
    assert not half.applies(*case)
    assert applying_waivers((half,), *case, Precision.BF16) == [half]
