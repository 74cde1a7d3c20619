from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.errors import PromptError, UsageError
from harness.prompts import check_names, quick_prompts, read_suite

_GOOD: dict[str, Any] = {"id": "one", "about": "why", "new_tokens": 4, "text": "some text"}


def _write(folder: Path, *prompts: object, name: str = "suite.jsonl", end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes("".join(json.dumps(prompt) + end for prompt in prompts).encode())
    return path


def _without(key: str) -> dict[str, Any]:
    return {name: value for name, value in _GOOD.items() if name != key}


@pytest.mark.parametrize("name", ["core", "long"])
def test_the_bundled_suites_can_be_read(tree: Path, name: str) -> None:
    suite = read_suite(tree / "conformance" / "prompts" / f"{name}.jsonl")
    assert suite.name == name
    assert all(prompt.about for prompt in suite.prompts)


def test_bundled_prompts_have_ids_of_their_own_across_suites(tree: Path) -> None:
    paths = sorted((tree / "conformance" / "prompts").glob("*.jsonl"))
    ids = [prompt.id for path in paths for prompt in read_suite(path).prompts]
    assert ids
    assert len(set(ids)) == len(ids)


def test_prompts_keep_the_order_of_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, {**_GOOD, "id": "zebra"}, {**_GOOD, "id": "ant"})
    assert [prompt.id for prompt in read_suite(path).prompts] == ["zebra", "ant"]


def test_blank_lines_are_passed_over_and_lines_still_counted(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(f"\n{json.dumps(_GOOD)}\n\nnonsense\n", encoding="utf-8")
    with pytest.raises(PromptError, match="line 4"):
        read_suite(path)


def test_windows_line_ends_hash_as_any_other(tmp_path: Path) -> None:
    unix = read_suite(_write(tmp_path, _GOOD, {**_GOOD, "id": "two"}, name="unix.jsonl"))
    windows = read_suite(_write(tmp_path, _GOOD, {**_GOOD, "id": "two"}, name="windows.jsonl", end="\r\n"))
    assert unix.sha256 == windows.sha256
    assert unix.prompts == windows.prompts


def test_a_changed_prompt_changes_the_hash(tmp_path: Path) -> None:
    one = read_suite(_write(tmp_path, _GOOD, name="one.jsonl"))
    other = read_suite(_write(tmp_path, {**_GOOD, "text": "some text "}, name="other.jsonl"))
    assert one.sha256 != other.sha256


def test_a_length_is_relative_to_the_window(tmp_path: Path) -> None:
    suite = read_suite(_write(tmp_path, {**_GOOD, "length": {"windows": 2, "offset": -1}}))
    length = suite.prompts[0].length
    assert length is not None
    assert length.tokens(256) == 511


def test_a_continuation_takes_the_place_of_new_tokens(tmp_path: Path) -> None:
    prompt = read_suite(_write(tmp_path, {**_without("new_tokens"), "continuation": " and so on"})).prompts[0]
    assert (prompt.continuation, prompt.new_tokens) == (" and so on", 0)


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        (_without("id"), "id"),
        (_without("about"), "about"),
        (_without("new_tokens"), "new_tokens"),
        (_without("text"), "messages or text"),
        ({**_GOOD, "messages": [{"role": "user", "content": "x"}]}, "messages or text"),
        ({**_without("text"), "messages": []}, "no messages"),
        ({**_without("text"), "messages": [{"role": "tool", "content": "x"}]}, "tool"),
        ({**_without("text"), "messages": [{"role": "user"}]}, "content"),
        ({**_without("text"), "messages": [{"role": "user", "content": "x", "name": "y"}]}, "name"),
        ({**_GOOD, "text": ""}, "empty text"),
        ({**_GOOD, "text": 3}, "text"),
        ({**_GOOD, "new_tokens": 0}, "new tokens"),
        ({**_GOOD, "new_tokens": -5}, "new tokens"),
        ({**_GOOD, "new_tokens": "4"}, "new_tokens"),
        ({**_GOOD, "new_tokens": 1.5}, "new_tokens"),
        ({**_GOOD, "continuation": " on"}, "neither new_tokens"),
        ({**_without("new_tokens"), "continuation": ""}, "empty continuation"),
        (
            {**_without("new_tokens"), "continuation": " on", "length": {"windows": 1, "offset": 0}},
            "nor a length",
        ),
        ({**_GOOD, "temperature": 0}, "temperature"),
        ({**_GOOD, "id": "One"}, "'One'"),
        ({**_GOOD, "id": "one two"}, "'one two'"),
        ({**_GOOD, "id": "-one"}, "'-one'"),
        ({**_GOOD, "id": "one]"}, "'one]'"),
        ({**_GOOD, "id": ""}, "''"),
        ({**_GOOD, "length": {"windows": 0, "offset": 5}}, "windows"),
        ({**_GOOD, "length": {"windows": 1}}, "offset"),
        (
            {
                **_without("text"),
                "messages": [{"role": "user", "content": "x"}],
                "length": {"windows": 1, "offset": 0},
            },
            "length",
        ),
        ([1, 2], "object"),
        ("text", "object"),
        (None, "object"),
    ],
)
def test_what_breaks_the_schema_is_named_with_file_and_line(tmp_path: Path, bad: object, named: str) -> None:
    path = _write(tmp_path, {**_GOOD, "id": "fine"}, bad)
    with pytest.raises(PromptError) as caught:
        read_suite(path)
    assert f"{path}, line 2" in caught.value.problem
    assert named in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("line", ["{", "{'id': 1}", "nonsense", "[" * 5000])
def test_a_line_that_is_no_json_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(PromptError, match="line 1"):
        read_suite(path)


def test_an_id_that_occurs_twice_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="'one' occurs twice"):
        read_suite(_write(tmp_path, _GOOD, {**_GOOD, "id": "two"}, _GOOD))


@pytest.mark.parametrize("content", [b"", b"\n\n", b"  \r\n"])
def test_a_suite_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_bytes(content)
    with pytest.raises(PromptError, match="holds no prompts"):
        read_suite(path)


@pytest.mark.parametrize("name", ["My Suite.jsonl", "Suite.jsonl", "a_b.jsonl", "-a.jsonl"])
def test_a_file_name_that_makes_no_test_id_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(PromptError, match="names no suite"):
        read_suite(_write(tmp_path, _GOOD, name=name))


def test_a_missing_suite_is_named(tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="there is no prompt suite") as caught:
        read_suite(tmp_path / "none.jsonl")
    assert "--prompts" in caught.value.remedy


def test_two_suites_of_one_name_are_refused(tree: Path) -> None:
    suite = read_suite(tree / "conformance" / "prompts" / "core.jsonl")
    check_names([suite])
    with pytest.raises(UsageError, match="both suites of the name 'core'"):
        check_names([suite, suite])


def test_a_folder_is_no_suite(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(PromptError, match="cannot be read"):
        read_suite(tmp_path / "folder.jsonl")


def test_a_suite_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "suite.jsonl"
    path.write_bytes(json.dumps(_GOOD).encode().replace(b"some", b"s\xf6me"))
    with pytest.raises(PromptError, match="cannot be read"):
        read_suite(path)


def test_a_quick_run_keeps_the_prompts_that_are_named(tmp_path: Path) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text("".join(json.dumps({**_GOOD, "id": name}) + "\n" for name in ("one", "two")), encoding="utf-8")
    suite = read_suite(path)
    assert quick_prompts(suite) == {"one", "two"}
    (tmp_path / "quick.toml").write_text('few = ["two"]\nother = ["x"]\n', encoding="utf-8")
    assert quick_prompts(suite) == {"two"}


@pytest.mark.parametrize("content", ['few = ["three"]', "few = 3", "few = ["])
def test_a_bad_list_of_quick_prompts_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "few.jsonl"
    path.write_text(json.dumps({**_GOOD, "id": "one"}) + "\n", encoding="utf-8")
    (tmp_path / "quick.toml").write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=r"quick\.toml"):
        quick_prompts(read_suite(path))
