"""Whatever a file holds: a reader gives a valid object, or the error that it says it gives, and nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness import untrusted
from harness.checkpoint import Checkpoint, read_header, sha256_file
from harness.errors import CheckpointError, GoldenError, RecordError
from harness.golden import HIDDEN, LOGITS, MANIFEST, Manifest, verify_files
from harness.journal import journal_of
from harness.prompts import PromptSuite
from harness.record import CaseRecord, Detail, PromptRecord, RunRecord, Tops, as_json, read_record, write_record

MakeRecord = Callable[..., RunRecord]
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(1 << 70), 1 << 70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    st.sampled_from(["../../etc/passwd", "\x1b[2J", "a\u202eb", "int4", "PASS", "1e999", ""]),
)
_JSON = st.recursive(_LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner))
# Hypothesis shares a function's fixtures between examples; every example here writes its files anew.
_FUZZ = settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def _places(plain: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a value."""
    items = plain.items() if isinstance(plain, dict) else enumerate(plain) if isinstance(plain, list) else ()
    return [path, *(place for key, value in items for place in _places(value, (*path, key)))]


def _mutated(plain: Any, seed: int, value: Any) -> Any:
    """A copy in which one value is another, is missing, or is there twice."""
    rng, changed = random.Random(seed), json.loads(json.dumps(plain))
    place = rng.choice([place for place in _places(changed) if place])
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    what = rng.randrange(3)
    if what == 0 or (what == 2 and isinstance(holder, dict)):
        holder[place[-1]] = value
    elif what == 1:
        del holder[place[-1]]
    else:
        holder.append(holder[place[-1]])
    return changed


@pytest.fixture
def full_record(make_record: MakeRecord, make_case: Callable[..., CaseRecord]) -> RunRecord:
    tops = Tops([[1, 2], [3, 4]], [[0.5, 0.25], [0.75, 0.1]])
    detail = Detail("0" * 64, 0, [1e-3, 2e-3], [0.1, 0.2], [0.01, 0.02], [0.01, 0.01], tops)
    prompt = PromptRecord("tiny", "greeting", "why", [5, 6], 1, tops, [0.5, 0.25])
    words = {str(token): f"w{token}" for token in range(7)}
    return make_record(cases=[make_case(detail=detail)], prompts=[prompt], words=words)


def _read(path: Path) -> RunRecord | None:
    try:
        return read_record(path)
    except RecordError as error:
        refusal = error
    assert refusal.remedy
    assert untrusted.printable(str(refusal)) == str(refusal)
    return None


@_FUZZ
@given(seed=st.integers(0, 1 << 30), value=_JSON)
def test_a_mutated_record_is_read_or_refused(full_record: RunRecord, tmp_path: Path, seed: int, value: Any) -> None:
    path = tmp_path / "run.json"
    path.write_text(json.dumps(_mutated(msgspec.to_builtins(full_record), seed, value)), encoding="utf-8")
    found = _read(path)
    if found is not None:
        write_record(path, found)
        assert read_record(path).cases == found.cases or "null" in path.read_text(encoding="utf-8")
        assert untrusted.all_printable(msgspec.to_builtins(found)) == msgspec.to_builtins(found, str_keys=True)


@_FUZZ
@given(content=st.binary(max_size=200), cut=st.integers(0, 4000), flip=st.integers(0, 4000))
def test_any_bytes_are_read_or_refused_as_record_and_journal(
    full_record: RunRecord, tmp_path: Path, content: bytes, cut: int, flip: int
) -> None:
    whole = as_json(full_record)
    broken = bytearray(whole[: len(whole) - cut])
    if flip < len(broken):
        broken[flip] ^= 0x41
    for number, given_bytes in enumerate((content, bytes(broken))):
        for name in (f"{number}.json", f"{number}.json.journal"):
            (tmp_path / name).write_bytes(given_bytes)
            _read(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"schema": 2, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"schema": 2, "exit_status": NaN}', "is no run record"),
        (b'{"schema": 2, "exit_status": Infinity}', "is no run record"),
        (b'{"schema": 2, "exit_status": 1e999}', "out of range"),
        (b'{"schema": 2, "exit_status": ' + b"9" * 100_000 + b"}", "out of range"),
        (b'{"schema": 2, "harness": "\xff"}', "is no run record"),
        (b'{"schema": 2, "harness": "\\ud800"}', "is no run record"),
        (b'{"schema": "2"}', "Expected `int`"),
    ],
)
def test_what_is_meant_to_harm_a_reader_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(RecordError, match=words):
        read_record(tmp_path / "run.json")


def test_a_record_too_large_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    with path.open("wb") as file:
        file.truncate(untrusted.MAX_BYTES + 1)  # a file with a hole takes no room
    with pytest.raises(RecordError, match="at most 134 MB are read"):
        read_record(path)


def test_a_record_of_empty_lists_is_refused_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(untrusted, "_MAX_CONTAINERS", 100)
    (tmp_path / "run.json").write_bytes(b'{"schema": 2, "x": [' + b"[]," * 100 + b"[]]}")
    with pytest.raises(RecordError, match="lists and objects"):
        read_record(tmp_path / "run.json")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes by name")
def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "run.json"
    folder.mkdir()
    with pytest.raises(RecordError):
        read_record(folder)
    with pytest.raises(RecordError, match="no regular file"):
        read_record(Path(os.devnull))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"cases": "twice"}, "more than once"),
        ({"sessions": "twice"}, "more than once"),
        ({"prompts": "twice"}, "more than once"),
        ({"suites": {"../../etc": "0"}}, "is no name"),
        ({"suites": {"": "0"}}, "is no name"),
        ({"words": {"../x": "a"}}, "of no token"),
        ({"cases.0.target": "../../x"}, "is not a target"),
        ({"cases.0.case": "test_logits[../../x]"}, "is no name"),
        ({"cases.0.test": "a/b"}, "is no name"),
        ({"cases.0.outcome": "FINE"}, "FINE"),
        ({"cases.0.detail.kl": [0.1]}, "differ in length"),
        ({"cases.0.detail.first": -1}, "before the prompt"),
        ({"cases.0.detail.tokens": [-1]}, "impossible"),
        ({"cases.0.detail.top.probabilities": [[0.5], [0.5]]}, "differ in number"),
        ({"prompts.0.margins": [0.5]}, "differ in number"),
        ({"prompts.0.prefill": 9}, "differ in number"),
        ({"prompts.0.id": "..\\x"}, "is no name"),
        ({"checkpoint.name": "/etc/passwd"}, "is no name"),
    ],
)
def test_a_record_that_contradicts_itself_or_names_paths_is_refused(
    full_record: RunRecord, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    plain: Any = msgspec.to_builtins(full_record)
    ((where, value),) = change.items()
    *path, last = where.split(".")
    holder = plain
    for key in path:
        holder = holder[int(key) if key.isdigit() else key]
    holder[last] = [*holder[last], holder[last][0]] if value == "twice" else value
    (tmp_path / "run.json").write_text(json.dumps(plain), encoding="utf-8")
    with pytest.raises(RecordError, match=words):
        read_record(tmp_path / "run.json")


def test_what_would_move_a_cursor_is_shown_and_does_not(
    make_record: MakeRecord, make_case: Callable[..., CaseRecord], tmp_path: Path
) -> None:
    message = "line\n\tindented \x1b[2J\x07 \u202egnp\u2028 \x9b31m"
    record = make_record(cases=[make_case(message=message)], environment={"OV_\x1b": "\x1b]0;"})
    write_record(tmp_path / "run.json", record)
    found = read_record(tmp_path / "run.json")
    assert found.cases[0].message == r"line" + "\n\t" + r"indented \x1b[2J\x07 \u202egnp\u2028 \x9b31m"
    assert found.environment == {r"OV_\x1b": r"\x1b]0;"}


def _forge(folder: Path, change: Callable[[Any], Any]) -> None:
    """Change a manifest and seal it again, as a forger would, where it can be."""
    plain = change(json.loads((folder / MANIFEST).read_bytes()))
    with contextlib.suppress(msgspec.ValidationError, OverflowError, ValueError):
        plain = msgspec.to_builtins(msgspec.convert(plain, Manifest).sealed())
    (folder / MANIFEST).write_text(json.dumps(plain), encoding="utf-8")


def _use(folder: Path) -> None:
    """Read all that a golden holds; nothing but GoldenError may come of it."""
    try:
        golden = verify_files(folder)
        for case in golden.manifest.cases:
            golden.logits(case.id)
            golden.hidden_states(case.id)
    except GoldenError as error:
        refusal = str(error)
        shown = untrusted.printable(refusal)
    else:
        return
    assert shown == refusal


@_FUZZ
@given(seed=st.integers(0, 1 << 30), value=_JSON)
def test_a_mutated_golden_is_read_or_refused(golden_root: Path, suite: PromptSuite, seed: int, value: Any) -> None:
    folder = golden_root / suite.name
    before = (folder / MANIFEST).read_bytes()
    try:
        _forge(folder, lambda plain: _mutated(plain, seed, value))
        _use(folder)
    finally:
        (folder / MANIFEST).write_bytes(before)


def _write_tensors(path: Path, header: bytes, data: bytes = b"", length: int | None = None) -> None:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + data)


_HEADERS = [
    (b"", 1 << 63),
    (b"", (1 << 64) - 1),
    (b"{}", 100_000_001),
    (b"[" * 5000, None),
    (b"\xff\xfe", None),
    (b'{"one": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 0]}}', None),
    (b'{"one": {"dtype": "F32", "shape": [9223372036854775807, 4], "data_offsets": [0, 4]}}', None),
    (b'{"one": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', None),
    (b'{"one": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', None),
    (b'{"one": {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e9]}}', None),
    (b'{"one": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}', None),
    (b'{"one": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}', None),
    (b'{"one": {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}}', None),
    (b'{"one": {"dtype": "X", "shape": [1], "data_offsets": [0, 4]}}', None),
    (b'{"one": {"dtype": 3, "shape": [1], "data_offsets": [0, 4]}}', None),
    (b'{"one": {"dtype": "F32", "shape": [' + b"1," * 500_000 + b'1], "data_offsets": [0, 4]}}', None),
    (b'{"one": 3}', None),
    (b"[]", None),
    (b"null", None),
]


@pytest.mark.parametrize("name", [LOGITS, HIDDEN])
@pytest.mark.parametrize(("header", "length"), _HEADERS)
def test_a_golden_with_absurd_tensors_is_refused(
    golden_root: Path, suite: PromptSuite, name: str, header: bytes, length: int | None
) -> None:
    folder = golden_root / suite.name
    path = folder / name
    _write_tensors(path, header, b"\0" * 4, length)
    file = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    _forge(folder, lambda plain: {**plain, "files": {**plain["files"], name: file}})
    golden = verify_files(folder)
    with pytest.raises(GoldenError):
        [golden.logits("one"), golden.hidden_states("one")] if name == LOGITS else golden.hidden_states("one")


@pytest.mark.parametrize(("header", "length"), _HEADERS)
def test_a_checkpoint_with_an_absurd_header_is_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    path = tmp_path / "model.safetensors"
    _write_tensors(path, header, b"", length)
    with pytest.raises(CheckpointError):
        read_header(path)


@_FUZZ
@given(content=st.binary(max_size=120), header=_JSON)
def test_any_bytes_are_tensors_or_refused(tmp_path: Path, content: bytes, header: Any) -> None:
    path = tmp_path / "model.safetensors"
    for write in (lambda: path.write_bytes(content), lambda: _write_tensors(path, json.dumps(header).encode())):
        write()
        with contextlib.suppress(CheckpointError):
            read_header(path)


def test_a_golden_with_control_characters_is_refused(golden_root: Path, suite: PromptSuite) -> None:
    folder = golden_root / suite.name
    _forge(folder, lambda plain: {**plain, "checkpoint": "a\x1b[2Jb"})
    with pytest.raises(GoldenError, match="control characters"):
        verify_files(folder)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("id", "../two", "is no name"),
        ("id", "two", "more than once"),
        ("margins", [], "lacks tokens or margins"),
        ("tokens", [], "lacks tokens or margins"),
        ("tokens", [1, 5, 99], "outside the vocabulary"),
        ("tokens", [1, -5, 6], "outside the vocabulary"),
        ("tokens", [1, 1 << 65, 6], "outside the vocabulary"),
    ],
)
def test_a_golden_that_contradicts_itself_is_refused(
    golden_root: Path, suite: PromptSuite, field: str, value: Any, words: str
) -> None:
    folder = golden_root / suite.name

    def change(plain: Any) -> Any:
        plain["cases"][0][field] = value
        return plain

    _forge(folder, change)
    with pytest.raises(GoldenError, match=words):
        verify_files(folder)


def test_the_real_golden_and_checkpoint_are_not_refused(golden_root: Path, suite: PromptSuite) -> None:
    golden = verify_files(golden_root / suite.name)
    assert golden.logits("one").dtype == np.float32


def test_a_later_journal_is_read_in_the_place_of_an_older_record(make_record: MakeRecord, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    write_record(path, make_record())
    journal_of(path).write_bytes(b"garbage\n")
    os.utime(path, ns=(1, 1))
    with pytest.raises(RecordError, match="line 1 is broken"):
        read_record(path)


def test_the_checkpoint_fixture_has_headers_that_are_read(checkpoint: Checkpoint) -> None:
    assert read_header(checkpoint.weight_files[0])
