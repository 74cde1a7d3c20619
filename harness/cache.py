"""Where the harness keeps what it can make again: exported artifacts, hashes of files, compiled models."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_root() -> Path:
    """The user's cache folder for this project, `PHI3_CONFORMANCE_CACHE` if set."""
    override = os.environ.get("PHI3_CONFORMANCE_CACHE")
    return Path(override) if override else platformdirs.user_cache_path("phi3-conformance", appauthor=False)
