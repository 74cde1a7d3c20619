"""Fixtures for every test of the harness."""

from __future__ import annotations

import json

import pytest
from support import Tiny, golden_of, write_checkpoint

from harness.checkpoint import open_checkpoint
from harness.prompts import read_suite

pytest_plugins = ["pytester"]


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
