"""One session at a time on an NPU or GPU of a machine, whoever starts it: a file lock on that machine.

Two sessions on one accelerator disturb each other's figures, memory and busy counters. The lock is the operating
system's, so it ends with the process that holds it. A worker takes one lock and never a second, so none waits in a
circle. All GPUs of a machine share a lock: runtimes count them differently, and there is no common name to lock by.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import filelock
import msgspec
import psutil

from harness.errors import ResourceError
from harness.target import DeviceKind

# The group of all users of a Windows machine, whatever its language calls it.
_USERS = "*S-1-5-32-545"


class Holder(msgspec.Struct, frozen=True):
    """Who holds a device: its process and target, and since when (UTC)."""

    pid: int
    target: str
    since: str

    def __str__(self) -> str:
        return f"process {self.pid} with {self.target}, since {self.since}"


def lock_folder() -> Path:
    """The same folder for every user of a machine, `PHI3_CONFORMANCE_LOCKS` if set: not TMPDIR, which differs."""
    override = os.environ.get("PHI3_CONFORMANCE_LOCKS")
    if override:
        return Path(override)
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA", r"C:\ProgramData")) / "phi3-conformance" / "locks"
    return Path("/tmp/phi3-conformance-locks")


class DeviceLock:
    """The lock of one kind of device. Not taken before `claim`."""

    def __init__(self, kind: DeviceKind, folder: Path | None = None) -> None:
        self._folder = folder or lock_folder()
        self._holder = self._folder / f"{kind.value}.json"
        self._lock = filelock.FileLock(self._folder / f"{kind.value}.lock", timeout=0, mode=0o666)

    def claim(self, target: str) -> Holder | None:
        """Take the lock; None when it was taken, else who holds it. Does not wait.

        Raises ResourceError when the folder of locks cannot be used.
        """
        try:
            _make_folder(self._folder)
            self._lock.acquire()
        except filelock.Timeout:
            return self._read_holder()
        except OSError as error:
            raise ResourceError(
                f"the device locks in {self._folder} cannot be used: {error}",
                "delete the folder, or set PHI3_CONFORMANCE_LOCKS to one that all users of the machine can write",
            ) from None
        since = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # only for the message of who waits
            self._holder.write_bytes(msgspec.json.encode(Holder(os.getpid(), target, since)))
        return None

    def release(self) -> None:
        """Give the lock back; nothing happens where it is not held."""
        if self._lock.is_locked:
            with contextlib.suppress(OSError):
                self._holder.unlink()
            self._lock.release()

    def _read_holder(self) -> Holder:
        unknown = Holder(0, "a target it has not written down", "an unknown time")
        try:
            found = msgspec.convert(json.loads(self._holder.read_bytes()), Holder)
        except (OSError, ValueError):
            return unknown
        return found if psutil.pid_exists(found.pid) else unknown  # left behind by another that was killed


def _make_folder(folder: Path) -> None:
    """A folder in which every user can make and lock files, and nobody can delete another's. Raises OSError."""
    try:
        folder.mkdir(parents=True)
        if sys.platform == "win32":
            grant = ["icacls", str(folder), "/grant", f"{_USERS}:(OI)(CI)M"]
            subprocess.run(grant, check=False, capture_output=True)
        else:
            folder.chmod(0o1777)
    except FileExistsError:
        if not stat.S_ISDIR(folder.lstat().st_mode):
            raise NotADirectoryError(f"{folder} is no folder") from None
