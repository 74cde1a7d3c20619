"""A page in a browser, with what it complained of and what it asked for, and how well its text stands out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 900}}
PHONE: dict[str, Any] = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}


class Opened:
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
        if self.page.locator("#token-data").count():
            self.page.wait_for_selector("html[data-ready]", state="attached")

    def keep(self, name: str, **options: Any) -> None:
        """A screenshot, where somebody wants to look at it."""
        folder = os.environ.get("REPORT_SCREENSHOTS")
        if folder:
            self.page.screenshot(path=str(Path(folder) / f"{name}.png"), **options)


def contrast(page: Any, selector: str) -> float:
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
