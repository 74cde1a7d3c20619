"""A few of the battery's faults of each kind: all found and put down rightly. The whole is `tox -e detection`."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from detection.battery.launch import command, environment
from detection.battery.trial import Cause, Trial


@pytest.fixture(scope="module")
def by_whole_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the table of a quick run, and its trials."""
    return _run(tmp_path_factory.mktemp("whole"))


def _run(folder: Path, *arguments: str) -> Path:
    line = command("--quick", "--out", str(folder / "table.md"), "--save", str(folder / "trials.json"), *arguments)
    if not line:
        pytest.skip("the runtimes are not installed: python -m tox -e runtime")
    done = subprocess.run(line, capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    return folder


def _causes(folder: Path) -> dict[tuple[str, str, str], Cause | None]:
    """What every trial of a run was put down to."""
    faults, variants = msgspec.json.decode((folder / "trials.json").read_bytes(), type=tuple[list[Trial], list[Trial]])
    planted = [(trial.planted, trial.cause) for trial in (*faults, *variants)]
    return {(one.place, one.name, one.strength): cause for one, cause in planted}


def test_a_few_faults_of_each_kind_are_found_and_put_down_rightly(by_whole_rows: Path) -> None:
    found = (by_whole_rows / "table.md").read_text(encoding="utf-8")
    for cause in ("protocol", "evidence", "weight audit", "implementation error"):
        assert f"| {cause} | yes |" in found
    assert "**missed**" not in found


def test_by_a_compact_golden_all_is_found_and_put_down_as_by_whole_rows(by_whole_rows: Path, tmp_path: Path) -> None:
    causes = _causes(by_whole_rows)
    assert len(causes) > 20
    assert _causes(_run(tmp_path, "--compact")) == causes
