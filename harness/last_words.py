"""What a worker leaves behind: its log, the stack it hung in, and how its process ended, fit for a message."""

from __future__ import annotations

import contextlib
import re
import signal
from pathlib import Path

_TAIL_BYTES = 16000
_TAIL_LINES = 24
_STACK_LINES = 12
_LOG_BYTES = 32 << 20
_KEPT_BYTES = 1 << 20
_FAULT = ("Fatal Python error", "Windows fatal exception")
_THREAD = ("Thread 0x", "Current thread 0x")
_NTSTATUS = 0x80000000
"""From here on an exit status is what Windows ended a process for."""
_WINDOWS_EXITS = {
    0xC0000005: "ACCESS_VIOLATION",
    0xC000001D: "ILLEGAL_INSTRUCTION",
    0xC00000FD: "STACK_OVERFLOW",
    0xC0000135: "DLL_NOT_FOUND",
    0xC000013A: "CONTROL_C_EXIT",
    0xC0000374: "HEAP_CORRUPTION",
    0xC0000409: "STACK_BUFFER_OVERRUN, or abort",
}
_FILE = re.compile(r'File "([^"]+)"')


class WorkerLog:
    """The file that takes a worker's own output. It need not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def size(self) -> int:
        """Bytes in the log, 0 where there is none."""
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def read_from(self, offset: int) -> str:
        """The log from an offset in bytes on, at most 16000 bytes and those its last."""
        try:
            with self.path.open("rb") as file:
                file.seek(max(offset, self.size() - _TAIL_BYTES))
                return file.read(_TAIL_BYTES).decode("utf-8", errors="replace")
        except OSError:
            return ""

    def tail(self, title: str = "last output of the worker") -> str:
        """The last lines, indented for a message; empty when there are none."""
        text = self.read_from(0).replace("\r", "\n")
        lines = last_lines([line for line in text.splitlines() if line.strip()])
        return quote(title, lines)

    def append(self, text: str) -> None:
        """Add to the log, unless the disk is full."""
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def trim(self) -> None:
        """Cut a log of more than 32 MiB back to its last MiB.

        The worker writes on: it has the file open to append, so its next line follows what is kept. What
        it writes during the cut may be lost.
        """
        if self.size() <= _LOG_BYTES:
            return
        with contextlib.suppress(OSError):
            with self.path.open("r+b") as file:
                file.seek(-_KEPT_BYTES, 2)
                kept = file.read(_KEPT_BYTES)
                file.truncate(0)
            with self.path.open("ab") as file:
                file.write(kept)


def quote(title: str, lines: list[str]) -> str:
    """Lines under a title, set apart from the message they are appended to; empty when there are none."""
    return "".join(f"\n    | {line}" for line in [f"{title}:", *lines]) if lines else ""


def last_lines(lines: list[str]) -> list[str]:
    """The last lines; where faulthandler wrote a dump, what came before it and the innermost frames of it."""
    dumps = [index for index, line in enumerate(lines) if line.startswith(_FAULT)]
    if not dumps:
        return lines[-_TAIL_LINES:]
    before, dump = lines[: dumps[-1]], lines[dumps[-1] :]
    current = next((i for i, line in enumerate(dump) if line.startswith("Current thread")), 0)
    frames = [_without_folders(line) for line in dump[current : current + _STACK_LINES]]
    return [*before[-_TAIL_LINES // 2 :], dump[0], *frames]


def hung_in(dump: str) -> list[str]:
    """From faulthandler's dump of all threads, the innermost frames of the one that serves requests."""
    threads: list[list[str]] = []
    for line in dump.splitlines():
        if line.startswith(_THREAD):
            threads.append([])
        elif threads and line.startswith("  File "):
            threads[-1].append(_without_folders(line.strip()))
    for frames in threads:
        ours = [index for index, frame in enumerate(frames) if "worker_main.py" in frame]
        if ours:
            return frames[: ours[0] + 1][:_STACK_LINES]
    return []


def _without_folders(line: str) -> str:
    """A line of a traceback with its file's path from the package on: records name no folder of the machine."""

    def short(match: re.Match[str]) -> str:
        parts = match[1].replace("\\", "/").split("/")
        start = parts.index("site-packages") + 1 if "site-packages" in parts else -2
        return f'File "{"/".join(parts[start:])}"'

    return _FILE.sub(short, line)


def exit_description(status: int | None) -> str:
    """How a process ended, by subprocess's exit status: negative is the signal, None is not known."""
    if status is None:
        return "its connection closed"
    if status >= _NTSTATUS:
        name = _WINDOWS_EXITS.get(status)
        return f"exit status 0x{status:08X}" + (f" ({name})" if name else "")
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"


def exit_remedy(status: int | None) -> str:
    """What to look at after a death that was not ours; empty where the exit status says nothing."""
    if status == -getattr(signal, "SIGKILL", 9):
        return (
            "the harness did not kill it, so the kernel may have, for want of memory: "
            "journalctl -k | grep -i 'out of memory'"
        )
    return ""
