"""A few of the battery's faults of each kind: all found and put down rightly. The whole is `tox -e detection`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from detection.battery.launch import command, environment


def test_a_few_faults_of_each_kind_are_found_and_put_down_rightly(tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    line = command("--quick", "--out", str(table))
    if not line:
        pytest.skip("the runtimes are not installed: python -m tox -e runtime")
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    found = table.read_text(encoding="utf-8")
    for cause in ("protocol", "evidence", "weight audit", "implementation error"):
        assert f"| {cause} | yes |" in found
    assert "**missed**" not in found
