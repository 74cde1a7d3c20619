"""What a run tells while it goes: what must be known always, and the steps of each target where somebody looks on."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable

import pytest


def announcer(config: pytest.Config) -> Callable[[str], None]:
    """Writes a line past the capture of output, in the main process or an xdist worker."""

    def announce(text: str) -> None:
        terminal = config.pluginmanager.get_plugin("terminalreporter")
        capture = config.pluginmanager.get_plugin("capturemanager")
        with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled():
            if terminal is not None and not hasattr(config, "workerinput"):
                terminal.ensure_newline()
                terminal.write_line(text)
            elif sys.__stderr__ is not None:  # an xdist worker's reporter writes to nobody, its stderr to the terminal
                print(text, file=sys.__stderr__, flush=True)

    return announce


def stepper(config: pytest.Config, announce: Callable[[str], None]) -> Callable[[str], None]:
    """Writes a line a step with the time since the run began: on a terminal and in CI, and nowhere with -q."""
    began = time.monotonic()

    def step(text: str) -> None:
        if _is_looked_at(config):
            minutes, seconds = divmod(int(time.monotonic() - began), 60)
            announce(f"[{minutes:3}:{seconds:02}] {text}")

    return step


def _is_looked_at(config: pytest.Config) -> bool:
    stream = sys.__stderr__ if hasattr(config, "workerinput") else sys.__stdout__
    terminal = stream is not None and not stream.closed and stream.isatty()
    return config.get_verbosity() >= 0 and (terminal or os.environ.get("CI", "") not in ("", "0", "false"))
