"""`phi3-conformance signoff` from end to end, with the planted backend: measured, packed, verified, refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness.checkpoint import open_checkpoint
from harness.options import POLICY
from harness.prompts import read_suite
from harness.record import read_record
from support import PLANTED, golden_of, write_checkpoint

Ended = subprocess.CompletedProcess[str]
ITEMS = 102


class Place:
    """A folder with a tiny checkpoint, its suites, their goldens and a file of candidates."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_checkpoint(folder / "tiny")
        letters = "abcdefghijklmnopqrstuvwxyz"
        texts = [letters[n % 20 : n % 20 + 2 + n % 5] for n in range(ITEMS)]
        scored = [{"id": f"text-{n:03d}", "about": "", "text": t, "continuation": t[::-1]} for n, t in enumerate(texts)]
        answered = [{"id": name, "about": "", "text": name, "new_tokens": 3} for name in ("hello", "world")]
        for name, lines in (("scored", scored), ("answered", answered)):
            path = folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            golden_of(open_checkpoint(folder / "tiny"), read_suite(path), folder / "golden" / name)
        text = 'schema = 1\n[[candidate]]\nname = "first"\ntarget = "planted:cpu:fp32"\n'
        (folder / "candidates.toml").write_text(text, encoding="utf-8")

    def command(self, *arguments: str, fault: str = "") -> Ended:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PLANTED), os.environ.get("PYTHONPATH", "")]),
            "PLANTED_FAULT": fault,
            "PHI3_CONFORMANCE_CACHE": str(self.folder / "cache"),
            "PYTHONIOENCODING": "utf-8",
        }
        return subprocess.run(
            [sys.executable, "-m", "harness.cli", "signoff", *arguments],
            capture_output=True,
            encoding="utf-8",
            cwd=self.folder,
            env=environment,
            check=False,
            timeout=300,
        )

    def run(self, out: str, *more: str, fault: str = "") -> Ended:
        given = ["--candidates=candidates.toml", "--checkpoint=tiny", "--prompts=scored.jsonl"]
        given += ["--answers=answered.jsonl", "--golden=golden", f"--policy={self.policy}", f"--out={out}"]
        return self.command("run", *given, *more, fault=fault)

    @property
    def policy(self) -> Path:
        """The project's policy, without its list of prompts that must match."""
        path = self.folder / "policy.toml"
        lines = POLICY.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if not line.startswith("must_match")]
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")
        return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("signoff"))


@pytest.fixture(scope="module")
def signed(place: Place) -> Ended:
    """A sign-off of a backend that is right."""
    return place.run("right")


def test_a_right_backend_is_signed_off(place: Place, signed: Ended) -> None:
    assert signed.returncode == 0, signed.stdout + signed.stderr
    assert "Signed off: first keeps to the policy's limits." in signed.stdout
    record = read_record(place.folder / "right" / "records" / "first.json")
    assert record.complete
    assert sum(case.test == "test_sign_off" for case in record.cases) == ITEMS
    assert {case.outcome for case in record.cases} <= {"PASS", "UNSUPPORTED"}


def test_its_package_verifies_and_is_packed(place: Place, signed: Ended) -> None:
    assert signed.returncode == 0
    assert place.command("pack", "right", "--out=right.zip").returncode == 0
    for package in ("right", "right.zip"):
        ended = place.command("verify", package)
        assert ended.returncode == 0, ended.stderr
        assert "nothing changed, missing or added" in ended.stdout
        said = next(line for line in signed.stdout.splitlines() if line.startswith("package "))
        identity = said.rpartition(" ")[2]
        assert identity in ended.stdout
        assert place.command("verify", package, f"--manifest-sha256={identity}").returncode == 0
    other = place.command("verify", "right", f"--manifest-sha256={'0' * 64}")
    assert (other.returncode, "not 0000" in other.stderr) == (2, True)


def test_one_byte_changed_is_refused(place: Place, signed: Ended) -> None:
    assert signed.returncode == 0
    path = place.folder / "right" / "records" / "first.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
        ended = place.command("verify", "right")
    finally:
        path.write_bytes(whole)
    assert ended.returncode == 2
    assert "REFUSED" in ended.stderr
    assert "records/first.json was changed" in ended.stderr


def test_a_sign_off_does_not_overwrite_another(place: Place, signed: Ended) -> None:
    assert signed.returncode == 0
    ended = place.run("right")
    assert ended.returncode == 2
    assert "holds a sign-off already" in ended.stderr


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("scaled", "implementation"),
        ("empty", "greedy form"),
        ("nan", "measured"),
        ("no-evidence", "device"),
        ("not-installed", "measured"),
    ],
)
def test_a_backend_with_a_fault_is_not(place: Place, fault: str, said: str) -> None:
    ended = place.run(f"wrong-{fault}", fault=fault)
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert "Not signed off: first fails." in ended.stdout
    assert f"**first**, {said}: " in ended.stdout.partition("## What fails")[2].partition("##")[0]
    assert place.command("verify", f"wrong-{fault}").returncode == 1


def test_few_items_decide_nothing(place: Place) -> None:
    ended = place.run("few", "--items=20")
    assert ended.returncode == 1
    assert "below 100 nothing is decided" in ended.stdout
