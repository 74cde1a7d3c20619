"""The controller's side of a worker: start it, call it, time it out, bury it and say what it died of."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import execnet
import psutil

from harness import __version__
from harness.errors import Stage, StageError, WorkerDied, WorkerRaised, WorkerTimeout
from harness.wire import pack, unpack

# Seconds allowed for one call, by stage. Export and load of a full-size model take minutes.
TIMEOUTS: dict[Stage, float] = {
    Stage.DISCOVER: 180.0,
    Stage.PREPARE: 7200.0,
    Stage.LOAD: 1800.0,
    Stage.RUN: 1800.0,
}
_START_SECONDS = 60.0
_LAST_WORDS_SECONDS = 10.0
_TAIL_BYTES = 16000
_TAIL_LINES = 24
_FAULT = ("Fatal Python error", "Windows fatal exception")

_BOOTSTRAP = """
try:
    from harness.worker_main import serve
except ImportError as error:
    import sys
    channel.send({"version": None, "python": sys.version.split()[0], "error": str(error)})
else:
    serve(channel)
"""


class Worker:
    """One process that hosts a backend, reached through execnet.

    `interpreter` is the Python it runs under, None for this one. `scratch` is the folder for its log and
    for large arrays. Nothing is started before `start`.
    """

    def __init__(
        self,
        label: str,
        scratch: Path,
        *,
        interpreter: Path | None = None,
        timeouts: Mapping[Stage, float] | None = None,
    ) -> None:
        self.label = label
        self.log = scratch / (label.replace(":", "_").replace("/", "_") + ".log")
        self.pid: int | None = None
        self._scratch = scratch
        self._interpreter = interpreter
        self._timeouts = {**TIMEOUTS, **(timeouts or {})}
        self._group: execnet.Group | None = None
        self._gateway: Any = None
        self._channel: Any = None
        self._busy = False

    @property
    def running(self) -> bool:
        """Whether the process was started and has not been stopped or found dead."""
        return self._channel is not None

    def start(self, stage: Stage = Stage.LOAD) -> None:
        """Start the process and shake hands.

        Raises StageError when the interpreter cannot be run, or lacks this package at this version.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._group = execnet.Group()
        try:
            self._gateway = self._group.makegateway(self._spec())
            self._channel = self._gateway.remote_exec(_BOOTSTRAP)
            self._channel.send(
                {"log": str(self.log), "scratch": str(self._scratch), "share_files": True, "parent": os.getpid()}
            )
            greeting = self._channel.receive(_START_SECONDS)
        except (OSError, EOFError, execnet.TimeoutError, execnet.RemoteError, execnet.HostNotFound) as error:
            self._drop()
            raise StageError(
                stage,
                f"no worker for {self.label}: {self._interpreter or sys.executable} gave {_describe(error)}",
                "name a working Python with --interpreter BACKEND=PATH",
            ) from None
        if greeting["version"] != __version__:
            self._drop()
            raise StageError(stage, *self._wrong_package(greeting))
        self.pid = int(greeting["pid"])

    def call(self, stage: Stage, operation: str, /, **arguments: Any) -> Any:
        """Ask for one operation and wait for its value.

        Raises WorkerRaised when the runtime raised, WorkerDied when the process ended, WorkerTimeout when
        no answer came within the stage's time; after the last two the worker is no longer running.
        """
        if self._channel is None:
            raise StageError(stage, f"the worker of {self.label} is not running")
        self._busy = True
        try:
            self._channel.send((operation, pack(arguments, self._scratch)))
            answer = self._channel.receive(self._timeouts[stage])
            self._busy = False
        except execnet.TimeoutError:
            tail = self.log_tail()
            self.kill()
            raise WorkerTimeout(
                stage,
                f"{self.label} did not answer to {operation} within {self._timeouts[stage]:.0f} s and was killed{tail}",
                f"if it only needs longer: --stage-timeout {stage.value}=SECONDS",
            ) from None
        except (EOFError, OSError):
            raise self._died(stage, operation) from None
        if answer[0] == "ok":
            return unpack(answer[1])
        raise self._raised(stage, operation, *answer[1:])

    def stop(self) -> None:
        """Ask the process to release its session and end; kill it when it will not."""
        if self._busy:  # interrupted in the middle of a call: it would not listen
            self.kill()
        if self._channel is not None:
            with contextlib.suppress(OSError, EOFError, execnet.TimeoutError, execnet.RemoteError):
                self._channel.send(None)
                self._channel.receive(_LAST_WORDS_SECONDS)
        self._drop()

    def kill(self) -> None:
        """End the process at once, with what it started: an exporter would go on writing."""
        if self._gateway is not None:
            _kill_children(self.pid)
            self._gateway._io.kill()
        self._drop()

    def log_tail(self) -> str:
        """The last lines of the process's own output, indented for a message; empty when there are none."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
                text = file.read().decode("utf-8", errors="replace")
        except OSError:
            return ""
        lines = _last_words([line for line in text.replace("\r", "\n").splitlines() if line.strip()])
        return "".join(f"\n    | {line}" for line in ["last output of the worker:", *lines]) if lines else ""

    def _spec(self) -> str:
        if self._interpreter is None:
            return "popen//execmodel=main_thread_only"
        path = str(self._interpreter)
        quoted = f'"{path}"' if sys.platform == "win32" else shlex.quote(path)
        return f"popen//execmodel=main_thread_only//python={quoted}"

    def _wrong_package(self, greeting: dict[str, Any]) -> tuple[str, str]:
        python = self._interpreter or sys.executable
        found = greeting["version"]
        problem = (
            f"{python} (Python {greeting['python']}) has no usable phi3-conformance: {greeting.get('error')}"
            if found is None
            else f"{python} has phi3-conformance {found}; this is {__version__}"
        )
        return problem, f"{python} -m pip install -e {Path(__file__).resolve().parent.parent}"

    def _died(self, stage: Stage, operation: str) -> WorkerDied:
        how = _exit_description(self._exit_status())
        tail = self.log_tail()
        self._drop()
        return WorkerDied(stage, f"the worker of {self.label} died in {operation}: {how}{tail}")

    def _raised(self, stage: Stage, operation: str, name: str, message: str, remedy: str, trace: str) -> StageError:
        if trace:
            with contextlib.suppress(OSError), self.log.open("a", encoding="utf-8") as file:
                file.write(trace)
        shown = message.strip() or "(no message)"
        if not trace:  # one of our own errors, already worded for the user
            return WorkerRaised(stage, f"{self.label}: {shown}", remedy)
        return WorkerRaised(stage, f"{self.label} raised {name} in {operation}: {shown}", remedy)

    def _exit_status(self) -> int | None:
        """The child's exit status. execnet offers no public way to it."""
        popen = getattr(getattr(self._gateway, "_io", None), "popen", None)
        if popen is None:
            return None
        try:
            return int(popen.wait(_LAST_WORDS_SECONDS))
        except Exception:  # noqa: BLE001 - subprocess.TimeoutExpired, or whatever an execnet model raises
            return None

    def _drop(self) -> None:
        if self._group is not None:
            self._group.terminate(timeout=_LAST_WORDS_SECONDS)
        self._group = self._gateway = self._channel = None
        self._busy = False


def _kill_children(pid: int | None) -> None:
    with contextlib.suppress(psutil.Error):
        for child in psutil.Process(pid).children(recursive=True) if pid is not None else ():
            child.kill()


def _last_words(lines: list[str]) -> list[str]:
    """The last lines; where faulthandler wrote a dump, what came before it and the innermost frames of it."""
    dumps = [index for index, line in enumerate(lines) if line.startswith(_FAULT)]
    if not dumps:
        return lines[-_TAIL_LINES:]
    before, dump = lines[: dumps[-1]], lines[dumps[-1] :]
    current = next((i for i, line in enumerate(dump) if line.startswith("Current thread")), 0)
    return [*before[-_TAIL_LINES // 2 :], dump[0], *dump[current : current + _TAIL_LINES // 2]]


def _describe(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"


def _exit_description(status: int | None) -> str:
    if status is None:
        return "its connection closed"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
