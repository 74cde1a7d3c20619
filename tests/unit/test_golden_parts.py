"""Goldens recorded in parts and put together: the bytes of one recording, and what is no golden is refused."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from harness import golden_parts
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.cli import main
from harness.errors import GoldenError, UsageError
from harness.golden import LOGITS, open_golden, verify_files
from harness.golden_parts import Part, find_parts, merge_parts
from harness.golden_writing import write_golden
from harness.options import DEFAULT_CHECKPOINT, PROMPTS
from harness.prompts import PromptSuite, read_suite
from harness.recording import Streaming, record_golden
from harness.worker import Worker
from support import ignore


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return open_checkpoint(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def core() -> PromptSuite:
    """Seven prompts of the project's own suite, under its hash."""
    suite = read_suite(PROMPTS / "core.jsonl")
    return msgspec.structs.replace(suite, prompts=suite.prompts[:7])


@pytest.mark.parametrize("memory", [None, 800 << 20], ids=["in-memory", "streamed"])
@pytest.mark.parametrize("form", ["full", "compact"])
def test_parts_make_the_bytes_of_one_recording(
    worker: Worker, bundled: Checkpoint, core: PromptSuite, tmp_path: Path, memory: int | None, form: str
) -> None:
    how: dict[str, Any] = {"progress": ignore, "streaming": Streaming(memory)}
    whole = record_golden(bundled, core, tmp_path / core.name, worker, form=form, **how)
    for number in (1, 2, 3):
        part = Part(number, 3)
        record_golden(bundled, core, part.folder(tmp_path, core), worker, form=form, part=part, **how)
    parts = find_parts([tmp_path], core)
    assert [len(golden.manifest.cases) for golden in parts] == [3, 2, 2]
    merged = merge_parts(bundled, core, parts, tmp_path / "merged" / core.name, form=form)
    assert merged.files == whole.files
    assert merged.cases == whole.cases
    assert merged.noise == whole.noise
    unsealed = [msgspec.structs.replace(one, recorded="", own_sha256="") for one in (merged, whole)]
    assert unsealed[0] == unsealed[1]


@pytest.fixture
def split(made: Any, suite: PromptSuite, tmp_path: Path) -> Callable[..., Path]:
    """Writes the synthetic golden in two parts, the second as it is changed."""

    def write(**changes: Any) -> Path:
        for number, case in enumerate(made.manifest.cases, start=1):
            manifest = msgspec.structs.replace(made.manifest, cases=(case,), part=(number, 2))
            if number == 2:
                manifest = msgspec.structs.replace(manifest, **changes)
            write_golden(Part(number, 2).folder(tmp_path, suite), manifest, {case.id: made.logits[case.id]}, {})
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("field", "changed", "said"),
    [
        ("versions", {"torch": "2.0"}, "versions: {'torch': '2.14.1'} and {'torch': '2.0'}"),
        ("suite_sha256", "0" * 64, "suite_sha256"),
        ("machine", "another", "processor: .* and another"),
    ],
)
def test_parts_that_round_differently_are_refused(
    split: Callable[..., Path],
    made: Any,
    checkpoint: Checkpoint,
    suite: PromptSuite,
    field: str,
    changed: Any,
    said: str,
) -> None:
    if field == "machine":
        changed = msgspec.structs.replace(made.manifest.machine, processor=changed)
    root = split(**{field: changed})
    with pytest.raises(GoldenError, match=said):
        merge_parts(checkpoint, suite, find_parts([root], suite), root / suite.name)
    assert not (root / suite.name).exists()


def test_parts_of_other_prompts_are_refused(
    split: Callable[..., Path], checkpoint: Checkpoint, suite: PromptSuite
) -> None:
    parts = find_parts([split()], suite)
    with pytest.raises(GoldenError, match="other prompts"):
        merge_parts(checkpoint, msgspec.structs.replace(suite, sha256="1" * 64), parts, Path("nowhere"))


def test_a_missing_part_is_named(split: Callable[..., Path], suite: PromptSuite) -> None:
    root = split()
    (Part(1, 2).folder(root, suite)).rename(root / "elsewhere")
    with pytest.raises(GoldenError, match=r"missing: 1/2.*\n.*--part K/N"):
        find_parts([root], suite)
    with pytest.raises(GoldenError, match="tiny: none"):
        find_parts([root / "elsewhere"], suite)


def test_parts_lie_in_folders_of_their_own(split: Callable[..., Path], suite: PromptSuite) -> None:
    root = split()
    (root / "other").mkdir()
    name = Part(1, 2).folder(root, suite).name
    (root / name).rename(root / "other" / name)
    assert [golden.manifest.part for golden in find_parts([root, root / "other"], suite)] == [(1, 2), (2, 2)]


def test_what_a_recording_works_in_is_no_part(split: Callable[..., Path], suite: PromptSuite) -> None:
    root = split()
    for ending in (".work", ".partial-7", ".old-7"):
        (root / f"{suite.name}.part-1-of-2{ending}").mkdir()
    assert [golden.manifest.part for golden in find_parts([root], suite)] == [(1, 2), (2, 2)]


def test_parts_may_come_of_two_versions_of_numpy(
    split: Callable[..., Path], made: Any, checkpoint: Checkpoint, suite: PromptSuite
) -> None:
    parts = find_parts([split(versions={**made.manifest.versions, "numpy": "9.9"})], suite)
    with contextlib.suppress(GoldenError):  # logits of the synthetic golden are none of its weights
        merge_parts(checkpoint, suite, parts, Path("nowhere"))
    golden_parts._must_agree(*parts)


def test_parts_may_be_named_one_by_one(split: Callable[..., Path], suite: PromptSuite) -> None:
    root = split()
    folders = [Part(number, 2).folder(root, suite) for number in (2, 1)]
    assert [golden.manifest.part for golden in find_parts(folders, suite)] == [(1, 2), (2, 2)]
    with pytest.raises(GoldenError, match="not the parts of one golden"):
        find_parts([root, folders[0]], suite)


def test_a_part_is_shown_as_one(split: Callable[..., Path], suite: PromptSuite) -> None:
    shown = CliRunner().invoke(main, ["golden", "show", str(Part(1, 2).folder(split(), suite))]).output
    assert "part        1 of 2, not yet checked" in shown
    assert "noise" not in shown


def test_a_part_that_was_changed_is_refused(split: Callable[..., Path], suite: PromptSuite) -> None:
    root = split()
    path = Part(2, 2).folder(root, suite) / LOGITS
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(GoldenError, match="truncated or changed"):
        find_parts([root], suite)


def test_a_part_is_no_golden(split: Callable[..., Path], checkpoint: Checkpoint, suite: PromptSuite) -> None:
    root = split()
    Part(1, 2).folder(root, suite).rename(root / suite.name)
    with pytest.raises(GoldenError, match=r"is part 1 of 2 of a golden\n.*golden merge"):
        open_golden([root], checkpoint, checkpoint.fingerprint(), suite)


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no part"):
        Part.parse(text)


def test_every_prompt_is_in_one_part(suite: PromptSuite) -> None:
    parts = [Part.parse(f"{number}/2").of(suite) for number in (1, 2)]
    assert sorted(p.id for part in parts for p in part.prompts) == sorted(p.id for p in suite.prompts)
    assert {part.sha256 for part in parts} == {suite.sha256}
    with pytest.raises(UsageError, match="has 2 prompts and no part 3/3"):
        Part(3, 3).of(suite)


def test_the_commands_record_parts_and_merge_them(tmp_path: Path) -> None:
    lines = (PROMPTS / "core.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    prompts = tmp_path / "few.jsonl"
    prompts.write_text("".join(lines[:2]), encoding="utf-8")
    named = [f"--prompts={prompts}", f"--golden={tmp_path}"]
    for part in ("1/2", "2/2"):
        result = CliRunner().invoke(main, ["golden", "record", *named, "--part", part])
        assert result.exit_code == 0, result.output
        assert "1 cases, checked when the parts are put together" in result.output
    result = CliRunner().invoke(main, ["golden", "merge", *named])
    assert result.exit_code == 0, result.output
    assert "few: 2 cases; against float64 (2 cases)" in result.output
    assert len(verify_files(tmp_path / "few").manifest.cases) == 2
