"""Runs the real conformance suites in a pytest process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import pytest
from support import PLANTED, Tiny

from harness.golden import TREE
from harness.record import CaseRecord, RunRecord, read_record


class Result(NamedTuple):
    """How a run ended: its exit status, its text and its record, None where none was written."""

    status: int
    text: str
    record: RunRecord | None

    @property
    def cases(self) -> list[CaseRecord]:
        """The cases of the record."""
        assert self.record is not None, self.text
        return self.record.cases

    def outcomes(self, pattern: str = "") -> Counter[str]:
        """How often each outcome occurred among the cases whose id contains a text."""
        return Counter(f"{c.outcome}({c.stage})" if c.stage else c.outcome for c in self.cases if pattern in c.id)


Conform = Callable[..., Result]


@pytest.fixture
def conform(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tiny: Tiny) -> Conform:
    """Run conformance/ on the planted backend: `conform("--targets=planted:cpu:fp32", fault="nan")`."""

    def run(
        *arguments: str, fault: str = "", targets: str = "planted:cpu:fp32", options: list[str] | None = None
    ) -> Result:
        record = pytester.path / "record.json"
        monkeypatch.setenv("PYTHONPATH", str(PLANTED))
        monkeypatch.setenv("PLANTED_FAULT", fault)
        monkeypatch.setenv("PLANTED_MARK", str(pytester.path / "mark"))
        command = [
            *(sys.executable, "-m", "pytest", "-c"),
            str(TREE / "pyproject.toml"),
            *(tiny.options if options is None else options),
            f"--record={record}",
            *([f"--targets={targets}"] if targets else []),
            "-p",
            "no:cacheprovider",
            *arguments,
            str(TREE / "conformance"),
        ]
        encoding = os.environ.get("PYTHONIOENCODING", "utf-8")
        found = subprocess.run(command, capture_output=True, check=False, encoding=encoding, cwd=pytester.path)
        return Result(found.returncode, found.stdout + found.stderr, read_record(record) if record.is_file() else None)

    return run
