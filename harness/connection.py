"""A worker's process and the channel to it: execnet, with what it keeps private and what it lets through.

execnet reads whatever comes as the head of a message. A driver that writes into file descriptors which
are not its own would have it wait for gigabytes that never come, so heads are checked here first.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

import execnet
import msgspec
import psutil
from execnet.gateway_base import ThreadExecModel

BROKEN = (EOFError, OSError, execnet.RemoteError)
"""What `send` and `receive` raise on a connection that is of no more use; execnet.TimeoutError is an OSError."""
_HEAD = struct.Struct("!bii")
# CHANNEL_DATA, CHANNEL_CLOSE, CHANNEL_CLOSE_ERROR, CHANNEL_LAST_MESSAGE: a worker sends no others.
_KINDS = range(4, 8)
_CHANNELS = range(1, 1 << 16)
_JOIN_SECONDS = 1.0
_MODEL = "execmodel=main_thread_only"
# A password cannot be asked for in a test run; a machine that is off must not hold the run up, nor one that goes off.
_SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=15 -o ServerAliveInterval=15 -o ServerAliveCountMax=4"
_WINDOWS_PATH = re.compile(r"[A-Za-z]:|[^/]*\\")
# ssh ends when both sides have closed the connection. One whose controller was killed is ended by the kernel instead,
# and with it what runs on the host and listens no more.
_WITH_US = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 9)  # PR_SET_PDEATHSIG, SIGKILL
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


class Host(msgspec.Struct, frozen=True):
    """Another machine: the name that targets carry, and the execnet spec by which it is reached."""

    name: str
    spec: str


def path_there(text: str) -> PurePath:
    """A path of another machine, whatever this one is: `str` of it gives the text back."""
    return PurePosixPath(text) if text.startswith("/") else PureWindowsPath(text)


class NotStarted(OSError):
    """No Python came up: it did not answer in time, or ended with `status`."""

    def __init__(self, problem: str, status: int | None = None) -> None:
        super().__init__(problem)
        self.status = status


class HeadCheck:
    """Stands before the `read` of an execnet connection and refuses what cannot be the head of a message."""

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self.garbled = False
        self._read = read
        self._body_is_next = False

    def __call__(self, count: int) -> bytes:
        """Read as the connection does. Raises ValueError for what is no head of a message."""
        # The reader may be inside its first read of a head when this is put in its place; no first body has 9 bytes.
        if self._body_is_next or count != _HEAD.size:
            self._body_is_next = False
            return self._read(count)
        head = self._read(count)
        kind, channel, length = _HEAD.unpack(head)
        if kind not in _KINDS or channel not in _CHANNELS or length < 0:
            self.garbled = True
            raise ValueError("not the head of a message")
        self._body_is_next = True
        return head


class _Processes:
    """Stands before the module `subprocess` in execnet, which keeps a process to itself until it has answered.

    What a process says on its standard error goes to the end of the file `errors`.
    """

    PIPE = subprocess.PIPE

    def __init__(self, errors: Path, *, remote: bool) -> None:
        self._errors = errors
        self._remote = remote
        self.started: subprocess.Popen[bytes] | None = None
        self.late = False

    def Popen(self, command: list[str], **pipes: Any) -> subprocess.Popen[bytes]:  # noqa: N802
        """As subprocess.Popen."""
        if self._remote and sys.platform == "linux" and shutil.which(command[0]):
            command = [sys.executable, "-I", "-S", "-c", _WITH_US, str(os.getpid()), *command]
        try:
            errors = self._errors.open("ab")
        except OSError:  # a full disk
            errors = Path(os.devnull).open("ab")  # noqa: SIM115
        with errors:
            self.started = subprocess.Popen(command, stderr=errors, **pipes)
        return self.started

    @contextlib.contextmanager
    def bounded(self, seconds: float) -> Iterator[None]:
        """End the process when this takes longer than it may, and when it raises. Raises NotStarted, too."""
        timer = threading.Timer(seconds, self._end_late)
        timer.daemon = True
        timer.start()
        try:
            yield
        except (EOFError, BrokenPipeError):
            status = self._end(_JOIN_SECONDS)
            if not self.late:
                raise NotStarted("it ended", status) from None
        except BaseException:
            self._end()
            raise
        finally:
            timer.cancel()
        if self.late:
            raise NotStarted(f"it did not answer within {seconds:g} s")

    def _end_late(self) -> None:
        self.late = True
        self._end()

    def _end(self, seconds: float = 0.0) -> int | None:
        """Kill the process after some seconds, and what it started, which would hold the connection open."""
        if self.started is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.started.wait(seconds)
        family = []
        with contextlib.suppress(psutil.Error):
            family = psutil.Process(self.started.pid).children(recursive=True)
        self.started.kill()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        return self.started.wait()


class _Model(ThreadExecModel):
    """Threads as execnet has them, and processes as we do."""

    def __init__(self, processes: _Processes) -> None:
        self._processes = processes

    @property
    def subprocess(self) -> Any:
        return self._processes


class Connection:
    """One process under a Python, here or on a host, that runs `source`, which finds `channel` among its globals.

    What it says before `source` runs is added to `errors`. Raises OSError, EOFError, AssertionError or an execnet error
    when it cannot be made within some seconds; no process is left then, nor when this is interrupted.
    """

    def __init__(
        self, interpreter: str | None, source: str, host: Host | None = None, *, errors: Path, seconds: float
    ) -> None:
        processes = _Processes(errors, remote=host is not None)
        self._group = execnet.Group(execmodel=_Model(processes))  # type: ignore[arg-type]
        try:
            with processes.bounded(seconds):
                self._gateway: Any = self._group.makegateway(_spec(interpreter, host))
                if processes.started is not None and processes.started.poll() is not None:  # execnet overlooks some
                    raise EOFError
            connection: Any = self._gateway._io
            self._check = HeadCheck(connection.read)
            connection.read = self._check
            self._channel: Any = self._gateway.remote_exec(source)
        except BaseException:
            self._group.terminate(timeout=_JOIN_SECONDS)
            raise

    @property
    def here(self) -> bool:
        """Whether the process is on this machine, so that its number means something here."""
        return bool(self._gateway.spec.popen)

    @property
    def garbled(self) -> bool:
        """Whether the connection ended because something came that was no message."""
        orderly = hasattr(self._gateway, "_error") or self._channel.isclosed()
        return self._check.garbled or not (orderly or self._gateway.hasreceiver())

    def send(self, item: object) -> None:
        """Send builtins. Raises one of BROKEN."""
        self._channel.send(item)

    def receive(self, seconds: float) -> Any:
        """The next item. Raises execnet.TimeoutError when none comes in time, else one of BROKEN."""
        return self._channel.receive(seconds)

    @property
    def ended(self) -> bool:
        """Whether the process has ended; its children may still hold the connection open."""
        return self._gateway._io.popen.poll() is not None

    def exit_status(self, seconds: float) -> int | None:
        """The exit status as subprocess has it, None when the process does not end in time."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return int(self._gateway._io.popen.wait(seconds))
        return None

    def ask_to_end(self) -> None:
        """Tell the process that nothing more will come."""
        self._gateway.exit()

    def close(self) -> None:
        """Kill the process if it still runs, and release what execnet holds; takes at most 3 s."""
        self._gateway._io.kill()
        self.exit_status(_JOIN_SECONDS)
        self._group.terminate(timeout=_JOIN_SECONDS)


def _spec(interpreter: str | None, host: Host | None) -> str:
    if host is not None:
        return _spec_there(interpreter, host)
    if interpreter is None:
        return f"popen//{_MODEL}"
    quoted = f'"{interpreter}"' if sys.platform == "win32" else shlex.quote(interpreter)
    return f"popen//{_MODEL}//python={quoted}"


def _spec_there(interpreter: str | None, host: Host) -> str:
    """The host's own spec, with another Python if one is asked for, and with an ssh that never asks a question."""
    parts = []
    for part in host.spec.split("//"):
        key, _, value = part.partition("=")
        if key == "ssh":
            parts.append(f"ssh={_SSH_OPTIONS} {value}")
        elif key != "execmodel" and not (key == "python" and interpreter is not None):
            parts.append(part)
    if interpreter is not None:
        parts.append(f"python={quote_there(interpreter)}")
    return "//".join([*parts, _MODEL])


def quote_there(interpreter: str) -> str:
    """A path as the shell of its machine takes it, to judge by the path: cmd.exe knows no single quotes."""
    return f'"{interpreter}"' if _WINDOWS_PATH.match(interpreter) else shlex.quote(interpreter)
