"""Where the harness keeps what it can make again: exported artifacts, hashes of files, compiled models, references."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import platformdirs

FREE_SPACE = "free space (phi3-conformance cache clean), or set PHI3_CONFORMANCE_CACHE to another disk"
"""What to do where its disk is full."""


def cache_root() -> Path:
    """The user's cache folder for this project, `PHI3_CONFORMANCE_CACHE` if set."""
    override = os.environ.get("PHI3_CONFORMANCE_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("phi3-conformance", appauthor=False)


def mark_used(folder: Path) -> None:
    """Note that a folder in it is in use today, so that `cache clean` spares it; nothing where there is none."""
    with contextlib.suppress(OSError):
        os.utime(folder)
