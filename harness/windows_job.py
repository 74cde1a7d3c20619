"""A Windows job object that ends a worker, and what it starts, when the controller ends however it may.

NOT YET RUN ON WINDOWS: written from the documentation of the Win32 functions named below and checked by
types only. On other systems a Job does nothing; see `harness.orphans` for what is done there.
"""

from __future__ import annotations

import ctypes
import sys

_KILL_ON_JOB_CLOSE = 0x2000
_EXTENDED_LIMIT_INFORMATION = 9
_PROCESS_SET_QUOTA = 0x0100
_PROCESS_TERMINATE = 0x0001


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION; the types have their Windows sizes on every system."""

    _fields_ = (
        ("PerProcessUserTimeLimit", ctypes.c_int64),
        ("PerJobUserTimeLimit", ctypes.c_int64),
        ("LimitFlags", ctypes.c_uint32),
        ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t),
        ("ActiveProcessLimit", ctypes.c_uint32),
        ("Affinity", ctypes.c_size_t),
        ("PriorityClass", ctypes.c_uint32),
        ("SchedulingClass", ctypes.c_uint32),
    )


class _ExtendedLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION; the six counters are IO_COUNTERS."""

    _fields_ = (
        ("BasicLimitInformation", _BasicLimits),
        ("IoInfo", ctypes.c_uint64 * 6),
        ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t),
        ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    )


if sys.platform == "win32":
    from ctypes import wintypes

    _kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
    _create = _kernel32.CreateJobObjectW
    _create.argtypes, _create.restype = [wintypes.LPVOID, wintypes.LPCWSTR], wintypes.HANDLE
    _set = _kernel32.SetInformationJobObject
    _set.argtypes = [wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD]
    _set.restype = wintypes.BOOL
    _assign = _kernel32.AssignProcessToJobObject
    _assign.argtypes, _assign.restype = [wintypes.HANDLE, wintypes.HANDLE], wintypes.BOOL
    _open = _kernel32.OpenProcess
    _open.argtypes, _open.restype = [wintypes.DWORD, wintypes.BOOL, wintypes.DWORD], wintypes.HANDLE
    _close = _kernel32.CloseHandle
    _close.argtypes, _close.restype = [wintypes.HANDLE], wintypes.BOOL

    class Job:
        """A job that holds one worker. Closing it kills what is in it; so does the end of this process."""

        def __init__(self, handle: int | None) -> None:
            self._handle = handle

        @classmethod
        def around(cls, pid: int) -> Job:
            """Put a process into a new job; a job that holds nothing where Windows will not."""
            handle = _create(None, None)
            limits = _ExtendedLimits()
            limits.BasicLimitInformation.LimitFlags = _KILL_ON_JOB_CLOSE
            process = _open(_PROCESS_SET_QUOTA | _PROCESS_TERMINATE, False, pid)
            held = bool(
                handle
                and process
                and _set(handle, _EXTENDED_LIMIT_INFORMATION, ctypes.byref(limits), ctypes.sizeof(limits))
                and _assign(handle, process)
            )
            if process:
                _close(process)
            if handle and not held:
                _close(handle)
            return cls(handle if held else None)

        def close(self) -> None:
            """Kill what is in the job."""
            handle, self._handle = self._handle, None
            if handle:
                _close(handle)

else:

    class Job:
        """Nothing: only Windows has job objects."""

        @classmethod
        def around(cls, pid: int) -> Job:  # noqa: ARG003
            """A job that holds nothing."""
            return cls()

        def close(self) -> None:
            """Do nothing."""
