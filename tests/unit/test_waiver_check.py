"""Waivers held against the calendar, against what is declared, and against runs."""

from __future__ import annotations

import datetime
import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from click.testing import CliRunner

from harness.cli_waivers import check as check_command
from harness.errors import PromptError
from harness.options import WAIVERS
from harness.record import CaseRecord, RunRecord, write_record
from harness.target import Target
from harness.waiver_check import check_declared, check_records
from harness.waivers import Waiver
from run_records import case, record, session

TODAY = datetime.date(2026, 11, 25)
TARGET = "openvino:npu:int4"
WAIVER = Waiver(
    id="known",
    targets="openvino:npu:*",
    cases=("test_logits[[]hello]",),
    outcomes=("FAIL",),
    message="worst-token KL",
    checkpoints=("tiny",),
    versions={"openvino": "<2026.5"},
    reason="a defect",
    url="https://example.com/1",
    owner="somebody",
    expires=datetime.date(2027, 6, 30),
)


class Declared(NamedTuple):
    target: Target
    case: str


DECLARED = [
    Declared(Target.parse(target), name)
    for target in (TARGET, "openvino:gpu:int4", "pytorch:cpu:fp32")
    for name in ("test_weights", "test_logits[hello]", "test_logits[other]")
]


def declared(**fields: Any) -> list[tuple[bool, str]]:
    found = check_declared([msgspec.structs.replace(WAIVER, **fields)], DECLARED, TODAY)
    return [(one.wrong, one.sentence) for one in found]


def test_a_waiver_that_is_in_order_gives_nothing() -> None:
    assert declared() == []


@pytest.mark.parametrize("targets", ["openvino:gpu.1:*", "openvino:npu:int4:lab1", "openvino:gpu.1:int4:lab2"])
def test_hosts_and_indices_are_no_part_of_what_is_declared(targets: str) -> None:
    assert declared(targets=targets) == []


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"targets": "openvino:tpu:*"}, "no declared target matches 'openvino:tpu:*'"),
        ({"cases": ("test_logits[[]hello]", "test_logits[[]bye]")}, "no case matches 'test_logits[[]bye]'"),
        ({"expires": TODAY}, "expired on 2026-11-25"),
    ],
)
def test_what_matches_nothing_or_has_expired_is_wrong(fields: Any, sentence: str) -> None:
    ((wrong, said),) = declared(**fields)
    assert wrong
    assert said.startswith(sentence)


def test_a_waiver_that_expires_soon_is_mentioned_with_its_owner() -> None:
    assert declared(expires=TODAY + datetime.timedelta(days=20)) == [(False, "expires on 2026-12-15; owner: somebody")]


def held(*cases: CaseRecord, waiver: Waiver = WAIVER, **fields: Any) -> list[tuple[bool, str]]:
    runs: list[tuple[str, RunRecord]] = [("A.json", record(*cases, **fields))]
    return [(one.wrong, one.sentence) for one in check_records([waiver], runs)]


FAILS = case("test_logits[hello]", "FAIL", message="worst-token KL 3 nat")


@pytest.mark.parametrize(
    "found",
    [
        FAILS,
        case("test_logits[hello]", "WAIVED", waiver="known", judged="FAIL", message="worst-token KL 3 nat"),
        case("test_logits[hello]", "WAIVED", waiver="known"),
        case("test_logits[hello]", "FAIL", waiver="known", judged="FAIL", message="worst-token KL 3; expired"),
    ],
)
def test_a_waiver_whose_defect_is_still_there_is_needed(found: CaseRecord) -> None:
    assert held(found) == []


@pytest.mark.parametrize(
    "found", [case(), case("test_logits[hello]", "FAIL", waiver="known", judged="PASS", message="passes, though")]
)
def test_one_whose_case_passes_now_is_wrong_even_where_others_still_fail(found: CaseRecord) -> None:
    wide = msgspec.structs.replace(WAIVER, cases=("test_logits*",))
    fails = msgspec.structs.replace(FAILS, case="test_logits[other]", id="other")
    ((wrong, said),) = held(found, fails, waiver=wide)
    assert wrong
    assert said == f"{TARGET} test_logits[hello] passes now in A.json: delete or narrow the waiver"


def test_one_whose_case_fails_otherwise_is_unused() -> None:
    ((wrong, said),) = held(case("test_logits[hello]", "FAIL", message="another defect"))
    assert wrong
    assert said.startswith("no case of these runs failed as it says")


@pytest.mark.parametrize(
    ("cases", "fields", "why"),
    [
        ([case("test_logits[other]")], {}, "its targets were not run"),
        ([case("test_logits[hello]", "UNSUPPORTED", numbers=None)], {}, "its targets were not run"),
        ([case()], {"sessions": [session(version="2026.5.0")]}, "other checkpoints or versions"),
    ],
)
def test_runs_that_did_not_try_it_say_nothing_of_it(cases: Any, fields: Any, why: str) -> None:
    ((wrong, said),) = held(*cases, **fields)
    assert not wrong
    assert why in said


def test_the_command_finds_the_projects_waivers_in_order() -> None:
    ended = CliRunner().invoke(check_command, [])
    assert ended.exit_code == 0, ended.output
    assert "nothing is wrong" in ended.output


def test_a_suite_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt suite"):
        CliRunner().invoke(check_command, [f"--prompts={tmp_path / 'none.jsonl'}"], catch_exceptions=False)


def test_the_command_ends_with_1_and_names_what_is_wrong(tmp_path: Path) -> None:
    file = tmp_path / "waivers.toml"
    text = WAIVERS.read_text(encoding="utf-8").replace('targets = "ort-genai:dml:*"', 'targets = "ort-genai:dmx:*"')
    file.write_text(text, encoding="utf-8")
    write_record(tmp_path / "A.json", record(case()))
    ended = CliRunner().invoke(check_command, [f"--waivers={file}", str(tmp_path / "A.json"), "--json"])
    assert ended.exit_code == 1
    wrong = [one for one in json.loads(ended.output) if one["wrong"]]
    assert [(one["waiver"], one["sentence"]) for one in wrong] == [
        ("ort-genai-dml-window", "no declared target matches 'ort-genai:dmx:*'")
    ]
