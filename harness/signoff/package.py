"""The package of a sign-off: a closed set of files with a manifest of their hashes, as a folder or as a zip file.

    manifest.json              the SHA-256 and the size of every other file
    signoff.json               the conclusion: see harness.signoff.conclude
    report.md, report.html     the same for people: every renderer of harness.signoff.report
    candidates.json            what was to be signed off
    policy.toml, waivers.toml  by what it was judged
    suite/NAME.jsonl           the prompts, and goldens/NAME.json, the manifests of their goldens
    records/CANDIDATE.json     the run record of each candidate, with the numbers of every prompt
    audits/CANDIDATE.json      the audit of its weights, artifacts/CANDIDATE.json, the manifest of its artifact

The manifest is canonical: its own SHA-256 stands for the whole package. It is no signature, since whoever changes a
file can write another manifest: sign the manifest, or pass its SHA-256 on by another way.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from harness.errors import PackageError, ResourceError, is_full_disk

SCHEMA = 1
MANIFEST = "manifest.json"
CONCLUSION = "signoff.json"
CANDIDATES = "candidates.json"
POLICY = "policy.toml"
WAIVERS = "waivers.toml"

_CANDIDATE = r"[a-z0-9]+(?:[.-][a-z0-9]+)*"
_KNOWN = re.compile(
    rf"manifest\.json|signoff\.json|report\.(?:md|html)|candidates\.json|policy\.toml|waivers\.toml"
    rf"|suite/{_CANDIDATE}\.jsonl|(?:goldens|records|audits|artifacts)/{_CANDIDATE}\.json"
)
_MOST_FILES = 1000
_MOST_BYTES = 256 << 20
_LONGEST_NAME = 200
# A zip file has no earlier time, and another one would make two packages of the same files differ.
_EPOCH = (1980, 1, 1, 0, 0, 0)


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of a package: its SHA-256 and its size in bytes."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every other file of a package by its path, with `/`; `created` is UTC."""

    schema: int
    harness: str
    checkpoint: str
    created: str
    files: dict[str, Entry]

    def encode(self) -> bytes:
        """The one way in which a manifest is written."""
        return msgspec.json.format(msgspec.json.encode(self, order="sorted"), indent=1) + b"\n"


def seal(files: Mapping[str, bytes], harness: str, checkpoint: str, created: str) -> bytes:
    """The manifest of files."""
    entries = {name: Entry(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
    return Manifest(SCHEMA, harness, checkpoint, created, entries).encode()


def write_folder(out: Path, files: Mapping[str, bytes]) -> None:
    """Write files into the folder `out`, the manifest last: without it a package is not finished.

    Raises ResourceError on a full disk, PackageError where the folder cannot be written.
    """
    try:
        for name in sorted(files, key=lambda name: name == MANIFEST):
            path = out / name
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
            partial.write_bytes(files[name])
            partial.replace(path)
    except OSError as error:
        if is_full_disk(error):
            raise ResourceError(f"the disk of {out} is full", "free space, or give another folder") from None
        raise PackageError(f"{out} cannot be written: {error}", "give another folder") from None


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """Write files as a zip file: equal files give equal bytes. Raises PackageError."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in sorted(files):
                entry = zipfile.ZipInfo(name, _EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (stat.S_IFREG | 0o644) << 16
                archive.writestr(entry, files[name])
        partial.replace(path)
    except OSError as error:
        raise PackageError(f"{path} cannot be written: {error}", "give another with --out FILE") from None
    finally:
        partial.unlink(missing_ok=True)


def read_files(path: Path) -> dict[str, bytes]:
    """Every file of a package, folder or zip, in memory. Whoever made it is not trusted.

    Raises PackageError for what is too large, encrypted, damaged, a link, or named so that it would lie elsewhere.
    """
    if not path.exists():
        raise PackageError(f"there is no package {path}", "name the folder or the .zip that a sign-off wrote")
    found: dict[str, bytes] = {}
    left = _MOST_BYTES
    try:
        for name, data in _folder(path) if path.is_dir() else _zip(path):
            if name in found:
                raise PackageError(f"{path}: {name!r} is there twice", "do not trust it")
            left -= len(data)
            if left < 0 or len(found) >= _MOST_FILES:
                raise PackageError(
                    f"{path} has more than {_MOST_FILES} files or {_MOST_BYTES >> 20} MB", "do not trust it"
                )
            found[name] = data
    except (OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise PackageError(f"{path} cannot be read as a package: {error}", "have it sent again") from None
    return found


def _folder(root: Path) -> Iterator[tuple[str, bytes]]:
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            path = Path(folder) / name
            mode = path.lstat().st_mode
            relative = path.relative_to(root).as_posix()
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise PackageError(f"{root}: {relative!r} is a link or no file", "do not trust it")
            if name in names:
                if path.lstat().st_size > _MOST_BYTES:
                    raise PackageError(f"{root}: {relative!r} is too large", "do not trust it")
                yield relative, path.read_bytes()


def _zip(path: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if len(entries) > _MOST_FILES:
            raise PackageError(f"{path} has {len(entries)} entries", "do not trust it")
        left = _MOST_BYTES
        for entry in entries:
            _check_entry(path, entry)
            if entry.is_dir():
                continue
            with archive.open(entry) as file:  # what it says of its size need not be true
                data = file.read(left + 1)
            left -= len(data)
            if left < 0:
                raise PackageError(f"{path} unpacks to more than {_MOST_BYTES >> 20} MB", "do not trust it")
            yield entry.filename, data


def _check_entry(path: Path, entry: zipfile.ZipInfo) -> None:
    name = entry.filename
    parts = name.rstrip("/").split("/")
    if "\\" in name or ":" in name or "\0" in name or len(name) > _LONGEST_NAME or not all(parts) or ".." in parts:
        raise PackageError(f"{path}: the name {name!r} leads elsewhere", "do not trust it")
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise PackageError(f"{path}: {name!r} is a link or no file", "do not trust it")
    if entry.flag_bits & 1:
        raise PackageError(f"{path}: {name!r} is encrypted", "have it sent unencrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise PackageError(f"{path}: {name!r} is compressed in an unusual way", "have it packed by signoff pack")


def check_closed(files: Mapping[str, bytes]) -> tuple[Manifest, list[str]]:
    """The manifest, and every way in which the files are not those that it lists.

    Raises PackageError where there is no manifest that can be read.
    """
    if MANIFEST not in files:
        raise PackageError(
            "there is no manifest.json: the sign-off was not finished, or it was taken out", "run it again"
        )
    try:
        manifest = msgspec.json.decode(files[MANIFEST], type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise PackageError(f"manifest.json cannot be read: {error}", "have it sent again") from None
    if manifest.schema != SCHEMA:
        raise PackageError(
            f"the package has schema {manifest.schema}; this version reads {SCHEMA}", "update one of both"
        )
    problems = [] if manifest.encode() == files[MANIFEST] else ["manifest.json is not written as a manifest is"]
    listed = manifest.files
    problems += [f"{name} is missing" for name in sorted(listed.keys() - files.keys())]
    problems += [f"{name} was added" for name in sorted(files.keys() - listed.keys() - {MANIFEST})]
    problems += [f"{name} is no file of a sign-off" for name in sorted(listed) if not _KNOWN.fullmatch(name)]
    for name in sorted(listed.keys() & files.keys()):
        found = hashlib.sha256(files[name]).hexdigest()
        if len(files[name]) != listed[name].bytes:
            problems.append(f"{name} was changed: {len(files[name])} bytes, {listed[name].bytes} are listed")
        elif found != listed[name].sha256:
            problems.append(f"{name} was changed: its SHA-256 is {found[:16]}, {listed[name].sha256[:16]} is listed")
    return manifest, problems


def identity(files: Mapping[str, bytes]) -> str:
    """The SHA-256 of the manifest, which stands for the whole package."""
    return hashlib.sha256(files[MANIFEST]).hexdigest()


def begin_folder(out: Path, candidates: bytes) -> None:
    """Make the folder of a new package, or go on with one of the same candidates that was not finished.

    Raises PackageError where there is something else in it, or a package that was finished.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        taken = {path.name for path in out.iterdir()}
        same = CANDIDATES in taken and (out / CANDIDATES).read_bytes() == candidates
    except OSError as error:
        raise PackageError(f"{out} cannot be made: {error}", "give another with --out FOLDER") from None
    remedy = "give another with --out FOLDER, or delete it"
    if MANIFEST in taken:
        raise PackageError(f"{out} holds a sign-off already", remedy)
    if taken and not same:
        raise PackageError(f"{out} is not empty, and no unfinished sign-off of these candidates", remedy)
    write_folder(out, {CANDIDATES: candidates})
