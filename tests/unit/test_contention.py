"""Busy processes: one for each core, gone once they are told to."""

from __future__ import annotations

import os
import time

import psutil
import pytest

from direct import direct
from harness import determinism
from harness.contention import Contention
from harness.errors import StageError
from support import Tiny


def test_every_core_is_kept_busy_until_told_otherwise() -> None:
    contention = Contention()
    before = {child.pid for child in psutil.Process().children()}
    try:
        assert contention.do_contend() == os.cpu_count()
        started = [child for child in psutil.Process().children() if child.pid not in before]
        assert len(started) == os.cpu_count()
        deadline = time.monotonic() + 10.0
        while any(sum(child.cpu_times()[:2]) < 0.02 for child in started) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert all(sum(child.cpu_times()[:2]) >= 0.02 for child in started)
    finally:
        assert contention.do_relent() == os.cpu_count()
    assert not any(child.is_running() for child in started)
    assert contention.do_relent() == 0


def test_load_that_ended_early_proves_nothing(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    session = direct(tiny)
    plain = session.call
    asked: list[str] = []

    def call(operation: str, **arguments: object) -> object:
        asked.append(operation)
        return {"contend": 2, "relent": 1}.get(operation) or plain(operation, **arguments)

    monkeypatch.setattr(session, "call", call)
    with pytest.raises(StageError, match="of 2 busy processes 1 had ended"):
        determinism.under_load(session)
    assert asked.index("contend") < asked.index("relent")


def test_load_ends_when_a_session_fails_under_it(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    session = direct(tiny)
    plain = session.call
    asked: list[str] = []

    def call(operation: str, **arguments: object) -> object:
        asked.append(operation)
        if operation == "append" and "contend" in asked:
            raise RuntimeError("CL_OUT_OF_RESOURCES")
        return {"contend": 2, "relent": 2}.get(operation) or plain(operation, **arguments)

    monkeypatch.setattr(session, "call", call)
    with pytest.raises(RuntimeError):
        determinism.under_load(session)
    assert asked[-1] == "relent"
