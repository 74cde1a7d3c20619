"""What a worker does for a controller on another machine, besides hosting a backend: see `harness.lab`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import psutil

import harness
from harness.backend import load_backend
from harness.depot import Depot, Entry
from harness.devices import Machine, find_interpreter, this_machine
from harness.last_words import WorkerLog


class Outpost:
    """Operations that need no backend; each is asked for by its name."""

    def __init__(self) -> None:
        self._depot = Depot()

    def do_machine(self) -> Machine:
        """What machine this is."""
        return this_machine()

    def do_interpreter(self, backend: str, device: str) -> str | None:
        """The Python that runs a backend's workers here, None for this one."""
        tree = Path(harness.__file__).resolve().parent.parent
        found = find_interpreter(load_backend(backend), {}, tree, device)
        return None if found is None else str(found)

    def do_missing(self, entries: list[dict[str, Any]]) -> list[str]:
        """Hashes of files that have not been brought yet."""
        return self._depot.missing(msgspec.convert(entries, list[Entry]))

    def do_write(self, sha256: str, offset: int, content: bytes) -> None:
        """Take a piece of a file."""
        self._depot.write(sha256, offset, content)

    def do_finish(self, sha256: str) -> None:
        """Check and keep a file of which all pieces are here."""
        self._depot.finish(sha256)

    def do_assemble(self, entries: list[dict[str, Any]]) -> str:
        """The folder with these files."""
        return str(self._depot.assemble(msgspec.convert(entries, list[Entry])))

    def do_end(self, pid: int) -> None:
        """Kill a worker of the same controller, and what it started, when it does not end by itself."""
        try:
            process = psutil.Process(pid)
            family = [*process.children(recursive=True), process]
        except psutil.NoSuchProcess:
            return
        for member in family:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        psutil.wait_procs(family, timeout=3)

    def do_tail(self, log: str) -> str:
        """The end of a worker's output, as a message quotes it."""
        return WorkerLog(Path(log)).tail()
