"""What a run tells while it goes, and to whom."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from harness import progress

STEPS = ("target 1 of 1, 1 of 1 cases", "preparing the artifact", "loading and compiling")


def _told(text: str) -> list[str]:
    return [step for step in STEPS if f"] planted:cpu:fp32: {step}" in text]


@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_in_ci_a_run_tells_its_steps_a_line_each(
    conform: Any, monkeypatch: pytest.MonkeyPatch, workers: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CI", "true")
    assert _told(conform("-k", "attestation", *workers).text) == list(STEPS)


def test_a_run_that_nobody_looks_at_is_quiet(conform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    assert not _told(conform("-k", "attestation").text)
    monkeypatch.setenv("CI", "true")
    assert not _told(conform("-k", "attestation", "-q").text)


@pytest.mark.parametrize(
    ("terminal", "ci", "verbosity", "told"),
    [
        (True, "", 0, True),
        (True, "", -1, False),
        (False, "", 0, False),
        (False, "1", 0, True),
        (False, "false", 0, False),
    ],
)
def test_steps_are_told_on_a_terminal_and_in_ci(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, ci: str, verbosity: int, told: bool
) -> None:
    stream: Any = SimpleNamespace(closed=False, isatty=lambda: terminal)
    monkeypatch.setattr(sys, "__stdout__", stream)
    monkeypatch.setitem(os.environ, "CI", ci)
    lines: list[str] = []
    config: Any = SimpleNamespace(get_verbosity=lambda: verbosity)
    progress.stepper(config, lines.append)("judging")
    assert lines == (["[  0:00] judging"] if told else [])
