"""Have the page of a run made once its record is written: in another process, since plots take a library to draw."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# A record of 30 targets takes a quarter of a minute.
_SECONDS = 300.0


def publish(record: Path, page: Path) -> str:
    """Make the page; returns why it could not be made, empty where it was. Raises nothing: the record is there."""
    command = [sys.executable, "-m", "harness.cli", "report", str(record), "--html", str(page)]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{type(error).__name__}: {error}"
    if done.returncode == 0:
        return ""
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"status {done.returncode}"
