"""The page in a browser: no errors, no requests, tokens by mouse, keyboard and finger, dark, narrow and on paper."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any

import pytest

from harness.record import RunRecord
from harness.report.html import to_html
from report.demo import demo_record
from report.opened import DESKTOP, PHONE, Opened, contrast

_TOKENS = "details[open] .tokens >> nth=1 >> .tok"


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return demo_record()


@pytest.fixture(scope="module")
def file(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(to_html(record), encoding="utf-8")
    return path


def test_the_verdict_is_in_sight_when_the_page_opens(opened: Opened) -> None:
    opened.keep("desktop")
    seen = opened.page.evaluate(
        "() => [...document.querySelectorAll('h1, .word, .card h3 a')]"
        ".filter((e) => e.getBoundingClientRect().bottom < innerHeight).map((e) => e.textContent)"
    )
    assert seen[0] == "FAIL"
    assert seen[1].startswith("5 of 12 targets fail")
    assert "openvino:npu:int4" in seen


def test_nothing_goes_wrong_when_everything_is_opened(opened: Opened) -> None:
    page = opened.page
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait_for_timeout(100)
    assert page.locator("#prompts .tok").count() > 300
    for name in page.locator("#token-target option").all_text_contents():
        page.select_option("#token-target", label=name)
        for measure in ("kl", "quantisation", "implementation"):
            page.check(f"input[value={measure}]")
    opened.keep("desktop-whole", full_page=True)


def _tip(page: Any) -> str:
    tip = page.locator("#tip")
    assert tip.is_visible()
    return " ".join(tip.inner_text().split())


def test_hovering_shows_what_golden_and_device_expect(opened: Opened, record: RunRecord) -> None:
    page = opened.page
    token = page.locator(_TOKENS).nth(9)
    token.scroll_into_view_if_needed()
    token.hover()
    text = _tip(page)
    opened.keep("hover")
    prompt = next(prompt for prompt in record.prompts if prompt.id == "window-plus-one")
    position = prompt.prefill + 9
    assert f"position {position} of {len(prompt.tokens)} (answer)" in text
    for token_id, probability in zip(prompt.top.tokens[position], prompt.top.probabilities[position], strict=True):
        assert record.words[str(token_id)].strip() in text
        assert f"{100 * probability:.1f} %" in text
    assert "openvino:npu:int4" in text
    assert re.search(r"implementation [\d.]+ logits \(\d+ × yardstick\)", text)
    tip, under = page.locator("#tip").bounding_box(), token.bounding_box()
    assert tip["x"] >= 0
    assert tip["x"] + tip["width"] <= 1280
    assert tip["y"] + tip["height"] <= 900
    assert tip["y"] >= under["y"] + under["height"] or tip["y"] + tip["height"] <= under["y"]
    page.mouse.move(tip["x"] + 20, tip["y"] + 20)
    page.wait_for_timeout(300)
    assert page.locator("#tip").is_visible()  # it can be pointed at itself
    page.mouse.move(5, 5)
    page.wait_for_timeout(300)
    assert not page.locator("#tip").is_visible()


def test_tokens_beyond_their_limit_differ_in_more_than_colour(opened: Opened) -> None:
    beyond = opened.page.locator(f"{_TOKENS}.beyond")
    assert beyond.count() > 3
    assert "underline" in beyond.first.evaluate("(one) => getComputedStyle(one).textDecorationLine")
    legend = opened.page.locator("#token-legend").inner_text()
    assert "beyond it" in legend
    assert "another token is likeliest" in legend


def test_the_keyboard_alone_reaches_tokens_and_walks_through_them(opened: Opened) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.className") == "skip-link"
    page.locator("#token-target").focus()
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("() => document.activeElement.classList.contains('tok')"):
            break
    where = "() => document.activeElement.dataset.position"
    assert page.evaluate(where) == "0"
    assert "position 0 of" in _tip(page)
    assert page.evaluate("() => document.activeElement.getAttribute('aria-describedby')") == "tip"
    for key, position in (("ArrowRight", "1"), ("ArrowRight", "2"), ("ArrowLeft", "1"), ("End", None), ("Home", "0")):
        page.keyboard.press(key)
        assert position is None or page.evaluate(where) == position
        assert f"position {page.evaluate(where)} of" in _tip(page)
    page.keyboard.press("ArrowDown")
    below = int(page.evaluate(where))
    assert below > 1
    page.keyboard.press("ArrowUp")
    assert int(page.evaluate(where)) < below
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.keyboard.press("Tab")  # the prompt is one stop, its answer the next
    assert page.evaluate("() => document.activeElement.classList.contains('tok')")
    assert int(page.evaluate(where)) > below


def test_another_target_has_other_colours(opened: Opened) -> None:
    page = opened.page
    heat = f"{_TOKENS}[class*=heat-4]"
    assert page.locator(heat).count() > 3
    page.select_option("#token-target", label="pytorch:cpu:fp32")
    assert page.locator(heat).count() == 0
    page.select_option("#token-target", label="ort-genai:dml:fp16")
    assert page.locator("details[open] .token-note").all_inner_texts()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, file: Path, scheme: str) -> None:
    opened = Opened(browser, file, color_scheme=scheme, **DESKTOP)
    opened.keep(scheme)
    page = opened.page
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    for target in ("openvino:npu:int4", "ort-genai:dml:int4"):
        page.select_option("#token-target", label=target)
        for selector in (
            "p, dd, dt, li, h1, h2, h3, a, th, td, code, summary, label, pre",
            ".chip, .cell, .word",
            ".tok, mark",
        ):
            assert contrast(page, selector) >= 4.5, selector
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) is (scheme == "dark")
    ink = page.locator("svg.plot-wide text").first.evaluate("(one) => getComputedStyle(one).fill")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) is (scheme == "dark")
    assert opened.trouble == []
    opened.context.close()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, **PHONE)
    page = opened.page
    opened.keep("phone")
    page.evaluate("() => document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    page.wait_for_timeout(100)
    assert page.evaluate("() => document.documentElement.scrollWidth") == 360
    assert page.evaluate("() => innerWidth") == 360
    outside = page.evaluate(
        "() => [...document.querySelectorAll('main *, header *')].filter((e) => !e.closest('.scroll'))"
        ".filter((e) => e.getBoundingClientRect().right > 361).map((e) => e.outerHTML.slice(0, 80))"
    )
    assert outside == []
    assert page.locator("svg.plot-narrow").first.is_visible()
    assert not page.locator("svg.plot-wide").first.is_visible()
    heights = page.evaluate(
        "() => [...document.querySelectorAll('svg.plot-narrow text')].map((e) => e.getBoundingClientRect().height)"
    )
    assert min(heights) >= 9
    opened.keep("phone-whole", full_page=True)
    assert opened.trouble == []
    opened.context.close()


def test_a_finger_shows_the_tip_and_takes_it_away(browser: Any, file: Path) -> None:
    opened = Opened(browser, file, **PHONE)
    page = opened.page
    token = page.locator(_TOKENS).nth(9)
    token.scroll_into_view_if_needed()
    token.tap()
    assert "openvino:npu:int4" in _tip(page)
    opened.keep("tap")
    box = page.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360
    page.locator("#prompts h2").tap()
    page.wait_for_timeout(300)
    assert not page.locator("#tip").is_visible()
    opened.context.close()


def test_paper_gets_the_failures_opened_and_no_controls(opened: Opened, tmp_path: Path) -> None:
    page = opened.page
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("() => dispatchEvent(new Event('beforeprint'))")
    for selector in ("nav", ".controls", "#tip"):
        assert not page.locator(selector).first.is_visible()
    assert page.locator("#targets details[open] pre").first.is_visible()
    assert page.evaluate("() => getComputedStyle(document.querySelector('h1')).color") == "rgb(27, 31, 36)"
    page.evaluate("() => dispatchEvent(new Event('afterprint'))")
    assert page.locator("#targets details[open]").count() == 0
    folder = Path(os.environ.get("REPORT_SCREENSHOTS", tmp_path))
    page.pdf(path=str(folder / "print.pdf"), format="A4", print_background=True)
    assert (folder / "print.pdf").read_bytes().startswith(b"%PDF")


def test_without_javascript_the_text_is_there(browser: Any, file: Path) -> None:
    context = browser.new_context(java_script_enabled=False, **DESKTOP)
    page = context.new_page()
    page.goto(file.as_uri())
    assert "need JavaScript" in page.locator("#prompts").inner_text()
    assert "He waited on the bridge" in page.locator("details[open] .tokens").nth(1).inner_text()
    context.close()


def test_every_control_and_picture_has_a_name(opened: Opened) -> None:
    page = opened.page
    nameless = page.evaluate(
        "() => [...document.querySelectorAll('svg, section, [role=region], [role=group], nav')]"
        ".filter((e) => !e.getAttribute('aria-label') && !e.getAttribute('aria-labelledby'))"
        ".map((e) => e.outerHTML.slice(0, 80))"
    )
    assert nameless == []
    unlabelled = page.evaluate(
        "() => [...document.querySelectorAll('select, input')].filter((e) => !e.labels.length).map((e) => e.outerHTML)"
    )
    assert unlabelled == []
    headless = page.evaluate(
        "() => [...document.querySelectorAll('table')].filter((e) => !e.querySelector('th[scope=col]')).length"
    )
    assert headless == 0
    levels = page.evaluate("() => [...document.querySelectorAll('h1, h2, h3')].map((e) => Number(e.tagName[1]))")
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert page.evaluate("() => document.documentElement.lang") == "en"
