"""The worker's side: a process that hosts one backend and at most one session, and answers requests.

Started by `harness.worker` through execnet. A request is `(operation, arguments)`; an answer is
`("ok", value)` or `("raised", type name, message, remedy, traceback)`.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import os
import platform
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from harness import __version__
from harness.artifacts import Artifact, ensure_exported
from harness.backend import (
    Backend,
    Recipe,
    Session,
    load_backend,
    missing_distributions,
    teacher_force,
    versions_of,
)
from harness.checkpoint import open_checkpoint
from harness.contention import Contention
from harness.device_lock import DeviceLock
from harness.endurance import Endurance
from harness.errors import HarnessError, Unsupported
from harness.operators.bench import Operators
from harness.orphans import PARENT, die_with, lead_group
from harness.outpost import Outpost
from harness.part_recorder import PartRecorder
from harness.products import GivesProducts
from harness.reference_operations import References
from harness.states import GivesStates
from harness.steps import Steps
from harness.stopwatch import time_session
from harness.streaming.operations import Streaming
from harness.target import DeviceKind, Target
from harness.tokenization import Tokenization
from harness.wire import pack, unpack
from harness.witness import Witness


class Channel(Protocol):
    """The two calls of an execnet channel that are used here."""

    def send(self, item: object) -> None: ...  # noqa: D102
    def receive(self, timeout: float | None = None) -> Any: ...  # noqa: D102


def serve(channel: Channel) -> None:
    """Answer requests until the controller says `stop` or goes away."""
    settings = channel.receive()
    here = settings["scratch"] is not None
    folder = Path(settings["scratch"]) if here else Path(tempfile.mkdtemp(prefix="phi3-conformance-"))
    log = Path(settings["log"]) if here else folder / "worker.log"
    group = _prepare_process(log, settings["parent"])
    # Libraries leave files where they are started from; nobody wants them beside the tests.
    _keep_relative_paths()
    os.chdir(folder)
    greeting = {"version": __version__, "pid": os.getpid(), "group": group, "log": str(log)}
    channel.send({**greeting, "python": platform.python_version()})
    try:
        _serve(channel, Host(folder if here else None))
    finally:
        if not here:
            os.chdir(folder.parent)
            shutil.rmtree(folder, ignore_errors=True)


def _keep_relative_paths() -> None:
    """Make variables that name folders mean the same after the working directory has changed."""
    for name in ("PHI3_CONFORMANCE_CACHE", "PHI3_CONFORMANCE_LOCKS", "PYTHONPATH"):
        if os.environ.get(name):
            parts = os.environ[name].split(os.pathsep)
            os.environ[name] = os.pathsep.join(str(Path(part).absolute()) for part in parts if part)


def _serve(channel: Channel, host: Host) -> None:
    while True:
        try:
            request = channel.receive()
        except EOFError:
            return
        if request is None:
            host.close()
            channel.send(("ok", None))
            return
        _answer(channel, host.answer(request))


def _answer(channel: Channel, answer: tuple[Any, ...]) -> None:
    """Send an answer; one that cannot be sent, such as a text with half a surrogate, becomes an error that can."""
    try:
        channel.send(answer)
    except OSError:
        raise
    except Exception as error:  # noqa: BLE001 - what execnet raises depends on how it was started
        problem = f"its answer cannot be sent: {error}"
        channel.send(("raised", type(error).__name__, problem, "", traceback.format_exc()))


def _prepare_process(log: Path, parent: int | None) -> int | None:
    """Keep native output, outlive the terminal's Ctrl-C, and die with the controller; returns the process group.

    execnet points fd 1 at the null device; a driver's last words would be lost. Ctrl-C reaches the whole
    process group, but workers are stopped by the controller, which may want to finish a record first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    group = lead_group()
    die_with(os.getppid() if parent is None else parent)  # on a host its parent is sshd, which ends with the connection
    if parent is not None:
        _offer_to_the_kernel()
    os.environ[PARENT] = str(os.getpid())
    _write_to(log)
    # Tools that run below the worker must not ask for a terminal, the network's telemetry or colours.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    return group


def _offer_to_the_kernel() -> None:
    """Have Linux kill this process, and not the controller, when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def _write_to(log: Path) -> None:
    """Send all output, and the stack of a crash or, on SIGUSR1, of a hang, to the log."""
    try:
        file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError:  # a full disk
        file = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):
        os.dup2(file, fd)
    os.close(file)
    sys.stdout, sys.stderr = _stream(1), _stream(2)
    faulthandler.enable(file=sys.stderr, all_threads=True)
    if sys.platform != "win32":
        faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=True)


def _stream(fd: int) -> io.TextIOWrapper:
    return io.TextIOWrapper(LogOutput(fd), encoding="utf-8", errors="replace", line_buffering=True, write_through=True)


class LogOutput(io.BufferedIOBase):
    """Writes to a file descriptor what the disk has room for: a driver's chatter is not worth a session."""

    def __init__(self, fd: int) -> None:
        self.name = f"<log by {fd}>"
        self._fd = fd

    def fileno(self) -> int:
        """The descriptor, for who writes to it past Python."""
        return self._fd

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: Any, /) -> int:
        """Write all of `content`, or as much as goes."""
        view = memoryview(content).cast("B")
        left = view
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(self._fd, left) :]
        return len(view)


class Host:
    """The backend and the session that live in this process; what belongs to neither, the outpost does."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._backend: Backend | None = None
        self._session: Session | None = None
        self._witness: Witness | None = None
        # What neither backend nor session is needed for, and what is about a session only, is kept elsewhere.
        single = Operators(self._opened, lambda: self._witness)
        steps, contention = Steps(self._loaded, self._watched), Contention()
        wear = Endurance(self._opened, self._loaded, self._watched)
        self._others = (
            Outpost(),
            PartRecorder(),
            steps,
            Tokenization(self._loaded),
            single,
            References(),
            Streaming(),
            wear,
            contention,
        )
        self._lock: DeviceLock | None = None

    def answer(self, request: tuple[str, dict[str, Any]]) -> tuple[Any, ...]:
        """Carry out one request; whatever it raises becomes the answer, and the worker lives on."""
        operation, arguments = request
        try:
            value = self._operation(operation)(**unpack(arguments))
            return ("ok", pack(value, self._scratch))
        except HarnessError as error:
            return ("raised", type(error).__name__, error.problem, error.remedy, "")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a runtime may raise anything
            return ("raised", type(error).__name__, str(error), "", traceback.format_exc())

    def _operation(self, name: str) -> Callable[..., Any]:
        """What carries out an operation. Raises AttributeError where nothing does."""
        for owner in (self, *self._others):
            found: Callable[..., Any] | None = getattr(owner, f"do_{name}", None)
            if found is not None:
                return found
        raise AttributeError(f"a worker has no operation {name}")

    def close(self) -> None:
        """Close the session, then let others have its device; a runtime that cannot is left to the process's end."""
        self._close_session()
        if self._lock is not None:
            self._lock.release()

    def _close_session(self) -> None:
        if self._session is not None:
            session, self._session, self._witness = self._session, None, None
            session.close()

    def do_open(self, backend: str) -> dict[str, Any]:
        """Make the backend and say what this interpreter lacks for it."""
        self._backend = load_backend(backend)
        return {
            "missing": missing_distributions(self._backend),
            "versions": versions_of([name for needed in self._backend.distributions for name in needed.split("|")]),
            "executable": sys.executable,
        }

    def do_discover(self, devices: list[str]) -> Any:
        """Look for devices; see `Backend.discover`."""
        return self._opened().discover(devices)

    def do_export(self, checkpoint: str, recipe: dict[str, Any], out: str, trust_remote_code: bool) -> list[str]:
        """Export an artifact; see `Backend.export`."""
        made = msgspec.convert(recipe, Recipe)
        return self._opened().export(Path(checkpoint), made, Path(out), trust_remote_code=trust_remote_code)

    def do_versions(self, names: list[str]) -> dict[str, str]:
        """Versions of installed distributions."""
        return versions_of(names)

    def do_prepare(
        self, checkpoint: str, name: str, key: str, recipe: dict[str, Any], trust_remote_code: bool
    ) -> Artifact:
        """Export on this machine, into its cache, for a controller that cannot: see `harness.artifacts`."""
        made = msgspec.convert(recipe, Recipe)
        backend = self._opened()

        def export(out: Path) -> list[str]:
            return backend.export(Path(checkpoint), made, out, trust_remote_code=trust_remote_code)

        found = open_checkpoint(Path(checkpoint), name=name)
        versions = versions_of(made.exporter)
        return ensure_exported(found, key, backend.name, made, versions, export, announce=print)

    def do_claim(self, target: str) -> Any:
        """Take the lock of the target's device; None when it was taken, else who holds it. A CPU needs none."""
        kind = self._opened().devices[Target.parse(target).base_device]
        if kind is DeviceKind.CPU or self._lock is not None:
            return None
        lock = DeviceLock(kind)
        holder = lock.claim(target)
        if holder is None:
            self._lock = lock
        return holder

    def do_load(self, artifact: str, target: str, options: dict[str, str], trust_remote_code: bool) -> Any:
        """Load the one session of this process."""
        self._close_session()
        backend, parsed = self._opened(), Target.parse(target)
        session = backend.load(Path(artifact), parsed, options=options, trust_remote_code=trust_remote_code)
        self._session = session
        self._witness = Witness(session, backend.devices[parsed.base_device], parsed.base_device)
        return session.info

    def do_teacher_force(self, prompt: list[int], continuation: list[int]) -> Any:
        """Logits of prompt and continuation; see `harness.backend.teacher_force`."""
        with self._watched().work():
            return teacher_force(self._loaded(), _tokens(prompt), _tokens(continuation))

    def do_generate(self, prompt: list[int], max_new_tokens: int, end_tokens: list[int]) -> list[int]:
        """Greedy decoding by the runtime's own loop."""
        with self._watched().work():
            return [int(t) for t in self._loaded().generate(_tokens(prompt), max_new_tokens, end_tokens)]

    def do_measure(self, prompt: list[int], new_tokens: int, seconds: float) -> Any:
        """How long a prompt and each further token take; see `harness.stopwatch`."""
        with self._watched().work():
            return time_session(self._loaded(), _tokens(prompt), new_tokens, seconds)

    def do_evidence(self) -> Any:
        """Where the session's calls were computed: see `harness.witness`."""
        return self._watched().testify()

    def do_invoke(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call a public method that only some sessions have, such as those of the golden reference."""
        if method.startswith("_"):
            raise AttributeError(method)
        return getattr(self._loaded(), method)(**arguments)

    def do_residual_states(self, tokens: list[int], prefill: int) -> Any:
        """The residual stream at every place; see `harness.states.GivesStates`."""
        session = self._loaded()
        if not isinstance(session, GivesStates):
            raise Unsupported(f"the backend {self._opened().name} shows no inner values of a model")
        return session.residual_states(tokens, prefill)

    def do_products(self) -> Any:
        """Single products, see `harness.products.GivesProducts`; none where the session cannot give them."""
        session = self._loaded()
        if not isinstance(session, GivesProducts):
            return {}
        try:
            return session.products()
        except Unsupported:
            return {}

    def _opened(self) -> Backend:
        if self._backend is None:
            raise RuntimeError("no backend was opened in this worker")
        return self._backend

    def _watched(self) -> Witness:
        if self._witness is None:
            raise RuntimeError("no session was loaded in this worker")
        return self._witness

    def _loaded(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session was loaded in this worker")
        return self._session


def _tokens(ids: list[int]) -> Any:
    return np.asarray(ids, dtype=np.int64)
