"""What a case took: its set-up with it, but for the start of the session, which the session's times have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SLOW_SET_UP = """
import time

import pytest

from harness.sessions import TargetSession

start = TargetSession.start


def start_slowly(session):
    time.sleep(5.0)
    start(session)


TargetSession.start = start_slowly


@pytest.hookimpl(trylast=True)
def pytest_runtest_setup(item):
    if "second" in item.nodeid:
        time.sleep(2.0)
"""


def test_set_up_counts_and_the_start_of_a_session_does_not(conform: Any, tmp_path: Path) -> None:
    (tmp_path / "slow_set_up.py").write_text(SLOW_SET_UP, encoding="utf-8")
    plugin = ("-p", "slow_set_up", "-o", f"pythonpath={tmp_path}")
    result = conform(*plugin, "-k", "test_logits and not suite")
    first, second, _ = (case.seconds for case in result.cases)
    assert second >= 2.0
    (session,) = result.record.sessions
    assert session.timings.start > 0
    assert session.timings.load > 0
    assert first < 5.0  # in whose set-up the session was started
