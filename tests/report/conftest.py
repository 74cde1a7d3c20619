"""A headless Chromium for the tests of pages."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from report.opened import DESKTOP, Opened

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="package")
def browser() -> Iterator[Any]:
    """The browser; tests that ask for it are skipped where there is none."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: python -m pip install playwright"
    )
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def opened(browser: Any, file: Path) -> Iterator[Opened]:
    """The page `file` of a test's module, wide; it may complain of nothing and ask nothing of anybody."""
    one = Opened(browser, file, **DESKTOP)
    yield one
    one.context.close()
    assert one.trouble == []
    assert [url for url in one.requests if not url.startswith(("file:", "data:"))] == []
