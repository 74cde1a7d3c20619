"""A run that is killed leaves what it saw; a run that ends leaves a record and nothing else."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
from click.testing import CliRunner

from harness.cli import main
from harness.journal import NOT_ENDED, journal_of
from harness.record import read_record
from harness.record_schema import record_schema

KILLER = """
import os, signal, pytest
seen = []
@pytest.hookimpl(trylast=True)
def pytest_runtest_logreport(report):
    seen.extend([report.nodeid] if getattr(report, "conformance", None) else [])
    if len(seen) == 8:
        os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
@pytest.mark.parametrize("workers", [(), ("-n", "1")], ids=["alone", "xdist"])
def test_a_run_that_is_killed_leaves_a_journal_that_reads_as_a_record(
    conform: Any, tmp_path: Path, workers: tuple[str, ...]
) -> None:
    (tmp_path / "killer.py").write_text(KILLER, encoding="utf-8")
    path = conform.mark.parent / "record.json"
    result = conform(*workers, "-p", "killer", "-o", f"pythonpath={tmp_path}")
    assert result.status == -signal.SIGKILL, result.text
    assert not path.exists()
    assert journal_of(path).exists()
    record = read_record(path)
    assert (record.complete, record.exit_status, len(record.cases)) == (False, NOT_ENDED, 8)
    assert record == read_record(journal_of(path))
    assert [session.target for session in record.sessions] == ["planted:cpu:fp32"]
    assert record.prompts
    assert record.finished >= record.started
    jsonschema.validate(msgspec.json.decode(msgspec.json.encode(record)), record_schema())

    shown = CliRunner().invoke(main, ["record", "show", str(journal_of(path))])
    assert shown.exit_code == 0, shown.output
    assert "INCOMPLETE" in shown.output
    assert "planted:cpu:fp32" in shown.output

    assert conform().status == 0
    assert not journal_of(path).exists()
    assert read_record(path).complete


def test_a_run_that_ends_leaves_a_record_that_its_schema_admits(conform: Any) -> None:
    result = conform(fault="scaled")
    path = conform.mark.parent / "record.json"
    assert not journal_of(path).exists()
    jsonschema.validate(json.loads(path.read_bytes()), record_schema())
    logits = [case for case in result.cases if case.test == "test_logits"]
    prompts = {prompt.id: prompt for prompt in result.record.prompts}
    assert prompts.keys() == {"first", "second", "third"}
    for case in logits:
        prompt, detail = prompts[case.case.partition("[")[2].rstrip("]")], case.detail
        assert detail is not None
        assert len(detail.kl) == len(prompt.tokens) == len(detail.top.tokens)
        assert len(detail.logits_sha256) == 64
    [session] = result.record.sessions
    assert session.timings.load > 0
    assert session.peak_memory_bytes > 1 << 20 or sys.platform == "darwin"
    assert [repeat.identical for repeat in session.repeats] == [True]
    tokens = [case.detail.tokens for case in result.cases if case.test == "test_greedy_match"]
    assert tokens[0] == prompts["first"].tokens[prompts["first"].prefill :]
    assert not any(case.detail for case in result.cases if case.test in ("test_greedy_form", "test_greedy_regret"))


def test_a_journal_that_cannot_be_written_costs_nothing_else(conform: Any) -> None:
    journal_of(conform.mark.parent / "record.json").mkdir()
    result = conform("-k", "attestation")
    assert result.status == 0, result.text
    assert "the journal of this run cannot be written" in result.text


def test_xdist_ends_in_one_record(conform: Any) -> None:
    alone, shared = conform().record, conform("-n", "2").record
    assert {case.id for case in shared.cases} == {case.id for case in alone.cases}
    assert {(p.suite, p.id): p for p in shared.prompts} == {(p.suite, p.id): p for p in alone.prompts}
    assert [r.backend for r in shared.runtimes] == [r.backend for r in alone.runtimes]
    details = [{c.id: c.detail for c in record.cases} for record in (alone, shared)]
    assert details[0] == details[1]


def test_a_record_names_nobody(conform: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    home = tmp_path / "home" / "zebediah"
    home.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.setenv("USER", "zebediah")
    monkeypatch.setenv("LOGNAME", "zebediah")
    monkeypatch.setenv("USERNAME", "zebediah")
    monkeypatch.setenv("HF_TOKEN", "hf_QuiteSecretQuiteSecret")
    monkeypatch.setenv("MY_PASSWORD", "correct-horse")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("OV_CACHE", str(home / "cache"))
    monkeypatch.setenv("ORT_API_KEY", "0123456789")
    monkeypatch.setenv("OV_SAYS", "zebediah was here")
    monkeypatch.setenv("UNRELATED", "unrelated-value")
    suite = tmp_path / "test_theirs.py"
    suite.write_text(
        "import os, pathlib\n"
        "def test_theirs(session, judge):\n"
        "    secrets = os.environ['HF_TOKEN'], os.environ['MY_PASSWORD'], 'user@lab.example'\n"
        "    raise RuntimeError(f'{pathlib.Path.home()}/models of zebediah: {secrets}')\n",
        encoding="utf-8",
    )
    waivers = home / "waivers.toml"
    waivers.write_text("schema = 1\n", encoding="utf-8")
    result = conform(
        *("-k", "theirs or attestation", f"--waivers={waivers}"),
        *("--host=lab1=ssh=zebediah@laboratory//python=/home/other/bin/python", str(suite)),
    )
    text = (conform.mark.parent / "record.json").read_text(encoding="utf-8")
    for secret in (
        "zebediah",
        "hf_Quite",
        "correct-horse",
        "0123456789",
        "unrelated-value",
        "laboratory",
        "/home/other",
    ):
        assert secret not in text, text[max(0, text.index(secret) - 200) : text.index(secret) + 50]
    theirs = next(case for case in result.cases if case.test == "test_theirs")
    assert "~/models of <user>: ('<secret>', '<secret>', '<account>')" in theirs.message
    environment = result.record.environment
    assert environment["OMP_NUM_THREADS"] == "1"
    assert {environment[name] for name in ("OV_CACHE", "ORT_API_KEY", "OV_SAYS")} == {"(masked)"}
    assert "UNRELATED" not in environment
