"""Fixtures for every test of the harness."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from harness.checkpoint import open_checkpoint
from harness.golden import TREE
from harness.prompts import read_suite
from harness.record import read_record
from support import PLANTED, Result, Tiny, golden_of, write_checkpoint

pytest_plugins = ["pytester"]

# Longer than any run of a test takes.
_MOST_SECONDS = 600.0

# A shell that starts tests in the background has them ignore Ctrl-C, and so would the runs that are sent one.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The suites that a test of the harness runs unless it names others: those that judge by prompts.
SUITES = ("test_attestation", "test_greedy", "test_known_faults", "test_logits", "test_speed", "test_weights")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A random Phi-3 of 30,000 weights, a suite of three prompts and their golden."""
    root = tmp_path_factory.mktemp("tiny")
    made = Tiny(root / "tiny", root / "few.jsonl", root / "golden")
    write_checkpoint(made.checkpoint)
    lines = [
        {"id": "first", "text": "abcdefghij", "new_tokens": 8, "about": "plain"},
        {"id": "second", "text": "zyxwvutsrqp", "new_tokens": 8, "about": "plain"},
        {"id": "third", "text": "abcabcabcabc", "new_tokens": 6, "about": "repetition"},
    ]
    made.prompts.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    checkpoint, suite = open_checkpoint(made.checkpoint), read_suite(made.prompts)
    golden_of(checkpoint, suite, made.golden / suite.name)
    return made


class Conform:
    """Runs conformance/ on the planted backend, in a process of its own and a folder of the test."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> None:
        self.mark = folder / "mark"
        """Where planted faults leave traces; every process of a run has this path in its environment."""
        self._folder = folder
        self._record = folder / "record.json"
        self._monkeypatch = monkeypatch
        self._tiny = tiny

    def plant(self, fault: str) -> None:
        """Have processes started from now on find a fault."""
        self._monkeypatch.setenv("PYTHONPATH", str(PLANTED))
        self._monkeypatch.setenv("PLANTED_FAULT", fault)
        self._monkeypatch.setenv("PLANTED_MARK", str(self.mark))
        self._monkeypatch.setenv("PHI3_CONFORMANCE_LOCKS", str(self._folder / "locks"))

    def start(
        self,
        *arguments: str,
        fault: str = "",
        targets: str = "planted:cpu:fp32",
        options: list[str] | None = None,
        suites: tuple[str, ...] = SUITES,
    ) -> subprocess.Popen[str]:
        """Begin a run of some of the suites; `end` waits for it."""
        self.plant(fault)
        command = [
            *(sys.executable, "-m", "pytest", "-c"),
            str(TREE / "pyproject.toml"),
            *(self._tiny.options if options is None else options),
            f"--record={self._record}",
            *([f"--targets={targets}"] if targets else []),
            *("-p", "no:cacheprovider"),
            *(f"--ignore={path}" for path in (TREE / "conformance").glob("test_*.py") if path.stem not in suites),
            *arguments,
            str(TREE / "conformance"),
        ]
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        pipe = subprocess.PIPE
        return subprocess.Popen(command, stdout=pipe, stderr=pipe, encoding=encoding, cwd=self._folder)

    def end(self, started: subprocess.Popen[str]) -> Result:
        """What came of a run that was started."""
        try:
            output, errors = started.communicate(timeout=_MOST_SECONDS)
        except subprocess.TimeoutExpired:
            started.kill()
            output, errors = started.communicate()
            pytest.fail(f"the run did not end in {_MOST_SECONDS} s:\n{output}{errors}")
        record = read_record(self._record) if self._record.is_file() else None
        return Result(started.returncode, output + errors, record)

    def __call__(self, *arguments: str, **planted: Any) -> Result:
        """Carry out a run: `conform("--targets=planted:cpu:fp32", fault="nan")`; see `start`."""
        return self.end(self.start(*arguments, **planted))

    def leftovers(self, seconds: float = 0.0) -> list[str]:
        """The processes that a run has left behind, once they have had some seconds to end."""
        deadline = time.monotonic() + seconds
        while (found := list(self._processes())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _processes(self) -> Iterator[str]:
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get("PLANTED_MARK") == str(self.mark) and process.status() != "zombie":
                    yield f"{process.pid}: {' '.join(process.cmdline())}"


@pytest.fixture
def conform(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> Conform:
    """Runs of conformance/ on the planted backend."""
    return Conform(pytester.path, monkeypatch, tiny)
