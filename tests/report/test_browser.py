"""The page in a browser: no errors, no requests, tokens by mouse, keyboard and finger, dark, narrow and on paper."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.record import RunRecord
from harness.report.html import to_html
from report.demo import demo_record

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: python -m pip install playwright"
)

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
_PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
_TOKENS = "details[open] .tokens >> nth=1 >> .tok"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return demo_record()


@pytest.fixture(scope="module")
def file(record: RunRecord, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(to_html(record), encoding="utf-8")
    return path


class _Opened:
    """A page with what it complained of and what it asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.trouble: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.trouble.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.trouble.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def keep(self, name: str, **options: Any) -> None:
        """A screenshot, where somebody wants to look at it."""
        folder = os.environ.get("REPORT_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[_Opened]:
    one = _Opened(browser, file, **_DESKTOP)
    yield one
    one.context.close()
    assert one.trouble == []
    assert [url for url in one.requests if not url.startswith(("file:", "data:"))] == []


def test_the_verdict_is_in_sight_when_the_page_opens(opened: _Opened) -> None:
    opened.keep("desktop")
    seen = opened.page.evaluate(
        "() => [...document.querySelectorAll('h1, .word, .card h3 a')]"
        ".filter((e) => e.getBoundingClientRect().bottom < innerHeight).map((e) => e.textContent)"
    )
    assert seen[0] == "FAIL"
    assert seen[1].startswith("5 of 12 targets fail")
    assert "openvino:npu:int4" in seen


def test_nothing_goes_wrong_when_everything_is_opened(opened: _Opened) -> None:
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


def test_hovering_shows_what_golden_and_device_expect(opened: _Opened, record: RunRecord) -> None:
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


def test_tokens_beyond_their_limit_differ_in_more_than_colour(opened: _Opened) -> None:
    beyond = opened.page.locator(f"{_TOKENS}.beyond")
    assert beyond.count() > 3
    assert "underline" in beyond.first.evaluate("(one) => getComputedStyle(one).textDecorationLine")
    legend = opened.page.locator("#token-legend").inner_text()
    assert "beyond it" in legend
    assert "another token is likeliest" in legend


def test_the_keyboard_alone_reaches_tokens_and_walks_through_them(opened: _Opened) -> None:
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


def test_another_target_has_other_colours(opened: _Opened) -> None:
    page = opened.page
    heat = f"{_TOKENS}[class*=heat-4]"
    assert page.locator(heat).count() > 3
    page.select_option("#token-target", label="pytorch:cpu:fp32")
    assert page.locator(heat).count() == 0
    page.select_option("#token-target", label="ort-genai:dml:fp16")
    assert page.locator("details[open] .token-note").all_inner_texts()


def _contrast(page: Any, selector: str) -> float:
    """The least contrast of text with what is behind it, by WCAG, over the elements in sight."""
    least: float = page.evaluate(
        """(selector) => {
          const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
          const light = (rgb) => rgb.slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
          const behind = (one) => {
            for (let at = one; at; at = at.parentElement) {
              const colour = parts(getComputedStyle(at).backgroundColor);
              if (colour.length < 4 || colour[3] > 0.99) return colour;
            }
            return [255, 255, 255];
          };
          let least = 99;
          for (const one of document.querySelectorAll(selector)) {
            if (!one.textContent.trim() || !one.getClientRects().length) continue;
            const [a, b] = [light(parts(getComputedStyle(one).color)), light(behind(one))];
            least = Math.min(least, (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
          }
          return least;
        }""",
        selector,
    )
    return least


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_dark(browser: Any, file: Path, scheme: str) -> None:
    opened = _Opened(browser, file, color_scheme=scheme, **_DESKTOP)
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
            assert _contrast(page, selector) >= 4.5, selector
    background = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 150) is (scheme == "dark")
    ink = page.locator("svg.plot-wide text").first.evaluate("(one) => getComputedStyle(one).fill")
    assert (sum(map(int, re.findall(r"\d+", ink)[:3])) > 380) is (scheme == "dark")
    assert opened.trouble == []
    opened.context.close()


def test_a_phone_shows_all_of_it_without_scrolling_sideways(browser: Any, file: Path) -> None:
    opened = _Opened(browser, file, **_PHONE)
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
    opened = _Opened(browser, file, **_PHONE)
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


def test_paper_gets_the_failures_opened_and_no_controls(opened: _Opened, tmp_path: Path) -> None:
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
    context = browser.new_context(java_script_enabled=False, **_DESKTOP)
    page = context.new_page()
    page.goto(file.as_uri())
    assert "need JavaScript" in page.locator("#prompts").inner_text()
    assert "He waited on the bridge" in page.locator("details[open] .tokens").nth(1).inner_text()
    context.close()


def test_every_control_and_picture_has_a_name(opened: _Opened) -> None:
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
