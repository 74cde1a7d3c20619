"""The pages of a comparison and of a sign-off in a browser: no errors, no requests, dark, narrow and on paper."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.checkpoint import open_checkpoint
from harness.diff.runs import Demands, compare_runs
from harness.options import DEFAULT_CHECKPOINT
from harness.report import diff_html, html
from harness.signoff.candidates import Candidate, Plan
from harness.signoff.conclude import conclude
from harness.signoff.html import as_html
from made_signoff import TARGET, Signed
from report.demo import MACHINE, demo_record
from report.demo_cases import Story
from report.demo_pair import demo_pair
from report.opened import DESKTOP, PHONE, Opened, contrast


def _diff() -> str:
    before, after = demo_pair()
    found = compare_runs(before, after, ("A.json", "B.json"))
    return diff_html.to_html(found, Demands(), before, after)


def _signoff(folder: Path) -> str:
    signed = Signed(open_checkpoint(DEFAULT_CHECKPOINT), MACHINE, folder)
    names = ("fine", "coarse", "int4-g128-r0.6", "int4-g32", "vendors-own-mixed-precision-build")
    signed.plan = Plan(1, tuple(Candidate(name, TARGET) for name in names), must_pass=("fine",))
    for at, name in enumerate(names[2:]):
        signed.cases[name] = signed.good(0.012 + 0.01 * at, seed=at)
        signed.sizes[name] = 1100 + 40 * at
    found = conclude(signed.plan, signed.records(), signed.policy, signed.suite, signed.answered, "0.1.0")
    return as_html(found, signed.records(), signed.policy, signed.suite)


@pytest.fixture(scope="module", params=["diff", "signoff"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    path = folder / f"{request.param}.html"
    path.write_text(_diff() if request.param == "diff" else _signoff(folder), encoding="utf-8")
    return path


def _open_all(page: Any) -> None:
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait_for_timeout(100)


def test_the_verdict_is_in_sight_when_the_page_opens(opened: Opened, file: Path) -> None:
    opened.keep(file.stem)
    word = opened.page.locator(".word")
    assert word.inner_text() == ("REGRESSED" if file.stem == "diff" else "SIGNED OFF")
    assert word.bounding_box()["y"] < 200


def test_nothing_goes_wrong_when_everything_is_opened(opened: Opened, file: Path) -> None:
    _open_all(opened.page)
    opened.keep(f"{file.stem}-whole", full_page=True)
    wide = opened.page.evaluate(
        "() => [...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth + 1)"
        ".map((e) => e.getAttribute('aria-label'))"
    )
    assert wide == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, file: Path, scheme: str) -> None:
    opened = Opened(browser, file, color_scheme=scheme, **DESKTOP)
    _open_all(opened.page)
    for selector in ("p, dd, dt, li, h1, h2, h3, a, th, td, code, summary, pre", ".chip, .cell, .word", "mark, .ends"):
        if opened.page.locator(selector).count():
            assert contrast(opened.page, selector) >= 4.5, selector
    opened.keep(f"{file.stem}-{scheme}", full_page=True)
    assert opened.trouble == []
    opened.context.close()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, **PHONE)
    _open_all(opened.page)
    assert opened.page.evaluate("() => document.documentElement.scrollWidth") == 360
    outside = opened.page.evaluate(
        "() => [...document.querySelectorAll('main *, header *')].filter((e) => !e.closest('.scroll'))"
        ".filter((e) => e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert opened.page.locator("svg.plot-narrow").first.is_visible()
    opened.keep(f"{file.stem}-phone", full_page=True)
    assert opened.trouble == []
    opened.context.close()


def test_no_name_in_a_plot_leaves_it_or_covers_another(opened: Opened) -> None:
    boxes = opened.page.evaluate(
        "() => [...document.querySelectorAll('svg.plot-wide')].map((svg) => {"
        "  const box = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };"
        "  return [box(svg), [...svg.querySelectorAll('text')].map(box)]; })"
    )
    for (left, top, right, bottom), texts in boxes:
        for one in texts:
            assert left - 2 <= one[0]
            assert one[2] <= right + 2
            assert top - 2 <= one[1]
            assert one[3] <= bottom + 2
        for one, other in itertools.combinations(texts, 2):
            across = min(one[2], other[2]) - max(one[0], other[0])
            down = min(one[3], other[3]) - max(one[1], other[1])
            assert across < 3 or down < 6


def test_paper_gets_what_is_marked_for_it(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    assert not page.locator("nav").first.is_visible()
    assert page.evaluate("() => getComputedStyle(document.querySelector('h1')).color") == "rgb(27, 31, 36)"
    page.pdf(path=str(tmp_path / "print.pdf"), format="A4", print_background=True)
    assert (tmp_path / "print.pdf").read_bytes().startswith(b"%PDF")


def test_every_picture_and_table_has_a_name_and_the_keyboard_reaches_them(opened: Opened) -> None:
    page = opened.page
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('svg, section, [role=region], nav')]"
        ".filter((e) => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby'))"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    assert page.evaluate("() => [...document.querySelectorAll('.scroll')].every((e) => e.tabIndex === 0)")
    headless = "() => [...document.querySelectorAll('table')].filter((e) => !e.querySelector('th[scope=col]')).length"
    assert page.evaluate(headless) == 0
    levels = page.evaluate("() => [...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_the_matrix_of_a_full_run_fits_a_screen_of_1280(browser: Any, tmp_path: Path) -> None:
    made = demo_record({"openvino:npuw-cpu:int4": Story(), "npu-library:npu:int8": Story()})
    cases = list(made.cases)
    for target in ("openvino:npuw-cpu:int4", "npu-library:npu:int8"):
        first = next(case for case in made.cases if case.target == target)
        for test in ("test_known_faults", "test_speed"):
            cases.append(msgspec.structs.replace(first, id=f"{test}[{target}]", test=test, case=test))
    cases = [
        msgspec.structs.replace(c, outcome="FAIL") if c.case in ("test_logits[code]", "test_greedy_form[code]") else c
        for c in cases
    ]
    path = tmp_path / "run.html"
    path.write_text(html.to_html(msgspec.structs.replace(made, cases=cases)), encoding="utf-8")
    opened = Opened(browser, path, **DESKTOP)
    assert "known faults" in opened.page.locator(".matrix thead").inner_text()
    sizes = opened.page.evaluate(
        "() => { const around = document.querySelector('.matrix').closest('.scroll');"
        "  return [around.scrollWidth, around.clientWidth]; }"
    )
    assert sizes[0] <= sizes[1]
    opened.context.close()
