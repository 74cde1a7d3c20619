"""Fixtures for every test of the harness."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from harness.checkpoint import open_checkpoint
from harness.golden import TREE
from harness.prompts import read_suite
from harness.record import read_record
from support import PLANTED, Result, Tiny, golden_of, write_checkpoint

pytest_plugins = ["pytester"]

Conform = Callable[..., Result]


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
