"""The page of two runs compared: its verdict, its classes, and that nothing in a record can break it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.diff.runs import Demands, compare_runs
from harness.record import RunRecord, write_record
from harness.report.diff_html import PARTS, to_html
from report.demo_pair import BROKEN, LOST, MENDED, demo_pair
from report.parsed import HOSTILE, Page
from run_records import case, record

Pair = tuple[RunRecord, RunRecord]


def page_of(before: RunRecord, after: RunRecord, demands: Demands | None = None) -> str:
    return to_html(compare_runs(before, after, ("A.json", "B.json")), demands or Demands(), before, after)


@pytest.fixture(scope="module")
def pair() -> Pair:
    return demo_pair()


@pytest.fixture(scope="module")
def html(pair: Pair) -> str:
    return page_of(*pair)


def section(html: str, name: str) -> str:
    """The text of a section."""
    start = html.index(f'<section id="{name}"')
    return Page(html[start : html.index("</section>", start)]).text


def test_the_verdict_comes_first_with_what_changed(html: str) -> None:
    text = Page(html).text
    start = text.index("REGRESSED", text.index("To the content"))
    lead = text[start : start + 260]
    assert f"4 cases on {BROKEN}, right before and wrong after" in lead
    assert "only the driver changed" in lead
    assert "32.0.100.4023 → npu 32.0.100.4119" in lead
    assert "<title>REGRESSED: phi-3-demo" in html


def test_every_class_has_its_cases(html: str) -> None:
    regressions = section(html, "regressions")
    assert "First bad: model.layers.3.self_attn, in decode only, position 67" in regressions
    assert "test_logits[window-twice] implementation error in decode, mean 1.37 logits" in regressions
    assert "PASS → FAIL implementation decode mean × 81 0.0168 1.37 worse 4.4e-5" in regressions
    assert f"{LOST} PASS 26 cases" not in regressions
    assert f"{LOST} PASS" in section(html, "missing")
    assert "not in the second run" in section(html, "missing")
    assert "PASS → PASS match" in section(html, "difference")
    assert f"test_logits[code] {MENDED} was: mean KL 0.4 nat; allowed: 0.2 nat" in section(html, "fix")
    assert "pytorch:cpu:fp32 PASS test_weights" in section(html, "new")
    assert "No case is changed." in section(html, "same")
    assert 'id="changed"' not in html


def test_the_same_cases_are_folded_and_counted_by_reason(html: str) -> None:
    start = html.index('<section id="same"')
    assert re.search(
        r'<details class="fold"><summary>By target and reason', html[start : html.index("</section>", start)]
    )
    assert "bit-identical logits" in section(html, "same")


def test_the_worst_regression_is_shown_by_position(html: str) -> None:
    text = section(html, "positions")
    assert f"window-twice on {BROKEN}" in text
    assert 'aria-label="Implementation error by position on window-twice, openvino:npu:int4, before and after"' in html
    assert "before, logits" in text


def test_speed_is_a_ratio_beside_its_noise(html: str, pair: Pair) -> None:
    text = section(html, "speed")
    assert "These figures judge nothing." in text
    assert re.search(
        r"openvino:npu:int4 time to first token, 64 tokens 18\.1 ms 24\.4 ms 1\.35 up to 1\.0\d slower", text
    )
    judged = section(page_of(*pair, Demands(slower=1.2)), "speed")
    assert "A latency fails that grew by more than 1.2 ×" in judged
    assert "too slow" in judged


def test_two_runs_of_one_machine_say_that_nothing_regressed(pair: Pair) -> None:
    html = page_of(pair[0], pair[0])
    text = Page(html).text
    assert "NOTHING REGRESSED" in text
    assert "Nothing that is recorded differs between the runs but their results." in text
    assert "No case was right before and is wrong after." in text
    assert "No case is regressed" not in text


def test_every_part_is_there_and_leads_somewhere(html: str) -> None:
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert {name for name, _ in PARTS} - set(page.ids) == {"changed"}
    assert all(str(attrs["href"])[1:] in page.ids for tag, attrs in page.tags if tag == "a")


@pytest.mark.parametrize(
    "changes",
    [{}, {"sessions": []}, {"prompts": [], "words": {}}, {"complete": False}],
    ids=["tiny", "no sessions", "no prompts", "cut short"],
)
def test_no_part_of_a_record_is_needed(changes: dict[str, Any]) -> None:
    before = record(case(), case("test_logits[bye]", "FAIL"), **changes)
    after = record(
        case(outcome="FAIL", numbers={"kl_mean": float("nan")}), case("test_logits[bye]", "ERROR(run)"), **changes
    )
    text = Page(page_of(before, after)).text
    assert "REGRESSED" in text
    assert "not finite" in text
    assert "failed as FAIL, fails as ERROR(run)" in text
    assert ("was cut short" in text) is ("complete" in changes)


def test_text_of_a_record_does_nothing(pair: Pair) -> None:
    after = msgspec.structs.replace(
        pair[1],
        cases=[msgspec.structs.replace(c, message=HOSTILE if c.message else "") for c in pair[1].cases],
        sessions=[msgspec.structs.replace(s, first_bad=HOSTILE) for s in pair[1].sessions],
        machine=msgspec.structs.replace(pair[1].machine, processor=HOSTILE, release=HOSTILE),
        words=dict.fromkeys(pair[1].words, HOSTILE),
        environment={"OMP_NUM_THREADS": HOSTILE},
        command=[HOSTILE],
        harness=HOSTILE,
    )
    html = page_of(pair[0], after)
    page = Page(html)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in [tag for tag, _ in page.tags]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    assert "{{ 7 * 7 }}" in page.text
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_equal_records_give_equal_pages(html: str, pair: Pair) -> None:
    assert page_of(*pair) == html


def test_a_page_of_many_cases_stays_small() -> None:
    before = record(*(case(f"test_logits[p{n}]") for n in range(3000)))
    after = record(*(case(f"test_logits[p{n}]", "FAIL", numbers={"kl_mean": 1.0}) for n in range(3000)))
    html = page_of(before, after)
    assert len(html) < 500_000
    assert "And 2,940 more cases" in Page(html).text


def test_the_command_writes_it_and_keeps_its_status(pair: Pair, tmp_path: Path) -> None:
    for name, one in zip("AB", pair, strict=True):
        write_record(tmp_path / f"{name}.json", one)
    files = [str(tmp_path / name) for name in ("A.json", "B.json")]
    done = CliRunner().invoke(main, ["diff", *files, "--html", str(tmp_path / "deep" / "diff.html")])
    assert done.exit_code == 1, done.output
    assert (tmp_path / "deep" / "diff.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_plots_are_imported_only_where_they_are_drawn() -> None:
    code = "import sys, harness.cli, harness.signoff.verify; print('matplotlib' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
