"""The controller's side of a worker: start it, call it, time it out, bury it and say what it died of."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, Protocol

import execnet

from harness import __version__
from harness.connection import BROKEN, Connection, Host, NotStarted
from harness.errors import HarnessError, Stage, StageError, Unsupported, WorkerDied, WorkerRaised, WorkerTimeout
from harness.last_words import WorkerLog, exit_description, exit_remedy, hung_in, quote
from harness.orphans import Tree
from harness.watch import LOOK_SECONDS, Excess, Limits, MemoryWatch
from harness.wire import pack, unpack

NO_MESSAGE = "(no message)"
"""What stands in an error for the words of a runtime that gave none."""
_START_SECONDS = 60.0
_LAST_WORDS_SECONDS = 10.0
_EXIT_SECONDS = 5.0
_STACK_SECONDS = 1.0
# What a shell's exit status is when it cannot run a command.
_NO_COMMAND = (126, 127)
_serial = itertools.count()

_BOOTSTRAP = """
try:
    from harness.worker_main import serve
except ImportError as error:
    import sys
    channel.send({"version": None, "python": sys.version.split()[0], "error": str(error)})
else:
    serve(channel)
"""


class There(Protocol):
    """What can be asked of a worker's host while, or after, the worker does not answer: see `harness.lab`."""

    def end(self, host: str, pid: int) -> None:
        """Kill a process there."""
        ...

    def tail(self, host: str, log: str) -> str:
        """The end of a log there, as a message quotes it."""
        ...


class Worker:
    """One process that hosts a backend.

    `interpreter` is the Python it runs under, None for this one. `scratch` is the folder for its log and
    for large arrays. `limits` are what its calls may take. On a `host`, interpreter and log are there, and
    `there` looks after it. Nothing is started before `start`.
    """

    def __init__(
        self,
        label: str,
        scratch: Path,
        *,
        interpreter: str | Path | None = None,
        limits: Limits | None = None,
        host: Host | None = None,
        there: There | None = None,
    ) -> None:
        self.label = label
        self.limits = limits or Limits()
        self.pid: int | None = None
        self.python = ""
        """The version of its Python, once started."""
        self.host = host
        self.here = host is None
        """Whether it runs on this machine, so that its process can be looked at, signalled and killed."""
        name = label.replace(":", "_").replace("/", "_")
        self._log = WorkerLog(scratch / f"{name}-{next(_serial)}.log")
        self._scratch = scratch
        self._there = there
        self._log_there = ""
        self._interpreter = None if interpreter is None else str(interpreter)
        self._connection: Connection | None = None
        self._tree: Tree | None = None
        self._watch: MemoryWatch | None = None
        self._busy = False

    @property
    def running(self) -> bool:
        """Whether the process was started and has not been stopped or found dead."""
        return self._connection is not None

    @property
    def listening(self) -> bool:
        """Whether it runs and would answer now: not where Ctrl-C has come between a call and its answer."""
        return self.running and not self._busy

    @property
    def peak_memory(self) -> int:
        """The most bytes that the process has held, 0 where the system does not tell, or tells nobody from here."""
        return self._tree.peak_memory() if self._tree is not None else 0

    def start(self, stage: Stage = Stage.LOAD) -> None:
        """Start the process and shake hands.

        Raises StageError when the interpreter cannot be run, or lacks this package at this version.
        """
        self._scratch.mkdir(parents=True, exist_ok=True)
        try:
            greeting = self._greet()
        except (*BROKEN, AssertionError, execnet.HostNotFound) as error:
            self._bury()
            raise self._not_started(stage, error) from None
        except BaseException:
            self._bury()
            raise
        if greeting["version"] != __version__:
            self._bury()
            raise StageError(stage, *self._wrong_package(greeting))
        self.pid = int(greeting["pid"])
        self.python, self._log_there = greeting["python"], greeting["log"]
        if self.here:
            self._tree = Tree(self.pid, greeting["group"])
            self._watch = MemoryWatch(self._tree, self.limits)

    def call(self, stage: Stage, operation: str, /, **arguments: Any) -> Any:
        """Ask for one operation and wait for its value.

        Raises WorkerRaised when the runtime raised, Unsupported when the session cannot do what is asked, WorkerDied
        when the process ended, held too much memory or garbled its connection, WorkerTimeout when no answer came
        within the stage's time; after the last two the worker is no longer running.
        """
        if self._connection is None:
            raise StageError(stage, f"the worker of {self.label} is not running")
        self._busy = True
        try:
            self._connection.send((operation, pack(arguments, self._scratch if self.here else None)))
            answer = self._wait(self._connection, self.limits.seconds(stage))
        except execnet.TimeoutError:
            raise self._timed_out(stage, operation) from None
        except Excess as error:
            tail = self._tail()
            self.kill()
            problem = f"the worker of {self.label} was killed in {operation}: {error.problem}{tail}"
            raise WorkerDied(stage, problem, error.remedy) from None
        except BROKEN as error:
            raise self._died(self._connection, stage, operation, error) from None
        self._busy = False
        if not isinstance(answer, tuple) or not answer or answer[0] not in ("ok", "raised"):
            raise self._garbled(stage, operation)
        if answer[0] == "ok":
            return unpack(answer[1])
        raise self._raised(stage, operation, *answer[1:])

    def stop(self) -> None:
        """Ask the process to release its session and end; kill it, and what it started, when it will not.

        Takes at most about 20 s, whatever the process does.
        """
        if self._connection is None:
            return
        if self._busy:  # interrupted in the middle of a call: it would not listen
            self.kill()
            return
        if self._tree is not None:
            self._tree.descendants()  # seen now, since once it has ended well nothing tells what it started
        self._busy = True  # who interrupts this does not want to wait for it again
        with contextlib.suppress(*BROKEN):
            self._connection.send(None)
            self._connection.receive(_LAST_WORDS_SECONDS)
            self._connection.ask_to_end()
            self._connection.exit_status(_EXIT_SECONDS)
        self._bury()

    def kill(self) -> None:
        """End the process at once, with what it started: an exporter would go on writing."""
        if self.host is not None and self._there is not None and self.pid is not None:
            self._there.end(self.host.name, self.pid)
        self._bury()

    def _greet(self) -> dict[str, Any]:
        self._connection = Connection(
            self._interpreter, _BOOTSTRAP, self.host, errors=self._log.path, seconds=_START_SECONDS
        )
        settings = {
            "log": str(self._log.path) if self.here else None,
            "scratch": str(self._scratch) if self.here else None,
            "parent": os.getpid() if self.here else None,
        }
        self._connection.send(settings)
        greeting: dict[str, Any] = self._connection.receive(_START_SECONDS)
        return greeting

    def _wait(self, connection: Connection, seconds: float) -> Any:
        """The answer, looking at the worker while it computes. The answer itself is never waited for longer."""
        deadline = time.monotonic() + seconds
        while True:
            self._log.trim()
            if self._watch is not None:
                self._watch.look()
            left = max(0.0, deadline - time.monotonic())
            try:
                return connection.receive(min(left, LOOK_SECONDS))
            except execnet.TimeoutError:
                if left <= LOOK_SECONDS:
                    raise
            if self.here and connection.ended:  # and a child of it holds the connection open
                with contextlib.suppress(execnet.TimeoutError):
                    return connection.receive(LOOK_SECONDS)
                raise EOFError

    def _timed_out(self, stage: Stage, operation: str) -> WorkerTimeout:
        tail = self._tail()
        stack = quote("it hung in", self._stack())
        self.kill()
        seconds = self.limits.seconds(stage)
        problem = f"{self.label} did not answer to {operation} within {seconds:g} s and was killed{stack}{tail}"
        return WorkerTimeout(stage, problem, self.limits.remedy(stage))

    def _stack(self) -> list[str]:
        """Where the worker is in Python, innermost first; nothing where it cannot be asked."""
        if self._tree is None or sys.platform == "win32":
            return []
        start = self._log.size()
        self._tree.signal(signal.SIGUSR1)
        deadline, seen = time.monotonic() + _STACK_SECONDS, start
        while time.monotonic() < deadline:
            time.sleep(0.05)
            if seen > start and self._log.size() == seen:  # the dump has come, and come to its end
                break
            seen = self._log.size()
        return hung_in(self._log.read_from(start))

    def _tail(self) -> str:
        """The last of the worker's output, from wherever it is kept."""
        if self.host is None or self._there is None:
            return self._log.tail()
        return self._there.tail(self.host.name, self._log_there) if self._log_there else ""

    def _not_started(self, stage: Stage, error: BaseException) -> StageError:
        what = _in_words(error)
        if self.host is None:
            remedy = "name a working Python with --interpreter BACKEND=PATH"
            found = f"no worker for {self.label} from {self._interpreter or sys.executable}: {what}"
            return StageError(stage, f"{found}{self._log.tail()}", remedy)
        found = f"no worker on {self.host.name} for {self.label}: {what}{self._log.tail('ssh said')}"
        if isinstance(error, NotStarted) and error.status in _NO_COMMAND:
            return StageError(stage, found, self._remedy_for_python(self.host))
        return StageError(stage, found, f"try: {ssh_command(self.host)}")

    def _remedy_for_python(self, host: Host) -> str:
        """What to do where the shell of a host found no Python to run."""
        if self._interpreter is not None:
            return f"{self._interpreter} cannot be run there: --interpreter BACKEND:{host.name}=PATH names another"
        named = next((part for part in host.spec.split("//") if part.startswith("python=")), "python=python")
        return f"{named} cannot be run there: name a Python of that machine, --host {host.name}=ssh=...//python=PATH"

    def _wrong_package(self, greeting: dict[str, Any]) -> tuple[str, str]:
        python = self._interpreter or (sys.executable if self.host is None else f"the Python of {self.host.name}")
        found = greeting["version"]
        problem = (
            f"{python} (Python {greeting['python']}) has no usable phi3-conformance: {greeting.get('error')}"
            if found is None
            else f"{python} has phi3-conformance {found}; this is {__version__}"
        )
        if self.host is not None:
            return problem, f"install this project at {__version__} there: python -m pip install -e CLONE"
        return problem, f"{python} -m pip install -e {Path(__file__).resolve().parent.parent}"

    def _died(self, connection: Connection, stage: Stage, operation: str, error: BaseException) -> WorkerDied:
        if connection.garbled:
            return self._garbled(stage, operation)
        if isinstance(error, execnet.RemoteError):
            how, remedy = _describe(error), ""
        else:
            status = connection.exit_status(_EXIT_SECONDS)
            how, remedy = exit_description(status), exit_remedy(status)
            if self.host is not None:  # the status is that of ssh
                how, remedy = f"its connection to {self.host.name} ended", ""
        tail = self._tail()
        self.kill()  # on a host it may live on, without a connection
        return WorkerDied(stage, f"the worker of {self.label} died in {operation}: {how}{tail}", remedy)

    def _garbled(self, stage: Stage, operation: str) -> WorkerDied:
        self.kill()
        problem = (
            f"the worker of {self.label} garbled its connection in {operation} and was killed: "
            f"something in it wrote into a file descriptor that is not its own{self._tail()}"
        )
        return WorkerDied(stage, problem)

    def _raised(self, stage: Stage, operation: str, name: str, message: str, remedy: str, trace: str) -> HarnessError:
        shown = message.strip() or NO_MESSAGE
        if name == Unsupported.__name__ and not trace:
            return Unsupported(f"{self.label}: {shown}", remedy)
        if not trace:  # one of our own errors, already worded for the user
            return WorkerRaised(stage, f"{self.label}: {shown}", remedy)
        # A tool that failed below the worker has said why in the log and not to the worker.
        said = self._tail() if name == "CalledProcessError" else ""
        self._log.append(trace)
        return WorkerRaised(stage, f"{self.label} raised {name} in {operation}: {shown}{said}", remedy)

    def _bury(self) -> None:
        """See that nothing of the worker runs any more."""
        connection, tree = self._connection, self._tree
        self._connection = self._tree = self._watch = None
        self._busy = False
        if tree is not None:
            tree.end()
        if connection is not None:
            connection.close()


def ssh_command(host: Host) -> str:
    """The command by which a person would reach a host."""
    target = next((part.partition("=")[2] for part in host.spec.split("//") if part.startswith("ssh=")), host.spec)
    return f"ssh {target}"


def _in_words(error: BaseException) -> str:
    """Why no worker came up."""
    if isinstance(error, execnet.TimeoutError):
        return f"it did not answer within {_START_SECONDS:g} s"
    if isinstance(error, NotStarted):
        return str(error) if error.status is None else f"it ended with {exit_description(error.status)}"
    return "ssh could not connect" if isinstance(error, execnet.HostNotFound) else f"it gave {_describe(error)}"


def _describe(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
