"""A sign-off that was never measured, and its package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.checkpoint import Checkpoint
from harness.devices import Machine
from made_signoff import Signed


@pytest.fixture
def signed(checkpoint: Checkpoint, machine: Machine, tmp_path: Path) -> Signed:
    """A sign-off of two candidates that pass, the coarse one at half the size and ten times the KL."""
    return Signed(checkpoint, machine, tmp_path)


@pytest.fixture
def make_package(signed: Signed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Writes the package of `signed` and names its folder."""

    def make() -> Path:
        signed.package(tmp_path / "package", monkeypatch)
        return tmp_path / "package"

    return make
