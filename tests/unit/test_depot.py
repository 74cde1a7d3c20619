"""Files that arrive from another machine: whole or not at all, each once, and nowhere but in the depot."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.depot import Depot, Entry, listing_key
from harness.errors import ResourceError, UsageError


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def listing(files: dict[str, bytes]) -> list[Entry]:
    return [Entry(path, sha256(content), len(content)) for path, content in files.items()]


def deliver(depot: Depot, content: bytes, piece: int = 1 << 20) -> str:
    name = sha256(content)
    for offset in range(0, max(1, len(content)), piece):
        depot.write(name, offset, content[offset : offset + piece])
    depot.finish(name)
    return name


def bring(depot: Depot, files: dict[str, bytes], piece: int = 1 << 20) -> Path:
    """Send what is missing and no more, as a lab does."""
    contents = {sha256(content): content for content in files.values()}
    for name in depot.missing(listing(files)):
        deliver(depot, contents[name], piece)
    return depot.assemble(listing(files))


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.fixture
def depot(tmp_path: Path) -> Depot:
    return Depot(tmp_path / "depot")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Empty folders, one after another."""
    root = tmp_path_factory.mktemp("places")
    return (root / str(number) for number in itertools.count())


_SEGMENT = st.text("ab-_0", min_size=1, max_size=3)
_PATHS = st.builds(lambda folders, name: "/".join([*folders, f"{name}.x"]), st.lists(_SEGMENT, max_size=2), _SEGMENT)
_FILES = st.dictionaries(_PATHS, st.binary(max_size=40), min_size=1, max_size=4)


@given(files=_FILES, piece=st.integers(1, 41))
def test_files_arrive_whole_in_any_number_of_pieces(
    places: Iterator[Path], files: dict[str, bytes], piece: int
) -> None:
    depot = Depot(next(places))
    assert read(bring(depot, files, piece)) == files
    assert depot.missing(listing(files)) == []


def test_an_empty_file_arrives(depot: Depot) -> None:
    assert read(bring(depot, {"empty": b"", "other": b"x"})) == {"empty": b"", "other": b"x"}


def test_a_file_that_is_sent_again_from_its_start_forgets_the_longer_first_try(depot: Depot) -> None:
    depot.write(sha256(b"short"), 0, b"much longer than that")
    assert read(bring(depot, {"a": b"short"})) == {"a": b"short"}


def test_another_content_than_was_announced_is_refused_and_leaves_nothing(depot: Depot, tmp_path: Path) -> None:
    name = sha256(b"what was announced")
    depot.write(name, 0, b"what came")
    with pytest.raises(UsageError, match=sha256(b"what came")) as caught:
        depot.finish(name)
    assert caught.value.remedy
    assert files_below(tmp_path) == []
    assert read(bring(depot, {"a": b"what was announced"})) == {"a": b"what was announced"}


OUTSIDE = ["/a", "//a/b", "../a", "a/../../b", "a/..", "..", "C:/a", "c:a", "a\\b", "..\\a", "\\\\a\\b", "", ".", "./"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_path_that_leads_out_is_refused(depot: Depot, tmp_path: Path, path: str) -> None:
    name = deliver(depot, b"x")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UsageError, match="no path below a folder"):
        depot.assemble([Entry(path, name, 1)])
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["../a", "/a", "..\\a", "C:a"])
def test_a_hash_that_leads_out_is_refused(depot: Depot, name: str) -> None:
    with pytest.raises(UsageError, match="no path below a folder"):
        depot.write(name, 0, b"x")
    with pytest.raises(UsageError, match="no path below a folder"):
        depot.missing([Entry("a", name, 1)])


@given(path=st.text("./\\:aC", max_size=8))
def test_no_path_puts_a_file_outside_the_folder(places: Iterator[Path], path: str) -> None:
    root = next(places)
    depot = Depot(root / "depot")
    name = deliver(depot, b"x")
    try:
        folder = depot.assemble([Entry(path, name, 1)])
    except UsageError:
        folder = root / "none"
    kept = root / "depot" / "objects" / name
    assert all(found == kept or folder in found.parents or "partial" in str(found) for found in files_below(root))
    assert [found.name for found in root.iterdir()] == ["depot"]


def test_what_is_there_is_not_missing_for_whoever_comes_later(depot: Depot, tmp_path: Path) -> None:
    deliver(depot, b"old")
    entries = listing({"a": b"new", "b": b"old", "c": b"newer", "d": b"new"})
    assert Depot(tmp_path / "depot").missing(entries) == [sha256(b"new"), sha256(b"newer")]


def test_two_folders_share_the_files_they_have_in_common(depot: Depot, tmp_path: Path) -> None:
    first = bring(depot, {"weights": b"large", "config": b"one"})
    second = {"model/weights": b"large", "config": b"two"}
    assert depot.missing(listing(second)) == [sha256(b"two")]
    there = bring(depot, second)
    assert there != first
    assert read(there) == second
    assert len(files_below(tmp_path / "depot" / "objects")) == 3


def test_assembling_again_gives_the_same_folder(depot: Depot, tmp_path: Path) -> None:
    files = {"a": b"1", "b/c": b"2"}
    first = bring(depot, files)
    assert depot.assemble(list(reversed(listing(files)))) == first
    assert Depot(tmp_path / "depot").assemble(listing(files)) == first
    assert [folder.name for folder in first.parent.iterdir()] == [first.name]
    assert read(first) == files


def test_two_processes_that_assemble_the_same_at_once_make_one_folder(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"a": b"1", "b": b"2"}
    for content in files.values():
        deliver(depot, content)
    others: list[Path] = []

    def link_while_another_is_quicker(source: Path, path: Path) -> None:
        with monkeypatch.context() as other:
            other.setattr(os, "getpid", lambda: -1)
            other.setattr(os, "link", shutil.copyfile)
            others.append(depot.assemble(listing(files)))
        shutil.copyfile(source, path)

    monkeypatch.setattr(os, "link", link_while_another_is_quicker)
    folder = depot.assemble(listing(files))
    assert {folder, *others} == {folder}
    assert read(folder) == files
    assert [found.name for found in folder.parent.iterdir()] == [folder.name]


def test_a_folder_is_named_by_paths_and_contents() -> None:
    keys = [listing_key(listing(files)) for files in ({"a": b"1"}, {"b": b"1"}, {"a": b"2"}, {"a": b"1", "b": b"1"})]
    assert len(set(keys)) == 4


def test_half_of_a_file_that_another_process_is_bringing_is_not_taken_for_whole(
    depot: Depot, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b"first half, second half"
    with monkeypatch.context() as other:
        other.setattr(os, "getpid", lambda: -1)
        depot.write(sha256(content), 0, content[:10])
    assert depot.missing(listing({"a": content})) == [sha256(content)]
    ours = bring(depot, {"a": content})
    with monkeypatch.context() as other:  # goes on undisturbed
        other.setattr(os, "getpid", lambda: -1)
        depot.write(sha256(content), 10, content[10:])
        depot.finish(sha256(content))
    assert read(ours) == {"a": content}
    assert read(bring(depot, {"again": content})) == {"again": content}


def test_an_object_that_lost_its_end_is_brought_again(depot: Depot, tmp_path: Path) -> None:
    content = b"whole and sound"
    name = deliver(depot, content)
    (tmp_path / "depot" / "objects" / name).write_bytes(content[:5])
    assert depot.missing(listing({"a": content})) == [name]
    assert read(bring(depot, {"a": content})) == {"a": content}


def test_where_the_disk_has_no_links_files_are_copied(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", fails(errno.EPERM))
    assert read(bring(depot, {"a": b"1", "b": b"2"})) == {"a": b"1", "b": b"2"}


def fails(number: int) -> Any:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


FULL = [errno.ENOSPC, getattr(errno, "EDQUOT", 122)]


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_said_to_be_when_a_file_comes(
    depot: Depot, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: int
) -> None:
    monkeypatch.setattr(Path, "open", fails(number))
    with pytest.raises(ResourceError, match="full") as caught:
        depot.write(sha256(b"x"), 0, b"x")
    assert str(tmp_path) in caught.value.problem
    assert "PHI3_CONFORMANCE_CACHE" in caught.value.remedy


@pytest.mark.parametrize("number", FULL)
def test_a_full_disk_is_said_to_be_when_a_folder_is_made_and_no_folder_is_left(
    depot: Depot, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    files = {"a": b"1", "b": b"2"}
    for content in files.values():
        deliver(depot, content)
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", fails(errno.EPERM))
        patched.setattr(shutil, "copyfile", fails(number))
        with pytest.raises(ResourceError, match="full") as caught:
            depot.assemble(listing(files))
    assert "PHI3_CONFORMANCE_CACHE" in caught.value.remedy
    assert read(depot.assemble(listing(files))) == files


def test_what_is_no_full_disk_is_not_called_one(depot: Depot, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "open", fails(errno.EACCES))
    with pytest.raises(PermissionError):
        depot.write(sha256(b"x"), 0, b"x")


def test_the_depot_is_in_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    assert tmp_path / "cache" in bring(Depot(), {"a": b"1"}).parents


def test_a_file_that_a_runtime_wrote_to_is_refused_and_brought_anew(depot: Depot) -> None:
    files = {"model.xml": b"what was brought", "model.bin": b"weights"}
    folder = bring(depot, files)
    (folder / "model.xml").write_bytes(b"what was changed")
    with pytest.raises(UsageError, match="was changed after it was brought"):
        depot.assemble(listing(files))
    assert read(bring(depot, files)) == files
