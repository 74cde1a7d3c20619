from __future__ import annotations

import pytest

# Two files, one to each worker: neither goes on before the other has begun, so cases of both run at once.
TOGETHER = """
import time
from pathlib import Path

import pytest

running = Path(__file__).parent / "running"


def test_both_have_begun():
    (running / Path(__file__).stem).touch()
    end = time.monotonic() + 60
    while len(list(running.glob("test_*"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.01)


"""
MEASURES = """
@pytest.mark.timed
@pytest.mark.parametrize("number", range(2))
def test_timed(number):
    for _ in range(100):
        assert not list(running.glob("short-*"))
        time.sleep(0.01)
"""
SHORT = """
@pytest.mark.parametrize("number", range(20))
def test_short(number):
    (running / f"short-{number}").touch()
    time.sleep(0.05)
    (running / f"short-{number}").unlink()
"""


@pytest.mark.parametrize(("mark", "failed"), [("@pytest.mark.timed\n", False), ("", True)])
def test_a_timed_case_runs_alone_and_others_do_not(pytester: pytest.Pytester, mark: str, failed: bool) -> None:
    pytester.makepyfile(test_one=TOGETHER + MEASURES.replace("@pytest.mark.timed\n", mark), test_other=TOGETHER + SHORT)
    (pytester.path / "running").mkdir()
    outcomes = pytester.runpytest_subprocess("-p", "harness.alone", "-n", "2", "--dist", "loadfile").parseoutcomes()
    assert sum(outcomes.values()) == 24
    assert ("failed" in outcomes) == failed
