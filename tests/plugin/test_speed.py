"""Real runs that are timed: a session that got slower shows in the record, in `diff` and against a policy's limit."""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness.golden import TREE
from harness.record import RunRecord
from support import Result

LIMIT = """
[[speed]]
targets = "planted:*"
prompt_tokens = 32
token_ms = { limit = 15, origin = "the tests" }
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """The project's policy with a limit at a length of its own."""
    path = tmp_path / "policy.toml"
    path.write_text((TREE / "conformance" / "policy.toml").read_text(encoding="utf-8") + LIMIT, encoding="utf-8")
    return path


def token_ms(record: RunRecord | None, length: int) -> float:
    assert record is not None
    (found,) = [speed for speed in record.sessions[0].speed if speed.prompt_tokens == length]
    assert len(found.token_ms) == len(found.first_token_ms) >= 3
    return statistics.median(found.token_ms)


def diff(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "harness.cli", "diff", "A.json", "B.json", *arguments]
    return subprocess.run(whole, capture_output=True, encoding="utf-8", check=False, cwd=folder, timeout=120)


def test_a_session_that_got_slower_shows_and_fails_only_where_that_is_asked_for(
    conform: Any, pytester: pytest.Pytester, policy: Path
) -> None:
    folder = pytester.path
    before = conform("-k", "test_speed")
    shutil.copy(folder / "record.json", folder / "A.json")
    after = conform("-k", "test_speed", fault="slow")
    shutil.copy(folder / "record.json", folder / "B.json")
    assert before.outcomes() == after.outcomes() == {"PASS": 1}, before.text + after.text
    assert "tokens/s" in after.text
    assert before.record is not None
    assert [speed.prompt_tokens for speed in before.record.sessions[0].speed] == [16, 64]  # of a context of 128
    for length in (16, 64):
        assert token_ms(after.record, length) > token_ms(before.record, length) + 15

    told = diff(folder)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "time per token" in told.stdout
    assert diff(folder, "--slower-max=1.5").returncode == 1

    limited: Result = conform("-k", "test_speed", f"--policy={policy}", fault="slow")
    assert limited.outcomes() == {"FAIL": 1}
    (message,) = [case.message for case in limited.cases]
    assert "time per token with a prompt of 32 tokens" in message
    assert "allowed: 15 ms (the tests)" in message
    assert limited.cases[0].limits == {"token_32_ms": 15.0}


def test_timing_disturbs_no_other_verdict_and_comes_after_them(conform: Any) -> None:
    result = conform("-k", "first or test_speed")
    assert set(result.outcomes()) == {"PASS"}, result.text
    assert result.cases[-1].test == "test_speed"


def test_a_speed_without_evidence_of_the_device_is_no_pass(conform: Any) -> None:
    assert conform("-k", "test_speed", fault="silent-fallback", targets="planted:pretender:fp32").outcomes() == {
        "UNATTESTED": 1
    }


def test_a_runtime_that_raises_whatever_it_is_asked_is_an_error(conform: Any) -> None:
    result = conform("-k", "test_speed", fault="always-raises")
    assert result.outcomes() == {"ERROR(run)": 1}, result.text
    assert "CL_OUT_OF_RESOURCES" in result.cases[0].message
