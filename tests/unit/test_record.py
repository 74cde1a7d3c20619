from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import RecordError
from harness.record import SCHEMA, CaseRecord, RunRecord, read_record, write_record

MakeRecord = Callable[..., RunRecord]
_NUMBERS = st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False), max_size=4)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_record_is_read_as_it_was_written(make_record: MakeRecord, tmp_path: Path) -> None:
    record = make_record()
    write_record(tmp_path / "records" / "run.json", record)
    assert read_record(tmp_path / "records" / "run.json") == record
    assert _names(tmp_path / "records") == ["run.json"]


@given(_NUMBERS, st.text(max_size=20), st.floats(0, 1e6))
def test_numbers_survive_json_to_the_last_bit(numbers: dict[str, float], message: str, seconds: float) -> None:
    case = CaseRecord("id", "test", "a:b:int4", "c", "FAIL", None, numbers, numbers, message, None, seconds)
    assert msgspec.json.decode(msgspec.json.encode(case), type=CaseRecord) == case


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_never_makes_a_record_that_cannot_be_read(
    make_record: MakeRecord, make_case: Callable[..., CaseRecord], tmp_path: Path, number: float
) -> None:
    changed = make_case(id="a.py::one", numbers={"kl_mean": number}, limits={"kl_mean": number})
    record = make_record(cases=[changed, make_case()])
    write_record(tmp_path / "run.json", record)
    read = read_record(tmp_path / "run.json")
    assert read.cases[1] == record.cases[1]
    assert not any(value < 1e300 for value in read.cases[0].numbers.values())


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 5000,
        b'{"schema": 1, "cases": [3]}',
        b'{"schema": 1, "cases": [{}]}',
        b"PK\x03\x04",
    ],
)
def test_garbage_is_no_record(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RecordError, match=r"run\.json is no run record") as caught:
        read_record(tmp_path / "run.json")
    assert caught.value.remedy


def test_a_missing_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"none\.json"):
        read_record(tmp_path / "none.json")


def test_a_record_that_was_cut_short_is_refused(make_record: MakeRecord, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(path, make_record())
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordError, match="is no run record"):
        read_record(path)


@pytest.mark.parametrize("change", [{}, {"cases": 3}, {"added": True}])
def test_another_schema_is_named_whatever_else_it_changed(
    make_record: MakeRecord, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "run.json"
    write_record(path, make_record())
    content = {**json.loads(path.read_bytes()), **change, "schema": SCHEMA + 1}
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(RecordError, match=f"schema {SCHEMA + 1}; this version reads 1 to {SCHEMA}"):
        read_record(path)


def test_a_write_that_fails_leaves_the_old_record(
    make_record: MakeRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.json"
    write_record(path, make_record())
    before = path.read_bytes()

    def fail(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(RecordError, match="No space left") as caught:
        write_record(path, make_record(complete=False))
    assert "--record" in caught.value.remedy
    assert path.read_bytes() == before
    assert _names(tmp_path) == ["run.json"]


def test_a_reader_of_the_old_record_never_sees_half_of_the_new(make_record: MakeRecord, tmp_path: Path) -> None:
    path, seen = tmp_path / "run.json", tmp_path / "seen.json"
    write_record(path, make_record())
    seen.hardlink_to(path)
    write_record(path, make_record(complete=False))
    assert read_record(seen).complete
    assert not read_record(path).complete


def test_a_record_in_the_place_of_a_folder_is_refused(make_record: MakeRecord, tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(RecordError, match="cannot be written"):
        write_record(tmp_path / "run.json", make_record())
    assert _names(tmp_path) == ["run.json"]
