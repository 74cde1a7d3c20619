"""`phi3-conformance cache`: what lies in the cache, and how it is deleted."""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

import filelock
import pytest
from click.testing import CliRunner, Result

from harness.cache_contents import KINDS
from harness.cli import main
from harness.depot import Depot
from harness.depot import Entry as Listed
from harness.kept import Kept

_DAY = 86_400


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder with nothing in it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(folder))
    return folder


def run(*arguments: str) -> Result:
    """Carry out a command of `cache`."""
    return CliRunner().invoke(main, ["cache", *arguments])


def fill(folder: Path, size: int = 1000, days: float = 0) -> Path:
    """A folder with a file, last used so many days ago."""
    folder.mkdir(parents=True)
    (folder / "model.bin").write_bytes(bytes(size))
    age(folder, days)
    return folder


def age(folder: Path, days: float) -> None:
    """Let a folder be last used so many days ago."""
    then = time.time() - days * _DAY
    os.utime(folder, (then, then))


@pytest.mark.usefixtures("root")
def test_an_empty_cache_is_shown_and_cleaned() -> None:
    assert "0 B, 0 entries" in run("show").output
    done = run("clean", "--unused=0")
    assert done.exit_code == 0
    assert "freed 0 B" in done.output


def test_what_there_is_is_shown_by_kind(root: Path) -> None:
    for kind in ("artifacts", "references"):
        fill(root / kind / "one", 2000, days=3)
        fill(root / kind / "two", 500)
    shown = run("show").output
    assert str(root) in shown.splitlines()[0]
    assert "5.00 kB, 4 entries" in shown
    (line,) = [line for line in shown.splitlines() if line.startswith("references")]
    assert line.split()[1:4] == ["2", "2.50", "kB"]
    assert KINDS["references"] in line
    listed = json.loads(run("show", "--json").output)
    assert {(one["path"], one["bytes"]) for one in listed} >= {("artifacts/one", 2000), ("references/two", 500)}


def test_what_was_used_lately_is_spared(root: Path) -> None:
    old, new = fill(root / "references" / "old", days=31), fill(root / "references" / "new", days=29)
    done = run("clean")
    assert done.exit_code == 0
    assert "deleted: references/old (1.00 kB)" in done.output
    assert "freed 1.00 kB" in done.output
    assert not old.exists()
    assert new.is_dir()
    assert run("clean", "--unused=29").exit_code == 0
    assert not new.exists()
    assert list((root / "references").iterdir()) == []


def test_a_reference_that_is_opened_counts_as_used(root: Path) -> None:
    folder = fill(root / "references" / "key", days=100)
    Kept(folder)
    run("clean")
    assert folder.is_dir()


def test_only_the_kinds_that_are_named_are_deleted(root: Path) -> None:
    artifact, reference = fill(root / "artifacts" / "a"), fill(root / "references" / "a")
    run("clean", "references", "--unused=0")
    assert artifact.is_dir()
    assert not reference.exists()
    wrong = run("clean", "goldens")
    assert wrong.exit_code == 2
    assert "references" in wrong.output


def test_a_dry_run_deletes_nothing(root: Path) -> None:
    artifact = fill(root / "artifacts" / "a", days=90)
    done = run("clean", "--dry-run")
    assert "would be deleted: artifacts/a" in done.output
    assert "would free 1.00 kB" in done.output
    assert artifact.is_dir()


def test_what_is_being_exported_is_left_and_said(root: Path) -> None:
    artifact = fill(root / "artifacts" / "openvino-0123", days=90)
    with filelock.FileLock(artifact.with_suffix(".lock")):
        done = run("clean")
    assert done.exit_code == 1
    assert "artifacts/openvino-0123: it is being exported" in done.output
    assert artifact.is_dir()
    assert run("clean").exit_code == 0
    assert not artifact.exists()


def test_what_a_killed_run_left_goes_too(root: Path) -> None:
    left = fill(root / "artifacts" / "openvino-0123.partial-77", days=90)
    assert run("clean").exit_code == 0
    assert not left.exists()


def test_other_files_of_the_folder_are_left(root: Path) -> None:
    root.mkdir()
    notes = root / "sha256.json"
    notes.write_text("{}")
    outside = fill(root.parent / "outside", days=90)
    (root / "artifacts").mkdir()
    (root / "artifacts" / "link").symlink_to(outside, target_is_directory=True)
    run("clean", "--unused=0")
    assert notes.is_file()
    assert (outside / "model.bin").is_file()


def test_objects_of_a_depot_go_with_the_last_folder_that_holds_them(root: Path) -> None:
    depot, listings = Depot(), []
    for words in ((b"both", b"first"), (b"both", b"second")):
        listing = []
        for content in words:
            sha256 = hashlib.sha256(content).hexdigest()
            depot.write(sha256, 0, content)
            depot.finish(sha256)
            listing.append(Listed(content.decode(), sha256, len(content)))
        listings.append(listing)
    first, second = (depot.assemble(listing) for listing in listings)
    assert f"{len(b'bothfirstsecond')} B, 2 entries" in run("show").output
    age(first, 90)
    run("clean")
    assert not first.exists()
    assert depot.assemble(listings[1]) == second
    assert depot.missing(listings[0]) == [listings[0][1].sha256]
    run("clean", "--unused=0")
    assert list((root / "depot" / "objects").iterdir()) == []


def test_what_is_open_on_windows_is_left_whole_and_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = fill(root / "artifacts" / "a", days=90)

    def refuse(path: Path, target: Path) -> Path:
        raise PermissionError(13, "Access is denied", str(path), None, str(target))

    monkeypatch.setattr(Path, "rename", refuse)
    done = run("clean")
    assert done.exit_code == 1
    assert "not deleted: artifacts/a: Access is denied" in done.output
    assert (artifact / "model.bin").is_file()
