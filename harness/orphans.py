"""No process outlives the one that started it, and a worker takes what it started along.

Linux: a process asks the kernel to be killed when its parent ends. Windows: a job object that the kernel
closes with its owner (`harness.windows_job`). Elsewhere a worker ends when it finds its connection closed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil

from harness.windows_job import Job

PARENT = "PHI3_CONFORMANCE_PARENT"
"""The environment variable in which a worker names itself to the exporters that it starts."""
_PR_SET_PDEATHSIG = 1
_END_SECONDS = 3.0


def die_with(parent: int) -> None:
    """Have the kernel kill this process when the thread of `parent` that started it ends. Linux only."""
    if sys.platform == "linux":
        prctl = ctypes.CDLL(None, use_errno=True).prctl
        prctl.argtypes, prctl.restype = [ctypes.c_int, ctypes.c_ulong], ctypes.c_int
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the line above took effect
            os._exit(1)


def lead_group() -> int | None:
    """Give this process a group of its own, by which `Tree.end` finds its children when it is dead itself.

    Ctrl-C at the terminal then reaches neither it nor its children. None on Windows, which has no groups.
    """
    if sys.platform == "win32":
        return None
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    return os.getpgrp()


class Tree:
    """A worker of this machine and everything that it started.

    `group` is the process group that it leads, None where there are none.
    """

    def __init__(self, pid: int, group: int | None) -> None:
        self.pid = pid
        self._group = group if group == pid else None
        self._job = Job.around(pid)
        self._seen: dict[int, psutil.Process] = {}
        # psutil tells a process from a later one of the same number by the time of its start.
        self._root: psutil.Process | None = None
        with contextlib.suppress(psutil.Error):
            self._root = psutil.Process(pid)

    def descendants(self) -> list[psutil.Process]:
        """What the worker started and is still its child, or a child's child."""
        try:
            found = self._root.children(recursive=True) if self._root is not None else []
        except psutil.Error:
            return []
        self._seen.update((process.pid, process) for process in found)
        return found

    def memory(self) -> int:
        """Resident memory of worker and descendants in bytes, mapped files included."""
        held = 0
        for process in (self._root, *self.descendants()):
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss if process is not None else 0
        return held

    def peak_memory(self) -> int:
        """The most resident memory that the worker itself ever had in bytes; 0 where the system keeps no such count."""
        if sys.platform == "win32":
            with contextlib.suppress(psutil.Error):
                return int(self._root.memory_info().peak_wset) if self._root is not None else 0
        with contextlib.suppress(OSError, ValueError, IndexError):
            status = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8", errors="replace")
            return next((int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
        return 0

    def signal(self, number: int) -> None:
        """Send the worker a signal, if it is still there."""
        with contextlib.suppress(psutil.Error, OSError):
            if self._root is not None:
                self._root.send_signal(number)

    def end(self) -> None:
        """Kill all of it, and what was once seen to descend from it, and see it gone; takes at most 3 s.

        SIGKILL, since there is nothing that a process could do about it.
        """
        self.descendants()
        doomed = list(self._seen.values())
        if self._root is not None:
            doomed.insert(0, self._root)  # first, so that it starts no more
        for process in doomed:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._end_group()
        self._job.close()
        # The worker itself is left to subprocess, from which waiting here would take the exit status.
        psutil.wait_procs([process for process in doomed if process is not self._root], timeout=_END_SECONDS)

    def _end_group(self) -> None:
        if sys.platform != "win32" and self._group is not None and self._group != os.getpgrp():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._group, signal.SIGKILL)
