"""Other machines: how they are reached, what is brought there, and what is known of them.

Golden, metrics and verdicts stay with the controller; a session's worker runs on its host, and checkpoint and
artifacts are brought there, each file once. For each host there is one more worker, the *outpost*, which stores
files, finds interpreters and ends workers that do not end themselves. A host that fails once is not asked again:
its targets become errors and no other's do.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.checkpoint import cached_sha256
from harness.connection import Host
from harness.depot import Entry
from harness.devices import Machine
from harness.errors import Stage, StageError, UsageError
from harness.worker import Worker

_PIECE_BYTES = 4 << 20
_NAME = re.compile(r"[a-z][a-z0-9]*")
# Weights in forms that are never loaded, and what tools leave in a download.
_LEFT_BEHIND = {".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".data"}


def parse_hosts(texts: Sequence[str]) -> dict[str, Host]:
    """Read `NAME=SPEC` options, SPEC being execnet's. Raises UsageError where the form is another."""
    hosts: dict[str, Host] = {}
    for text in texts:
        name, equals, spec = text.partition("=")
        remedy = "write --host lab1=ssh=USER@MACHINE//python=PATH, PATH being a Python there that has this project"
        if not equals or not _NAME.fullmatch(name) or name in hosts:
            raise UsageError(f"--host {text!r} names no new host (lower-case letters and digits)", remedy)
        keys = [part.partition("=")[0] for part in spec.split("//")]
        if not {"ssh", "vagrant_ssh"} & set(keys):
            raise UsageError(f"--host {text!r} does not say how to reach the machine", remedy)
        hosts[name] = Host(name, spec)
    return hosts


class Lab:
    """The hosts of a run. `hire` makes a worker, not yet started, on a host, under the Python of its spec."""

    def __init__(self, hosts: Mapping[str, Host], hire: Callable[[str, Host], Worker]) -> None:
        self.hosts = dict(hosts)
        self._hire = hire
        self._outposts: dict[str, Worker] = {}
        self._failed: dict[str, StageError] = {}
        self._brought: dict[tuple[str, Path], str] = {}
        self._machines: dict[str, Machine] = {}

    @property
    def outposts(self) -> list[Worker]:
        """The outposts that were reached; they are to be stopped last, since they end other workers."""
        return list(self._outposts.values())

    @property
    def machines(self) -> dict[str, Machine]:
        """The hosts that have answered, and what they are."""
        return dict(self._machines)

    def interpreter(self, host: str, backend: str, device: str) -> str | None:
        """The Python of a host that runs a backend's workers, None for that of the spec. Raises StageError."""
        found: str | None = self.ask(host, Stage.DISCOVER, "interpreter", backend=backend, device=device)
        return found

    def bring(self, host: str, folder: Path, announce: Callable[[str], None], *, everything: bool = True) -> str:
        """The path, on the host, of a folder with the same files; only files that are not there yet travel.

        `everything` false leaves out weights in forms that are never loaded. Raises StageError(prepare).
        """
        if (host, folder) not in self._brought:
            self._brought[host, folder] = self._bring(host, folder, announce, everything)
        return self._brought[host, folder]

    def _bring(self, host: str, folder: Path, announce: Callable[[str], None], everything: bool) -> str:
        try:
            entries = list(_entries(folder, everything=everything))
            listing = msgspec.to_builtins(entries)
            missing: list[str] = self.ask(host, Stage.PREPARE, "missing", entries=listing)
            if missing:
                size = sum(entry.bytes for entry in {e.sha256: e for e in entries if e.sha256 in missing}.values())
                announce(f"bringing {folder.name} to {host}: {size / 1e6:.1f} MB in {len(missing)} files")
            files = {entry.sha256: folder / entry.path for entry in entries}
            for sha256 in missing:
                self._send(host, sha256, files[sha256])
        except OSError as error:
            problem = f"{folder.name} cannot be brought to {host}: {error}"
            raise StageError(Stage.PREPARE, problem, "leave the folder alone while a run uses it") from None
        path: str = self.ask(host, Stage.PREPARE, "assemble", entries=listing)
        return path

    def end(self, host: str, pid: int) -> None:
        """Kill a worker on a host that no longer answers. A host that is lost has nobody to ask."""
        if host not in self._failed:
            try:
                self.ask(host, Stage.RUN, "end", pid=pid)
            except StageError:
                return

    def tail(self, host: str, log: str) -> str:
        """The last output of a worker on a host, empty when it cannot be had."""
        if host in self._failed:
            return ""
        try:
            text: str = self.ask(host, Stage.RUN, "tail", log=log)
        except StageError:
            return ""
        return text

    def ask(self, host: str, stage: Stage, operation: str, **arguments: Any) -> Any:
        """Ask the outpost of a host. Raises StageError, the same one each time, once the host has failed."""
        outpost = self._outpost(host, stage)
        try:
            return outpost.call(stage, operation, **arguments)
        except StageError as error:
            if not outpost.running:
                self._failed[host] = StageError(
                    stage, f"the host {host} was lost: {error.problem}", "see that it is on and reachable, run again"
                )
                raise self._failed[host] from None
            raise

    def check(self, host: str, stage: Stage) -> None:
        """Raise StageError when a host is lost, or does not answer now."""
        self.ask(host, stage, "missing", entries=[])

    def _outpost(self, host: str, stage: Stage) -> Worker:
        if host in self._failed:
            raise self._failed[host]
        if host not in self._outposts:
            worker = self._hire(f"{host}-outpost", self.hosts[host])
            try:
                worker.start(stage)
                self._machines[host] = msgspec.convert(worker.call(stage, "machine"), Machine)
            except StageError as error:
                worker.stop()
                self._failed[host] = StageError(stage, f"the host {host} cannot be used: {error.problem}", error.remedy)
                raise self._failed[host] from None
            self._outposts[host] = worker
        return self._outposts[host]

    def _send(self, host: str, sha256: str, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            while True:
                content = file.read(_PIECE_BYTES)
                if content or offset == 0:
                    self.ask(host, Stage.PREPARE, "write", sha256=sha256, offset=offset, content=content)
                if not content:
                    break
                offset += len(content)
        self.ask(host, Stage.PREPARE, "finish", sha256=sha256)


def _entries(folder: Path, *, everything: bool) -> Iterator[Entry]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not path.is_file() or (not everything and (hidden or path.suffix in _LEFT_BEHIND)):
            continue
        yield Entry(name.as_posix(), cached_sha256(path), path.stat().st_size)
