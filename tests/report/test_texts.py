"""Markdown, JUnit XML, the command, and the words and figures that they are made of."""

from __future__ import annotations

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.record import CaseRecord, RunRecord, write_record
from harness.report import figures
from harness.report.apart import errors_apart
from harness.report.blame import KINDS, blame, causes
from harness.report.junit import to_junit
from harness.report.markdown import code, escape, to_markdown
from harness.report.overview import look_over
from report.demo import STORIES, demo_record
from report.demo_cases import Story

HOSTILE = "a|b`c`<b>@team [x](https://evil) *y* \x1b[31m\x00 $z$ # ]]> </failure>\nsecond\u2028line"


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return demo_record()


def _case(**changes: object) -> CaseRecord:
    case = CaseRecord(
        "conformance/test_logits.py::test_logits[a:cpu:int4-p]", "test_logits", "a:cpu:int4", "test_logits[p]",
        "FAIL", None, {}, {}, "", None, 1.0,
    )  # fmt: skip
    return msgspec.structs.replace(case, **changes)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"), (0.01234, "0.012"), (119.3, "119"), (2.4e-6, "2.4e-6"), (1.0, "1.0"), (9.99e-4, "0.0010"),
        (123456.0, "1.2e5"), (-0.5, "-0.50"), (math.nan, "not finite"), (math.inf, "not finite"),
    ],
)  # fmt: skip
def test_numbers_have_the_digits_that_they_are_worth(value: float, text: str) -> None:
    assert figures.number(value) == text


def test_figures_have_units() -> None:
    assert figures.ratio(119.4) == "119 ×"
    assert figures.ratio(3.5) == "3.5 ×"
    assert figures.ratio(2.0) == "2.0 ×"
    assert figures.ratio(51300.0) == "51300 ×"
    assert figures.ratio(math.inf) == "not finite"
    assert figures.share(1.0) == "100 %"
    assert figures.share(0.99999) == "99.99 %"  # what is not all never reads as all
    assert figures.duration(477) == "7 min 57 s"
    assert figures.duration(3840) == "1 h 04 min"
    assert figures.duration(0.32) == "0.32 s"
    assert figures.duration(math.nan) == "unknown"
    assert figures.size(11_680_200) == "11.7 MB"
    assert figures.size(999) == "999 B"
    assert figures.milliseconds(2412) == "2.41 s"
    assert figures.milliseconds(12.345) == "12.3 ms"
    assert figures.enumerate_names(["a", "b", "c", "d", "e"], 3) == "a, b and 3 more"


@pytest.mark.parametrize(
    ("changes", "kind", "text"),
    [
        ({"outcome": "ERROR", "stage": "load", "message": "died"}, "error", "error while loading: died"),
        ({"outcome": "NOT_RUN", "message": "given up"}, "error", "not run: given up"),
        ({"outcome": "UNATTESTED", "message": "no counter moved"}, "evidence", "no counter moved"),
        (
            {"numbers": {"ratio_decode_mean": 119.0}, "limits": {"ratio_mean": 3.5}},
            "implementation",
            "in decode, mean position: 119 × the yardstick, 3.5 × allowed",
        ),
        (
            {"numbers": {"quantisation_kl_mean": 0.7}, "limits": {"quantisation_kl_mean": 0.25}},
            "quantisation",
            "mean KL: 0.70 nat, 0.25 allowed",
        ),
        (
            {"numbers": {"top1": 0.5}, "limits": {"top1": 0.9}},
            "total",
            "top-1 agreement: 50.00 %, at least 90.00 % wanted",
        ),
        ({"message": "a:cpu:int4  prompt 'p'\n  nan among the logits"}, "broken", "nan among the logits"),
        ({"numbers": {"kl_mean": math.nan}, "limits": {"kl_mean": 1.0}, "message": "inf"}, "broken", "inf"),
        ({"test": "test_greedy_match", "message": "no tokens and no error"}, "form", "no tokens and no error"),
        (
            {"test": "test_known_faults", "message": "implementation error: as if with no window"},
            "implementation",
            "as if with no window",
        ),
        ({"test": "test_own", "message": ""}, "other", "it says nothing of why"),
    ],
)  # fmt: skip
def test_a_failure_is_blamed_in_words(changes: dict[str, object], kind: str, text: str) -> None:
    (cause,) = causes(_case(**changes))
    assert (cause.kind, cause.text) == (kind, text)
    assert cause.label == KINDS[kind][0]


def test_the_gravest_comes_first_and_the_worst_prompt_stands_for_its_kind() -> None:
    def ratio(prompt: str, value: float) -> CaseRecord:
        numbers = {"ratio_prefill_mean": value, "quantisation_kl_mean": value}
        return _case(
            case=f"test_logits[{prompt}]", numbers=numbers, limits={"ratio_mean": 3.0, "quantisation_kl_mean": 1.0}
        )

    suite = _case(test="test_logits_of_suite", numbers={"ratio_prefill_mean": 1e9}, limits={"ratio_mean": 3.0})
    found = blame([ratio("mild", 4.0), suite, ratio("wild", 40.0), _case(outcome="ERROR", stage="run", message="died")])
    assert [one.cause.kind for one in found] == ["error", "implementation", "quantisation"]
    assert found[1].case.case == "test_logits[wild]"
    assert len(found[1].cases) == 3


def test_an_error_is_beyond_where_its_cases_are(record: RunRecord) -> None:
    rows = {row.target: row for row in errors_apart(look_over(record).rows)}
    broken = rows["openvino:npu:int4"]
    assert broken.implementation is not None
    assert broken.implementation.exceeded
    assert not broken.implementation.waived
    assert broken.implementation.worst > broken.implementation.limit
    assert broken.implementation.prompt == "window-twice, decode"
    assert broken.times > broken.allowed
    waived = rows["ort-genai:cpu:int4"].implementation
    assert waived is not None
    assert (waived.exceeded, waived.waived) == (True, True)
    coarse = rows["ort-genai:dml:int4"].quantisation
    assert coarse is not None
    assert coarse.exceeded
    assert coarse.worst > coarse.limit  # by KL, whose square root counts
    honest = rows["openvino:cpu:int8"]
    assert honest.implementation is not None
    assert honest.quantisation is not None
    assert honest.implementation.worst < honest.implementation.limit
    assert honest.quantisation.worst < honest.quantisation.limit
    assert rows["ort-genai:dml:fp16"].broken == 3


def test_markdown_says_what_failed_why_and_where(record: RunRecord) -> None:
    text = to_markdown(record)
    assert text.startswith("## FAIL: 5 of 12 targets fail")
    assert "- **`openvino:npu:int4`** FAIL, 4 of 38 cases" in text
    assert "**implementation error** in 2 cases." in text
    assert "| `openvino:npu:int4` | ✓ 1 | ✓ 1 | ✗ 2/8 |" in text
    assert "`ort-genai-window-wrong`, 2 cases" in text
    assert "Remedy: needs a Mac with Apple silicon" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in rows[:14]}) == 1
    assert len(text) < 65_000


def test_markdown_stays_below_what_a_comment_holds() -> None:
    devices = [f"npu.{number}" for number in range(1, 21)]
    stories = {f"openvino:{device}:{p}": Story("crash") for device in devices for p in ("int4", "int8", "fp16")}
    text = to_markdown(demo_record(stories))
    assert len(text) < 65_000
    assert "and 40 more targets" in text


def test_hostile_text_makes_no_markdown() -> None:
    line = escape(HOSTILE)
    assert "\n" not in line
    assert not re.search(r"(?<!\\)[|`<*\[#$]", line)
    assert "@team" not in line
    assert "https://" not in line
    assert code(HOSTILE).count("`") == 2
    assert "|" not in code(HOSTILE)


def test_an_incomplete_run_is_marked_everywhere(record: RunRecord) -> None:
    cut = msgspec.structs.replace(record, complete=False, cases=[c for c in record.cases if c.outcome == "PASS"])
    assert "## INCOMPLETE: The run was cut short" in to_markdown(cut)
    root = ElementTree.fromstring(to_junit(cut))
    assert root.get("errors") == "1"
    assert "INCOMPLETE" in to_junit(cut)


def test_junit_counts_and_holds_the_figures(record: RunRecord) -> None:
    root = ElementTree.fromstring(to_junit(record))
    outcomes = [case.outcome for case in record.cases]
    assert root.get("tests") == str(len(outcomes))
    assert root.get("failures") == str(outcomes.count("FAIL") + outcomes.count("UNATTESTED"))
    assert root.get("errors") == str(outcomes.count("ERROR") + outcomes.count("NOT_RUN"))
    assert root.get("skipped") == str(outcomes.count("WAIVED") + outcomes.count("UNSUPPORTED"))
    case = next(c for c in record.cases if c.test == "test_logits" and c.outcome == "FAIL" and c.limits)
    name = case.id.partition("::")[2]
    element = next(one for one in root.iter("testcase") if one.get("name") == name)
    found = {one.get("name"): one.get("value") for one in element.iter("property")}
    assert {key: float(value or "nan") for key, value in found.items() if key in case.numbers} == case.numbers
    assert found["limit.ratio_mean"] == "3.5"
    failure = element.find("failure")
    assert failure is not None
    assert failure.text == case.message
    waived = next(one for one in root.iter("skipped") if (one.get("type") or "").startswith("WAIVED"))
    assert waived.get("type") == "WAIVED by ort-genai-window-wrong"


def test_junit_is_xml_whatever_the_record_says(record: RunRecord) -> None:
    cases = [msgspec.structs.replace(case, message=HOSTILE) for case in record.cases]
    root = ElementTree.fromstring(to_junit(msgspec.structs.replace(record, cases=cases, harness=HOSTILE)))
    failure = next(root.iter("failure"))
    assert "</failure>" in (failure.text or "")


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "run.json"
    write_record(path, demo_record({"openvino:npu:int4": STORIES["openvino:npu:int4"]}))
    return path


def test_the_command_writes_the_page_beside_the_record(stored: Path) -> None:
    result = CliRunner().invoke(main, ["report", str(stored)])
    assert result.exit_code == 0, result.output
    assert "<!DOCTYPE html>" in stored.with_suffix(".html").read_text(encoding="utf-8")[:200]
    assert not list(stored.parent.glob("*.partial-*"))


def test_the_command_writes_what_it_is_asked_for_and_no_more(stored: Path) -> None:
    junit = stored.parent / "new" / "junit.xml"
    result = CliRunner().invoke(main, ["report", str(stored), "--markdown", "-", "--junit", str(junit)])
    assert result.exit_code == 0, result.output
    assert "## FAIL: 1 of 1 target fails" in result.output
    assert ElementTree.parse(junit).getroot().tag == "testsuites"
    assert not stored.with_suffix(".html").exists()


def test_a_report_that_cannot_be_written_says_so(stored: Path) -> None:
    blocked = stored / "in-a-file" / "report.html"
    result = CliRunner().invoke(main, ["report", str(stored), "--html", str(blocked)])
    assert result.exit_code == 2
    assert "cannot be written" in result.output
    assert "remedy: name another file" in result.output


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    (tmp_path / "no.json").write_text("{}", encoding="utf-8")
    result = CliRunner().invoke(main, ["report", str(tmp_path / "no.json")])
    assert result.exit_code == 2
    assert "is no run record" in result.output


def test_only_a_page_needs_the_libraries_that_draw_one() -> None:
    code = "import sys, harness.plugin, harness.cli; print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
