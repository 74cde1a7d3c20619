"""The table of coverage: what it refuses, and what contradicts it in a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from harness.checkpoint import find_checkpoint
from harness.cli_coverage import COVERAGE
from harness.cli_coverage import coverage as command
from harness.coverage import Table, read_coverage
from harness.coverage_check import Contradiction, cells, check
from harness.errors import PolicyError
from harness.options import DEFAULT_CHECKPOINT
from harness.record import ArtifactRecord, CaseRecord, CheckpointRecord, RunRecord, write_record
from harness.report.coverage import describe_coverage, markdown_coverage
from harness.target import Target
from run_records import case, record, session

TOML = """
schema = 1
[[capability]]
id = "rewind"
meaning = "the cache can go back"
[[backend]]
id = "able"
title = "a runtime that can"
targets = ["able:*"]
[[backend]]
id = "unable"
title = "a runtime that cannot"
targets = ["unable:*"]
[backend.lacks]
rewind = { reason = "it never looks back", says = "no way back" }
[[suite]]
id = "cache"
asks = "Does it hold?"
[suite.tests]
test_plain = []
test_back = ["rewind"]
"test_both[plain]" = []
"test_both[back]" = ["rewind"]
[[exemption]]
backends = ["able"]
targets = ["able:*:fp32"]
cases = ["test_plain[int-*]"]
kind = "design"
says = "has no integers"
reason = "floats only"
[[exemption]]
cases = ["test_plain[long]"]
kind = "length"
says = "too long"
reason = "there is no room for it"
[[defect]]
number = 7
what = "it forgets"
sources = ["https://github.com/some/runtime/issues/12"]
caught_by = ["test_back"]
proved_by = ["battery: forgets"]
"""


def table(folder: Path, text: str = TOML) -> Table:
    path = folder / "coverage.toml"
    path.write_text(text, encoding="utf-8")
    return read_coverage(path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("schema = 1", "schema = 2", "schema 2"),
        ('meaning = "the', 'moaning = "the', "moaning"),
        ('id = "unable"', 'id = "able"', "the backend able is there twice"),
        ('test_back = ["rewind"]', 'test_back = ["rewound"]', "test_back names the capability rewound"),
        ('rewind = { reason', 'rewound = { reason', "unable names the capability rewound"),
        ('id = "rewind"\nmeaning', 'id = "wind"\nmeaning', "names the capability rewind, which is not there"),
        ('backends = ["able"]', 'backends = ["other"]', "an exemption names the backend other"),
        ('caught_by = ["test_back"]', 'caught_by = ["test_gone"]', "defect 7 is caught by test_gone"),
        ('caught_by = ["test_back"]', "caught_by = []", "defect 7 has no caught_by"),
        ('proved_by = ["battery: forgets"]', "proved_by = []", "defect 7 has no proved_by"),
        ('reason = "it never looks back"', 'reason = " "', "lacks rewind for no reason"),
        ('says = "no way back"', 'says = "no way (back"', "is no regular expression"),
        ('says = "too long"', 'says = ".*"', "is found in any message"),
    ],
)  # fmt: skip
def test_a_table_that_does_not_hold_together_is_refused(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in TOML
    with pytest.raises(PolicyError, match=said):
        table(tmp_path, TOML.replace(old, new, 1))


def test_a_capability_that_no_suite_asks_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no suite asks for the capability rewind"):
        table(tmp_path, TOML.replace('["rewind"]', "[]"))


def ran(target: str, name: str, outcome: str = "PASS", message: str = "", **fields: Any) -> CaseRecord:
    return case(name, outcome, target=target, numbers=None, message=message, **fields)


def run(*cases: CaseRecord, without: tuple[str, ...] = (), **fields: Any) -> RunRecord:
    targets = dict.fromkeys(one.target for one in cases)
    sessions = [session(target) for target in targets if target not in without]
    return record(*cases, **{"sessions": sessions, **fields})


ABLE, UNABLE = "able:npu:fp32", "unable:cpu:int8"


@pytest.mark.parametrize(
    ("one", "sentence"),
    [
        (ran(ABLE, "test_back"), ""),
        (ran(ABLE, "test_back", "FAIL"), ""),
        (ran(ABLE, "test_back", "ERROR(run)"), ""),
        (ran(ABLE, "test_back", "UNSUPPORTED", "no way back"), "UNSUPPORTED, though able offers rewind: no way back"),
        (ran(UNABLE, "test_back", "UNSUPPORTED", "unable: there is no way back"), ""),
        (ran(UNABLE, "test_back", "UNSUPPORTED", "out of order"), "though unable lacks rewind for another reason"),
        (ran(UNABLE, "test_back"), "PASS, though unable lacks rewind: it never looks back"),
        (ran(UNABLE, "test_back", "WAIVED"), "WAIVED, though unable lacks rewind"),
        (ran(UNABLE, "test_back", "ERROR(run)"), ""),
        (ran(UNABLE, "test_both[plain]"), ""),
        (ran(UNABLE, "test_both[back]"), "lacks rewind"),
        (ran(UNABLE, "test_plain", "UNSUPPORTED", "asleep"), "though unable offers all that it needs: asleep"),
        (ran(ABLE, "test_plain[int-8]", "UNSUPPORTED", "it has no integers"), ""),
        (ran(ABLE, "test_plain[int-8]", "UNSUPPORTED", "no way back"), "though able offers all"),
        (ran(ABLE, "test_plain[int-8]"), "PASS, though able is exempted: floats only"),
        (ran("able:npu:int8", "test_plain[int-8]"), ""),
        (ran("able:npu:fp32:lab1", "test_plain[int-8]"), "is exempted"),
        (ran(UNABLE, "test_plain[long]", "UNSUPPORTED", "too long"), ""),
        (ran(UNABLE, "test_plain[long]"), "is exempted: there is no room for it"),
        (ran(ABLE, "test_new"), "the table has no such test"),
        (ran("third:cpu:fp32", "test_new"), ""),
    ],
)  # fmt: skip
def test_a_case_that_the_table_says_otherwise_of_is_named(tmp_path: Path, one: CaseRecord, sentence: str) -> None:
    found = check(table(tmp_path), run(one), bundled=True)
    assert [text.case for text in found] == ([one.case] if sentence else [])
    assert not found or sentence in found[0].sentence


def test_an_absent_device_and_a_session_with_options_of_its_own_are_left_aside(tmp_path: Path) -> None:
    absent = run(ran(ABLE, "test_back", "UNSUPPORTED", "no NPU is here"), without=(ABLE,))
    assert check(table(tmp_path), absent, bundled=True) == []
    diagnostic = run(ran(UNABLE, "test_back"))
    info = msgspec.structs.replace(diagnostic.sessions[0].info, load_options={"whole": "yes"})
    changed = [msgspec.structs.replace(diagnostic.sessions[0], info=info)]
    assert check(table(tmp_path), msgspec.structs.replace(diagnostic, sessions=changed), bundled=True) == []


@pytest.mark.parametrize("origin", ["exported", "given"])
def test_of_another_checkpoint_only_capabilities_count(tmp_path: Path, origin: str) -> None:
    cases = [
        ran(ABLE, "test_plain[short]", "UNSUPPORTED", "it has no room for 9 tokens"),
        ran(UNABLE, "test_plain[long]"),
        ran(ABLE, "test_back", "UNSUPPORTED", "no way back"),
        ran(UNABLE, "test_back"),
    ]
    artifact = ArtifactRecord(origin, None, "a" * 64, 1, {}, [])
    sessions = [msgspec.structs.replace(session(target), artifact=artifact) for target in (ABLE, UNABLE)]
    found = check(table(tmp_path), run(*cases, sessions=sessions), bundled=origin == "given")
    assert found == [
        Contradiction(ABLE, "test_back", "UNSUPPORTED, though able offers rewind: no way back"),
        Contradiction(UNABLE, "test_back", "PASS, though unable lacks rewind: it never looks back"),
    ]


def test_the_tables_show_what_is_offered_and_with_a_run_what_became_of_it(tmp_path: Path) -> None:
    known = table(tmp_path)
    text = describe_coverage(known)
    assert "test_back         rewind  yes   no: rewind" in text
    assert "test_plain        -       part  part" in text
    assert "unable lacks rewind: it never looks back" in text
    assert "defect 7: it forgets" in text
    page = markdown_coverage(known)
    assert "| `test_back` | rewind | yes | no: rewind |" in page
    assert "[runtime#12](https://github.com/some/runtime/issues/12)" in page
    found = cells(
        known,
        run(
            ran(ABLE, "test_back", "WAIVED", waiver="slip"),
            ran("able:npu:int8", "test_back"),
            ran("able:npu:int4", "test_back", "FAIL"),
            ran("able:gpu:int4", "test_back", "UNSUPPORTED", "no GPU"),
            ran(ABLE, "test_both[plain]", "UNSUPPORTED", "no NPU"),
            without=("able:gpu:int4",),
        ),
    )
    text = describe_coverage(known, found)
    assert "test_back         rewind  FAIL 1, PASS 1, WAIVED 1 (slip)  no: rewind" in text
    assert "test_both[plain]  -       UNSUPPORTED 1                    not run" in text
    assert "caught by  test_back: able FAIL 1, PASS 1, WAIVED 1 (slip)" in text


def test_the_command_ends_with_1_where_a_run_contradicts_the_table(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    bundled = find_checkpoint(str(DEFAULT_CHECKPOINT))
    checkpoint = CheckpointRecord(bundled.name, bundled.fingerprint())
    target = "openvino:npuw-cpu:int4"
    for outcome, message, status in (("UNSUPPORTED", "NPUW has no access to its cache: so", 0), ("PASS", "", 1)):
        write_record(path, run(ran(target, "test_cache_rewind", outcome, message), checkpoint=checkpoint))
        result = CliRunner().invoke(command, ["--record", str(path)])
        assert result.exit_code == status, result.output
        wrong = f"WRONG  {target} test_cache_rewind: PASS, though openvino-npuw lacks rewind"
        assert (wrong in result.output) == bool(status)


def test_no_target_belongs_to_two_columns() -> None:
    known = read_coverage(COVERAGE)
    devices = ("cpu", "gpu", "gpu.1", "npu", "npu.3720", "npuw-cpu", "dml", "dml.1", "cuda")
    for backend in ("pytorch", "openvino", "ort-genai", "npu-library"):
        for device in devices:
            target = Target.parse(f"{backend}:{device}:fp16:lab1")
            assert len([column for column in known.backend if column.holds(target)]) <= 1, target
