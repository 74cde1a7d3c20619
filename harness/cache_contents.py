"""What lies in the cache folder, how large it is, when it was last used, and how it is deleted.

All of it can be made or brought again. An entry was last used when its folder was last written to or marked
(`harness.cache.mark_used`), which every session does that opens it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import filelock
import msgspec

from harness.errors import ResourceError

KINDS = {
    "artifacts": "exported by prepare and by runs",
    "compiled": "models that OpenVINO has compiled for an NPU",
    "references": "answers of references, which are slow to compute",
    "parts": "parts of goldens, recorded for another machine",
    "depot": "files that other machines brought here",
}
"""The kinds of entries, and what they are."""

_OBJECTS, _FOLDERS = "objects", "folders"
_DAY = 86_400.0


class Entry(msgspec.Struct, frozen=True):
    """A folder, or for a depot an object that no folder of it holds; `used`: when, in seconds since 1970."""

    kind: str
    path: Path
    bytes: int
    used: float

    def unused_days(self, now: float) -> float:
        """For how many days it has not been used."""
        return max(0.0, now - self.used) / _DAY


def entries(root: Path) -> list[Entry]:
    """All there is below the cache folder, by kind; of a file that several folders link to the first has the size.

    Raises ResourceError where a folder cannot be read.
    """
    seen: set[tuple[int, int]] = set()
    if root.exists() and not root.is_dir():
        raise ResourceError(f"{root} is no folder", "set PHI3_CONFORMANCE_CACHE to one")
    try:
        return [_entry(kind, path, seen) for kind in KINDS for path in _paths(root / kind)]
    except OSError as error:
        raise ResourceError(f"{error.filename or root} cannot be read: {error.strerror}", "see to its rights") from None


def _paths(folder: Path) -> Iterator[Path]:
    if folder.name != "depot":
        yield from (path for path in _children(folder) if path.is_dir() and not path.is_symlink())
        return
    yield from (path for path in _children(folder / _FOLDERS) if path.is_dir() and not path.is_symlink())
    yield from (path for path in _children(folder / _OBJECTS) if path.is_file() and path.stat().st_nlink == 1)


def _children(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _entry(kind: str, path: Path, seen: set[tuple[int, int]]) -> Entry:
    size = 0
    for file in [path] if path.is_file() else path.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a run is at work there
            state = file.lstat()
            if file.is_file() and (state.st_dev, state.st_ino) not in seen:
                seen.add((state.st_dev, state.st_ino))
                size += state.st_size
    return Entry(kind, path, size, path.stat().st_mtime)


def unused(found: list[Entry], kinds: tuple[str, ...], days: float) -> list[Entry]:
    """Those of some kinds that have not been used for so many days."""
    now = time.time()
    return [entry for entry in found if entry.kind in kinds and entry.unused_days(now) >= days]


def delete(entry: Entry) -> str:
    """Delete an entry; why it is still there, or nothing. Nothing half-deleted is left under its name."""
    try:
        with _unless_exported(entry):
            if entry.path.is_file():
                entry.path.unlink()
            else:
                _delete_folder(entry)
    except filelock.Timeout:
        return "it is being exported"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _delete_folder(entry: Entry) -> None:
    linked = _inodes(entry.path) if entry.kind == "depot" else set()
    gone = entry.path.with_name(f"{entry.path.name}.partial-{os.getpid()}")
    entry.path.rename(gone)  # refused by Windows while a file in it is open
    shutil.rmtree(gone)
    for file in _children(entry.path.parent.parent / _OBJECTS) if linked else ():
        state = file.lstat()
        if (state.st_dev, state.st_ino) in linked and state.st_nlink == 1:
            file.unlink()


def _inodes(folder: Path) -> set[tuple[int, int]]:
    return {(state.st_dev, state.st_ino) for state in (file.lstat() for file in folder.rglob("*"))}


def _unless_exported(entry: Entry) -> contextlib.AbstractContextManager[object]:
    """The lock that an export of the same artifact holds. Raises Timeout while it does."""
    if entry.kind != "artifacts":
        return contextlib.nullcontext()
    return filelock.FileLock(entry.path.with_suffix(".lock"), timeout=0)
