"""Two real runs and `phi3-conformance diff`: of the same driver, and of one whose newer version breaks a kernel."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TARGET = "planted-driver:cpu:fp32"


def run(conform: Any, folder: Path, name: str, fault: str, *arguments: str) -> Path:
    """A run under a driver; the copy of its record."""
    result = conform(*arguments, targets=TARGET, fault=fault)
    assert result.cases, result.text
    return Path(shutil.copy(folder / "record.json", folder / f"{name}.json"))


def diff(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    whole = [sys.executable, "-m", "harness.cli", "diff", *arguments]
    return subprocess.run(whole, capture_output=True, encoding="utf-8", check=False, cwd=folder, timeout=120)


def test_a_driver_that_breaks_a_kernel_regresses_with_the_sublayer_named(
    conform: Any, pytester: pytest.Pytester
) -> None:
    folder = pytester.path
    run(conform, folder, "A", "driver-1")
    run(conform, folder, "A2", "driver-1")
    run(conform, folder, "mended", "driver-2-mended")
    run(conform, folder, "B", "driver-2")

    same = diff(folder, "A.json", "A2.json")
    assert same.returncode == 0, same.stdout + same.stderr
    assert same.stdout.startswith("NOTHING REGRESSED: ")
    assert "Nothing that is recorded differs" in same.stdout

    newer = diff(folder, "A.json", "mended.json", "--strict")
    assert newer.returncode == 0, newer.stdout + newer.stderr
    assert "nly the driver changed" in newer.stdout

    broken = diff(folder, "A.json", "B.json", "--repeat=A2.json", "--json=diff.json", "--markdown=diff.md")
    assert broken.returncode == 1, broken.stdout + broken.stderr
    assert broken.stdout.startswith("REGRESSED: ")
    assert "nly the driver changed" in broken.stdout
    assert "first bad: model.layers.1.mlp, from prefill on, position 0" in broken.stdout
    found = json.loads((folder / "diff.json").read_text(encoding="utf-8"))
    regressed = {case["case"] for case in found["cases"] if case["change"] == "REGRESSION"}
    assert {f"test_logits[{prompt}]" for prompt in ("first", "second", "third")} <= regressed
    assert "test_weights" not in regressed
    assert "test_attestation" not in regressed
    (driver,) = found["surroundings"]["causes"]
    assert (driver["area"], driver["before"], driver["after"]) == ("driver", "32.0.100.3917", "32.0.100.4023")
    assert "first bad: model.layers.1.mlp" in (folder / "diff.md").read_text(encoding="utf-8")

    mended = diff(folder, "B.json", "A.json")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert f"{len(regressed)} FIX" in mended.stdout
