"""Fixtures for planted faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from direct import direct
from harness.sessions import TargetSession
from support import Tiny


@pytest.fixture
def planted(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TargetSession]:
    """Makes a target of this process with the fault named, or with none."""

    def with_fault(fault: str) -> TargetSession:
        monkeypatch.setenv("PLANTED_FAULT", fault)
        return direct(tiny)

    return with_fault
