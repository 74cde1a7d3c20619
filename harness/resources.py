"""What a process holds of its machine: memory, handles, threads, and memory of a device where a runtime tells.

Counted after garbage was collected and the C library has given back what it keeps for later, so that what is left is
held by somebody.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys

import msgspec
import psutil


class Resources(msgspec.Struct, frozen=True):
    """What one process holds.

    `memory` in bytes, what belongs to no file: pages of libraries and of mapped weights come and go, and are shared
    with whoever else has them. On Linux anonymous resident memory, on Windows private bytes, elsewhere USS.
    `handles`: file descriptors, on Windows handles. `device_memory` in bytes, None where no runtime tells.
    """

    memory: int
    handles: int
    threads: int
    device_memory: int | None = None


def resources(device_memory: int | None = None) -> Resources:
    """What this process holds. Takes some ten milliseconds."""
    gc.collect()
    _trim()
    process = psutil.Process()
    with process.oneshot():
        return Resources(_memory(process), _handles(process), process.num_threads(), device_memory)


def _memory(process: psutil.Process) -> int:
    held = process.memory_info()
    if sys.platform == "linux":
        return int(held.rss - held.shared)
    if sys.platform == "win32":
        return int(held.private)
    return int(process.memory_full_info().uss)


def _handles(process: psutil.Process) -> int:
    if sys.platform == "win32":
        return int(process.num_handles())
    return int(process.num_fds())


def _trim() -> None:
    """Have glibc give back freed memory, which it may keep for minutes; other C libraries have nothing like it."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
