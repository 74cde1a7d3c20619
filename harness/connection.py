"""A worker's process and the channel to it: execnet, with what it keeps private and what it lets through.

execnet reads whatever comes as the head of a message. A driver that writes into file descriptors which
are not its own would have it wait for gigabytes that never come, so heads are checked here first.
"""

from __future__ import annotations

import contextlib
import shlex
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import execnet
import msgspec

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


class Host(msgspec.Struct, frozen=True):
    """Another machine: the name that targets carry, and the execnet spec by which it is reached."""

    name: str
    spec: str


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


class Connection:
    """One process under a Python, here or on a host, that runs `source`, which finds `channel` among its globals.

    Raises OSError, EOFError, AssertionError or an execnet error when it cannot be made.
    """

    def __init__(self, interpreter: str | None, source: str, host: Host | None = None) -> None:
        self._group = execnet.Group()
        try:
            self._gateway: Any = self._group.makegateway(_spec(interpreter, host))
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
        parts.append(f"python={shlex.quote(interpreter)}")
    return "//".join([*parts, _MODEL])
