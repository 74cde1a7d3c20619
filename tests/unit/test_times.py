"""Where the time of a run went."""

from __future__ import annotations

from pathlib import Path

from click.testing import CliRunner

import run_records
from harness.cli import main
from harness.record import Timings, write_record
from harness.report.times import LOADING, PREPARING, SuiteTime, in_a_line, suite_times

A, B, ABSENT = "openvino:npu:int4", "openvino:cpu:int4", "openvino:gpu:int4"
RECORD = run_records.record(
    run_records.case("test_logits[a]", target=A, seconds=2.0),
    run_records.case("test_logits[b]", target=A, seconds=3.0),
    run_records.case("test_logits[c]", target=B, seconds=1.0),
    run_records.case("test_cache", target=A, seconds=0.5),
    run_records.case("test_logits[d]", outcome="UNSUPPORTED", target=ABSENT, seconds=9.0),
    sessions=[
        run_records.session(A, timings=Timings(20.0, 3.5, 0.5)),
        run_records.session(B, timings=Timings(0.0, 1.5)),
    ],
)


def test_seconds_are_added_up_by_suite_and_the_slowest_target_named() -> None:
    assert suite_times(RECORD) == [
        SuiteTime(PREPARING, 2, 20.0, A, 20.0),
        SuiteTime("logits", 3, 6.0, A, 5.0),
        SuiteTime(LOADING, 2, 5.5, A, 4.0),
        SuiteTime("cache", 1, 0.5, A, 0.5),
    ]


def test_the_end_of_a_run_names_those_of_a_second_and_more() -> None:
    assert in_a_line(suite_times(RECORD)) == "time by suite: (preparing artifacts) 20 s, logits 6 s, (loading) 6 s"
    assert in_a_line([]) == ""


def test_the_command_prints_them(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", RECORD)
    result = CliRunner().invoke(main, ["record", "times", str(tmp_path / "run.json")])
    assert result.exit_code == 0
    assert result.output.splitlines()[1].split() == f"{PREPARING} 2 20.0 62 % {A} (20.0 s)".split()


def test_a_record_in_which_nothing_ran_has_no_times(tmp_path: Path) -> None:
    write_record(tmp_path / "run.json", run_records.record(sessions=[]))
    result = CliRunner().invoke(main, ["record", "times", str(tmp_path / "run.json")])
    assert result.exit_code != 0
    assert "nothing was run" in result.output
