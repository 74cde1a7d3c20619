"""Goldens recorded by this machine and hosts of a lab, over a real sshd on loopback: the bytes of one recording."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from harness.golden import verify_files
from harness.options import PROMPTS
from sshd import NEEDED, Sshd, available

pytestmark = pytest.mark.skipif(not available(), reason=NEEDED)

Start = Callable[..., Sshd]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts hosts, each with a cache of its own and what else is to be set there."""
    started: list[Sshd] = []

    def start_one(**environment: str) -> Sshd:
        started.append(Sshd(tmp_path / f"host{len(started)}", environment))
        return started[-1]

    yield start_one
    for host in started:
        host.close()


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """The first five prompts of the project's own suite."""
    path = tmp_path / "few.jsonl"
    lines = (PROMPTS / "core.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(lines[:5]), encoding="utf-8")
    return path


def command(few: Path, golden: Path, *options: str) -> list[str]:
    return [
        *(sys.executable, "-m", "harness.cli", "golden", "record"),
        *(f"--prompts={few}", f"--golden={golden}", *options),
    ]


def record(few: Path, golden: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(few, golden, *options), capture_output=True, text=True, check=False, timeout=300)


def of_hosts(*hosts: Sshd) -> list[str]:
    return [f"--host=lab{number}={host.spec()}" for number, host in enumerate(hosts, 1)]


@pytest.mark.parametrize("options", [(), ("--memory=800MB", "--form=compact", "--no-hidden")], ids=["", "streamed"])
def test_the_bytes_are_those_of_one_recording(
    start: Start, few: Path, tmp_path: Path, options: tuple[str, ...]
) -> None:
    done = record(few, tmp_path / "spread", *of_hosts(start(), start()), *options)
    assert done.returncode == 0, done.stderr
    assert record(few, tmp_path / "one", *options).returncode == 0
    spread, one = (verify_files(tmp_path / name / "few").manifest for name in ("spread", "one"))
    assert spread.files == one.files
    unsealed = [msgspec.structs.replace(found, recorded="", own_sha256="") for found in (spread, one)]
    assert unsealed[0] == unsealed[1]
    assert [path.name for path in (tmp_path / "spread").iterdir()] == ["few"]
    for number in (2, 3):
        assert f"fetching part {number}/3 from lab{number - 1}" in done.stderr


def test_a_host_that_cannot_begin_is_an_error_before_anything_is_computed(
    start: Start, few: Path, tmp_path: Path
) -> None:
    whole, broken = start(), start()
    broken.cache.mkdir()
    (broken.cache / "parts").write_text("a file where the folder of parts would be", encoding="utf-8")
    done = record(few, tmp_path / "golden", *of_hosts(whole, broken))
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert "lab2" in done.stderr
    assert not (tmp_path / "golden").exists()


def test_a_host_that_is_switched_off_is_named_and_the_other_parts_are_kept(
    start: Start, few: Path, tmp_path: Path
) -> None:
    kept, lost = start(), start()
    hosts = of_hosts(kept, lost)
    begun = subprocess.Popen(
        command(few, tmp_path / "golden", *hosts), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(lost.cache.glob("parts/*/record.log")):
        assert time.monotonic() < deadline
        assert begun.poll() is None
        time.sleep(0.05)
    lost.kill()
    _, said = begun.communicate(timeout=300)
    assert begun.returncode != 0
    assert "lab2 has not recorded part 3/3" in said
    assert "Traceback" not in said
    parts = {path.name for path in (tmp_path / "golden").iterdir()}
    assert parts == {"few.part-1-of-3", "few.part-2-of-3"}
    back = Sshd(tmp_path / "back", {})
    try:
        seen = record(few, tmp_path / "golden", hosts[0], f"--host=lab2={back.spec()}")
    finally:
        back.close()
    assert seen.returncode == 0, seen.stderr
    assert "part 2/3 from lab1" not in seen.stderr  # it was there
    assert [path.name for path in (tmp_path / "golden").iterdir()] == ["few"]


def test_a_host_that_would_round_differently_is_refused_before_anything_is_computed(
    start: Start, few: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    # A module of the host's own that reports another version of torch.
    (other / "sitecustomize.py").write_text(
        "import importlib.metadata as found\n"
        "version = found.version\n"
        "found.version = lambda name: '9.9' if name == 'torch' else version(name)\n",
        encoding="utf-8",
    )
    host = start(PYTHONPATH=str(other))
    done = record(few, tmp_path / "golden", *of_hosts(host))
    assert done.returncode != 0
    assert "lab1 may round differently" in done.stderr
    assert "torch 9.9 there" in done.stderr
    assert not (tmp_path / "golden").exists()


def test_part_and_host_exclude_each_other(few: Path, tmp_path: Path) -> None:
    done = record(few, tmp_path / "golden", "--part=1/2", "--host=lab1=ssh=nowhere//python=python")
    assert done.returncode != 0
    assert "--part and --host do not go together" in done.stderr
