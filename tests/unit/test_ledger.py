from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.discovery import RuntimeReport
from harness.errors import RecordError
from harness.journal import Journal, journal_of, replay
from harness.ledger import Ledger
from harness.privacy import Privacy
from harness.record import CaseRecord, Detail, PromptRecord, RunRecord, SessionRecord, Tops, WaiverRecord, read_record
from harness.record_schema import record_schema, schema_text
from harness.words import Words

MakeCase = Callable[..., CaseRecord]


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def ledger(warnings: list[str], tmp_path: Path) -> Ledger:
    return Ledger(Privacy(tmp_path, {"somebody": "<user>"}), warnings.append)


@pytest.fixture
def header(make_record: Callable[..., RunRecord]) -> RunRecord:
    return make_record(cases=[], sessions=[], complete=False, exit_status=-1)


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def test_what_is_entered_is_in_the_record_and_in_the_journal(
    ledger: Ledger, header: RunRecord, make_case: MakeCase, make_session: Callable[..., SessionRecord], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    ledger.begin(path, header)
    ledger.session(_plain(make_session()))
    detail = Detail(top=Tops([[3]], [[0.5]]), kl=[0.25])
    ledger.case(_plain(make_case(message=f"somebody in {tmp_path}/x \x1b[2J", detail=detail)))
    ledger.prompt(PromptRecord("tiny", "greeting", "why", [5], 1, Tops([[6]], [[0.75]]), [0.5]))
    ledger.waiver(WaiverRecord("known", "why", "https://example.org", "us", "2099-01-01"))
    ledger.platform({"lab1": header.machine}, [RuntimeReport("a", None, "3.11", {}, {}, error=f"{tmp_path}/lib")])
    words: Any = Words(tmp_path)
    words.texts = lambda tokens: {token: f"<{token}>" for token in tokens}
    ledger.words(words)
    whole = ledger.complete(header)
    assert whole.cases[0].message == r"<user> in ./x \x1b[2J"
    assert whole.words == {"3": "<3>", "5": "<5>", "6": "<6>"}
    assert whole.runtimes[0].error == "./lib"
    read = read_record(path)
    assert msgspec.structs.replace(read, finished=whole.finished) == whole
    ledger.end(written=True)
    assert not journal_of(path).exists()


def test_a_journal_that_is_all_there_is_stays(ledger: Ledger, header: RunRecord, tmp_path: Path) -> None:
    ledger.begin(tmp_path / "run.json", header)
    ledger.end(written=False)
    assert read_record(tmp_path / "run.json").cases == []


def test_a_later_phase_overrules_a_pass_and_no_failure(ledger: Ledger, make_case: MakeCase) -> None:
    detail = Detail(kl=[0.5])
    ledger.case(_plain(make_case(id="a.py::a", detail=detail)))
    ledger.case(_plain(make_case(id="a.py::a", outcome="ERROR", stage="run")))
    ledger.case(_plain(make_case(id="a.py::b", outcome="FAIL")))
    ledger.case(_plain(make_case(id="a.py::b", outcome="ERROR", stage="run")))
    first, second = ledger.cases
    assert (first.outcome, first.detail) == ("ERROR", detail)
    assert second.outcome == "FAIL"


def test_a_session_keeps_the_evidence_known_of_it(ledger: Ledger, make_session: Callable[..., SessionRecord]) -> None:
    known = make_session()
    ledger.session(_plain(known))
    ledger.session(_plain(make_session(evidence=None, first_bad="first bad: x")))
    [found] = ledger.sessions
    assert (found.evidence, found.first_bad) == (known.evidence, "first bad: x")


def test_a_full_disk_is_told_once(
    ledger: Ledger, header: RunRecord, make_case: MakeCase, warnings: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "run.json"
    journal_of(path).mkdir()
    ledger.begin(path, header)
    ledger.case(_plain(make_case()))
    ledger.end(written=True)
    assert len(warnings) == 1
    assert "killed leaves nothing" in warnings[0]


@pytest.fixture
def journal(header: RunRecord, make_case: MakeCase, tmp_path: Path) -> Path:
    """A journal of two cases."""
    journal = Journal(tmp_path / "run.json", _plain(header))
    for name in ("a", "b"):
        journal.write("case", _plain(make_case(id=name)))
    journal.close()
    return journal_of(tmp_path / "run.json")


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_last_line_cut_short_costs_that_line(journal: Path, cut: int) -> None:
    journal.write_bytes(journal.read_bytes()[:-cut])
    assert [case.id for case in read_record(journal).cases] == ["a"]


def test_a_case_that_comes_again_takes_the_place_of_the_first(journal: Path, make_case: MakeCase) -> None:
    line = json.dumps({"at": "2026-11-22T13:00:00+00:00", "case": _plain(make_case(id="a", outcome="FAIL"))})
    with journal.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    found = read_record(journal)
    assert [(case.id, case.outcome) for case in found.cases] == [("a", "FAIL"), ("b", "PASS")]
    assert found.finished == "2026-11-22T13:00:00+00:00"
    assert not found.complete


@pytest.mark.parametrize(
    ("number", "line", "words"),
    [
        (1, b"garbage", "line 2 is broken"),
        (1, b"[]", "line 2 is no object"),
        (1, b"{}", "line 2 is no line of a journal"),
        (1, b'{"at": "x", "case": {}}', "line 2 is no line of a journal"),
        (1, b'{"at": "x", "case": 3}', "line 2 is no line of a journal"),
        (1, b'{"at": "x", "words": 3}', "line 2 is no line of a journal"),
        (1, b'{"at": "x", "platform": {}}', "line 2 is no line of a journal"),
        (0, b'{"at": "x"}', "first line is not the beginning"),
        (0, b'{"at": "x", "begin": []}', "first line is not the beginning"),
        (0, b'{"at": "x", "begin": {"schema": 7}}', "has schema 7"),
    ],
)
def test_a_line_in_the_middle_that_is_broken_is_an_error(journal: Path, number: int, line: bytes, words: str) -> None:
    lines = journal.read_bytes().split(b"\n")
    lines[number] = line
    journal.write_bytes(b"\n".join(lines))
    with pytest.raises(RecordError, match=words):
        read_record(journal)


@pytest.mark.parametrize("content", [b"", b'{"at": "x", "begin": {'])
def test_a_journal_of_no_whole_line_is_none(content: bytes) -> None:
    with pytest.raises(ValueError, match="no whole line"):
        replay(content)


def test_the_published_schema_is_that_of_the_code(tree: Path) -> None:
    published = (tree / "docs" / "run-record.schema.json").read_text(encoding="utf-8")
    assert published == schema_text(), "phi3-conformance record schema > docs/run-record.schema.json"
    assert record_schema()["$defs"]["RunRecord"]["properties"]["schema"] == {"const": 2}


def test_words_are_read_by_the_checkpoints_own_tokenizer(tree: Path, tmp_path: Path) -> None:
    words = Words(tree / "golden" / "phi-3-tiny" / "checkpoint")
    texts = words.texts([198, 2043])
    assert texts[198] == "\n"
    assert texts[2043] == "<|system|>"
    assert Words(tmp_path).texts([1]) == {}
