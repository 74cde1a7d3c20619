"""The export cache: one folder an artifact, keyed by what it is made from and by what."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import filelock
import msgspec

from harness.backend import Recipe
from harness.cache import FREE_SPACE, cache_root, mark_used
from harness.checkpoint import Checkpoint, cached_sha256
from harness.errors import HarnessError, ResourceError, Stage, StageError, is_full_disk

MANIFEST = "phi3-conformance.json"
"""The file in an exported artifact that says how it came to be."""
_LOCK_SECONDS = 7200.0


class ArtifactManifest(msgspec.Struct, frozen=True):
    """How an artifact came to be: written beside it when it is complete, so that its presence proves that."""

    checkpoint: str
    checkpoint_key: str
    recipe: Recipe
    versions: dict[str, str]
    command: list[str]
    sha256: str
    bytes: int


class Artifact(msgspec.Struct, frozen=True):
    """What a backend loads: an exported folder, the checkpoint itself, or a ready-made folder.

    `sha256` is over names and contents of the files; `origin` is exported, checkpoint or given; `export_seconds` is how
    long the exporter took, 0 where nothing was exported now.
    """

    path: Path
    origin: str
    recipe: str | None
    sha256: str
    bytes: int
    versions: dict[str, str] = {}
    command: list[str] = []
    export_seconds: float = 0.0


def artifact_cache() -> Path:
    """The folder of exported artifacts, below the user's cache folder for this project."""
    return cache_root() / "artifacts"


def artifact_key(checkpoint_key: str, recipe: Recipe, versions: dict[str, str]) -> str:
    """16 hex digits over checkpoint, recipe and the versions of the exporter and of what it exports with."""
    parts = {"checkpoint": checkpoint_key, "recipe": msgspec.to_builtins(recipe), "versions": versions}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def describe(path: Path, origin: str) -> Artifact:
    """An artifact that was not exported here: the checkpoint itself or a ready-made folder."""
    if not path.is_dir():
        raise StageError(Stage.PREPARE, f"there is no artifact folder {path}", "give --artifact TARGET=DIR a folder")
    sha256, size = _measure(path)
    return Artifact(path, origin, None, sha256, size)


def ensure_exported(
    checkpoint: Checkpoint,
    checkpoint_key: str,
    backend: str,
    recipe: Recipe,
    versions: dict[str, str],
    export: Callable[[Path], list[str]],
    *,
    announce: Callable[[str], None],
    cache: Path | None = None,
) -> Artifact:
    """The artifact from the cache, exported into it first if it is not there.

    `export` fills the empty folder it is given and returns the command line that did. Another process
    that exports the same waits for this one. Nothing half-made is ever visible under the final name, and
    nothing is renamed over: Windows refuses to replace files that are open or mapped.

    Raises StageError(prepare) when the exporter fails, ResourceError on a full disk.
    """
    folder = (cache or artifact_cache()) / f"{backend}-{artifact_key(checkpoint_key, recipe, versions)}"
    with _disk_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock"), timeout=_LOCK_SECONDS):
            manifest, seconds = _read_manifest(folder), 0.0
            if manifest is None:
                announce(f"exporting {checkpoint.name} for {backend}: {recipe.name}")
                began = time.monotonic()
                manifest = _export(checkpoint, checkpoint_key, recipe, versions, export, folder)
                seconds = time.monotonic() - began
        if _measure(folder) != (manifest.sha256, manifest.bytes):
            raise StageError(Stage.PREPARE, f"{folder} was changed after it was exported", "delete the folder")
    mark_used(folder)
    return Artifact(
        folder, "exported", recipe.name, manifest.sha256, manifest.bytes, manifest.versions, manifest.command, seconds
    )


def _export(
    checkpoint: Checkpoint,
    checkpoint_key: str,
    recipe: Recipe,
    versions: dict[str, str],
    export: Callable[[Path], list[str]],
    folder: Path,
) -> ArtifactManifest:
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    for left in folder.parent.glob(f"{folder.name}.partial*"):  # by a run that was killed; the lock says nobody uses it
        shutil.rmtree(left, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # without its manifest it is not whole
    out = partial / "artifact"
    partial.mkdir()
    try:
        command = [_anonymous(part, out, checkpoint) for part in export(out)]
        if not out.is_dir() or not any(out.iterdir()):
            raise StageError(Stage.PREPARE, f"the exporter ended without error and wrote nothing: {' '.join(command)}")
        manifest = ArtifactManifest(checkpoint.name, checkpoint_key, recipe, versions, command, *_measure(out))
        (out / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=2))
        out.rename(folder)
        return manifest
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _read_manifest(folder: Path) -> ArtifactManifest | None:
    """The manifest of a whole artifact; None where there is none, or a power cut left half of one."""
    try:
        return msgspec.json.decode((folder / MANIFEST).read_bytes(), type=ArtifactManifest)
    except (FileNotFoundError, UnicodeDecodeError, msgspec.DecodeError):
        return None


def _anonymous(part: str, out: Path, checkpoint: Checkpoint) -> str:
    """A word of the command line without this machine's folders: manifests and records are passed on."""
    return part.replace(str(out), "OUT").replace(str(checkpoint.path), checkpoint.name)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except HarnessError:
        raise
    except filelock.Timeout:
        raise StageError(
            Stage.PREPARE,
            f"another process has been exporting {folder.name} for {_LOCK_SECONDS / 3600:.0f} hours",
            f"end it, or delete {folder.with_suffix('.lock')}",
        ) from None
    except OSError as error:
        if is_full_disk(error):
            raise ResourceError(f"the disk of {folder.parent} is full", FREE_SPACE) from None
        said = "check its rights, or set PHI3_CONFORMANCE_CACHE to a folder that you may write to"
        raise StageError(Stage.PREPARE, f"{folder}: {error}", said) from None


def _measure(folder: Path) -> tuple[str, int]:
    """SHA-256 and size of all files, but for hidden ones: downloads leave notes of their own in `.cache`."""
    digest, size = hashlib.sha256(), 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        digest.update(f"{path.relative_to(folder).as_posix()}\0{cached_sha256(path)}\n".encode())
        size += path.stat().st_size
    return digest.hexdigest(), size
