"""Files that another machine sent, kept by what they contain: each is sent once, whatever folder it belongs to.

The receiving side runs in a worker on that machine; `harness.lab` is the sending side. An object is a file named by
its SHA-256; a folder is made of links to objects and named by the hash of its listing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import msgspec

from harness.cache import FREE_SPACE, cache_root, mark_used
from harness.checkpoint import cached_sha256, sha256_file
from harness.errors import ResourceError, UsageError, is_full_disk


class Entry(msgspec.Struct, frozen=True):
    """One file of a folder: its path below it with forward slashes, its SHA-256 and its size in bytes."""

    path: str
    sha256: str
    bytes: int


def listing_key(entries: Sequence[Entry]) -> str:
    """16 hex digits over the names and contents of a folder's files."""
    lines = sorted(f"{entry.path}\0{entry.sha256}\n" for entry in entries)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


class Depot:
    """The store below the cache folder of the machine it runs on."""

    def __init__(self, root: Path | None = None) -> None:
        self._root = root or cache_root() / "depot"

    def missing(self, entries: Sequence[Entry]) -> list[str]:
        """The hashes of which there is no whole object here, in the order of the listing, each once."""
        wanted = {entry.sha256: entry.bytes for entry in entries}
        return [sha256 for sha256, size in wanted.items() if not self._is_whole(sha256, size)]

    def write(self, sha256: str, offset: int, content: bytes) -> None:
        """Put a piece of an object where it belongs. Raises ResourceError on a full disk."""
        partial = self._partial(sha256)
        with self._disk_errors():
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("r+b" if offset else "wb") as file:
                file.seek(offset)
                file.write(content)

    def finish(self, sha256: str) -> None:
        """Check an object against its name and keep it. Raises UsageError when it is another."""
        partial = self._partial(sha256)
        with self._disk_errors():
            found = sha256_file(partial)
            if found != sha256:
                partial.unlink(missing_ok=True)
                raise UsageError(f"a file that was sent here has the hash {found}, not {sha256}", "try again")
            with contextlib.suppress(PermissionError):  # Windows: another run has it open, so it is whole
                partial.replace(self._object(sha256))
            partial.unlink(missing_ok=True)

    def assemble(self, entries: Sequence[Entry]) -> Path:
        """A folder with these files, made of links (or copies where the disk has none), each checked.

        Raises UsageError for a path that leads out of the folder or a file that has changed since it was brought,
        ResourceError on a full disk.
        """
        folder = self._root / "folders" / listing_key(entries)
        if not folder.is_dir():
            with self._disk_errors():
                self._link(entries, folder)
        for entry in entries:
            self._check(folder, entry)
        mark_used(folder)
        return folder

    def _link(self, entries: Sequence[Entry], folder: Path) -> None:
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for entry in entries:
                path = partial / _safe(entry.path)
                path.parent.mkdir(parents=True, exist_ok=True)
                _link(self._object(entry.sha256), path)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another run has just made the same
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _check(self, folder: Path, entry: Entry) -> None:
        """Raise UsageError for a file that a runtime has written to: what is judged must be what was brought."""
        if cached_sha256(folder / _safe(entry.path)) == entry.sha256:
            return
        shutil.rmtree(folder, ignore_errors=True)
        self._object(entry.sha256).unlink(missing_ok=True)
        raise UsageError(f"{entry.path} was changed after it was brought here", "run again: it is brought anew")

    def _is_whole(self, sha256: str, size: int) -> bool:
        path = self._object(sha256)
        return path.is_file() and path.stat().st_size == size

    def _object(self, sha256: str) -> Path:
        return self._root / "objects" / _safe(sha256)

    def _partial(self, sha256: str) -> Path:
        return self._root / "objects" / f"{_safe(sha256)}.partial-{os.getpid()}"

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if is_full_disk(error):
                raise ResourceError(f"the disk of {self._root} is full", FREE_SPACE) from None
            if isinstance(error, FileNotFoundError):
                raise UsageError(f"a file that was to be here is not: {error.filename}", "run again") from None
            raise


def _safe(path: str) -> Path:
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts or "\\" in path or ":" in path:
        raise UsageError(f"{path!r} is no path below a folder", "send the files again")
    return Path(*parts.parts)


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:
        shutil.copyfile(source, path)
