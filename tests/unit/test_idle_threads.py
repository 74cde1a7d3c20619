"""OpenMP's idle threads sleep where several xdist workers share the processors, and only there."""

from __future__ import annotations

import os

import pytest

TELLS = """
import os

def test_tells():
    assert os.environ.get("OMP_WAIT_POLICY") == {expected!r}
"""


@pytest.mark.parametrize(
    ("workers", "own", "expected"),
    [("2", None, "PASSIVE"), ("1", None, None), ("0", None, None), ("2", "ACTIVE", "ACTIVE")],
)
def test_threads_sleep_beside_other_workers(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str, own: str | None, expected: str | None
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    pytester.makepyfile(TELLS.format(expected=expected))
    outcomes = pytester.runpytest_subprocess("-p", "harness.idle_threads", "-n", workers).parseoutcomes()
    assert outcomes == {"passed": 1}


def test_the_variable_is_gone_afterwards(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    pytester.makepyfile("def test_one(): pass")
    pytester.runpytest_inprocess("-p", "harness.idle_threads", "-n", "2").assert_outcomes(passed=1)

    assert "OMP_WAIT_POLICY" not in os.environ
