"""What an outpost does to record a part of a golden on its machine: see `harness.golden_hosts`.

The part is recorded by the command that a person would give there, in a process of its own, so that the outpost goes on
answering meanwhile. What was begun lies below the cache folder until it has been fetched: a recording that was cut
goes on from there.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from harness.cache import cache_root, mark_used
from harness.errors import GoldenError, UsageError
from harness.golden import verify_files
from harness.last_words import WorkerLog

_LOG = "record.log"


class PartRecorder:
    """At most one recording at a time; `begin`, then `progress` until it has ended, then `read` and `forget`."""

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._there = False

    def do_begin_part(
        self, checkpoint: str, prompts: str, part: str, options: Sequence[str], versions: Mapping[str, str]
    ) -> None:
        """Begin to record part K/N of a suite; `options` are further ones of `golden record`.

        A part that was recorded before with these `versions`, and not fetched, is not recorded again.
        """
        self.do_end_part()
        key = hashlib.sha256("\0".join((checkpoint, prompts, part, *options)).encode()).hexdigest()[:16]
        self._folder = cache_root() / "parts" / key
        self._folder.mkdir(parents=True, exist_ok=True)
        mark_used(self._folder)
        self._there = _is_recorded(self._folder, versions)
        if self._there:
            return
        command = [sys.executable, "-m", "harness.exporter_main", "harness.cli", "golden", "record"]
        command += [f"--checkpoint={checkpoint}", f"--prompts={prompts}", f"--golden={self._folder}", f"--part={part}"]
        with (self._folder / _LOG).open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *options], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def do_part_progress(self) -> dict[str, Any]:
        """`status`: None while it records, then its exit status; `said`: its last line; `tail`: the end of its output.

        Raises UsageError where none was begun.
        """
        folder = self._begun()
        status = 0 if self._process is None else self._process.poll()
        tail = WorkerLog(folder / _LOG).tail()
        lines = tail.strip().splitlines()
        return {"status": status, "said": lines[-1].strip() if lines else "", "tail": tail}

    def do_part_files(self, name: str) -> dict[str, int]:
        """The files of the part that was recorded, by name, with their sizes in bytes."""
        return {path.name: path.stat().st_size for path in sorted(self._recorded(name).iterdir()) if path.is_file()}

    def do_read_part(self, name: str, file: str, offset: int, size: int) -> bytes:
        """A piece of one of these files."""
        with (self._recorded(name) / Path(file).name).open("rb") as opened:
            opened.seek(offset)
            return opened.read(size)

    def do_forget_part(self, name: str) -> None:
        """Delete the part, which was fetched."""
        folder = self._recorded(name)
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()

    def do_end_part(self) -> None:
        """Stop recording, if it goes on; what there is of it stays."""
        if self._process is None:
            return
        family = []
        with contextlib.suppress(psutil.NoSuchProcess):
            own = psutil.Process(self._process.pid)
            family = [own, *own.children(recursive=True)]
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._process.wait()
        self._process = None

    def _begun(self) -> Path:
        if self._folder is None or (self._process is None and not self._there):
            raise UsageError("no recording was begun here", "begin one")
        return self._folder

    def _recorded(self, name: str) -> Path:
        """The folder of the part; `name` is taken for a name, whatever it is."""
        return self._begun() / Path(name).name


def _is_recorded(folder: Path, versions: Mapping[str, str]) -> bool:
    """Whether a whole part lies in a folder that was kept for it, recorded with these versions."""
    for found in folder.iterdir():
        if not re.fullmatch(r".+\.part-\d+-of-\d+", found.name):
            continue
        with contextlib.suppress(GoldenError):
            if versions.items() <= verify_files(found).manifest.versions.items():
                return True
    return False
