"""The worker's side: a process that hosts one backend and at most one session, and answers requests.

Started by `harness.worker` through execnet. A request is `(operation, arguments)`; an answer is
`("ok", value)` or `("raised", type name, message, remedy, traceback)`.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import platform
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from harness import __version__
from harness.backend import (
    Backend,
    Recipe,
    Session,
    load_backend,
    missing_distributions,
    teacher_force,
    versions_of,
)
from harness.errors import HarnessError
from harness.target import Target
from harness.wire import pack, unpack

_PR_SET_PDEATHSIG = 1


class Channel(Protocol):
    """The two calls of an execnet channel that are used here."""

    def send(self, item: object) -> None: ...  # noqa: D102
    def receive(self, timeout: float | None = None) -> Any: ...  # noqa: D102


def serve(channel: Channel) -> None:
    """Answer requests until the controller says `stop` or goes away."""
    settings = channel.receive()
    _prepare_process(Path(settings["log"]), settings["parent"])
    channel.send({"version": __version__, "pid": os.getpid(), "python": platform.python_version()})
    host = Host(Path(settings["scratch"]) if settings["share_files"] else None)
    while True:
        try:
            request = channel.receive()
        except EOFError:
            return
        if request is None:
            host.close()
            channel.send(("ok", None))
            return
        channel.send(host.answer(request))


def _prepare_process(log: Path, parent: int) -> None:
    """Keep native output, outlive the terminal's Ctrl-C, and die with the controller.

    execnet points fd 1 at the null device; a driver's last words would be lost. Ctrl-C reaches the whole
    process group, but workers are stopped by the controller, which may want to finish a record first.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the controller died before the line above took effect
            os._exit(1)
    file = log.open("ab", buffering=0)
    for fd in (1, 2):
        os.dup2(file.fileno(), fd)
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    faulthandler.enable(file=sys.stderr, all_threads=True)
    # Tools that run below the worker must not ask for a terminal, the network's telemetry or colours.
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class Host:
    """The backend and the session that live in this process."""

    def __init__(self, scratch: Path | None) -> None:
        self._scratch = scratch
        self._backend: Backend | None = None
        self._session: Session | None = None

    def answer(self, request: tuple[str, dict[str, Any]]) -> tuple[Any, ...]:
        """Carry out one request; whatever it raises becomes the answer, and the worker lives on."""
        operation, arguments = request
        try:
            value = getattr(self, f"do_{operation}")(**unpack(arguments))
            return ("ok", pack(value, self._scratch))
        except HarnessError as error:
            return ("raised", type(error).__name__, error.problem, error.remedy, "")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - a runtime may raise anything
            return ("raised", type(error).__name__, str(error), "", traceback.format_exc())

    def close(self) -> None:
        """Close the session; a runtime that cannot is left to the end of the process."""
        if self._session is not None:
            session, self._session = self._session, None
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

    def do_load(self, artifact: str, target: str, options: dict[str, str], trust_remote_code: bool) -> Any:
        """Load the one session of this process."""
        self.close()
        self._session = self._opened().load(
            Path(artifact), Target.parse(target), options=options, trust_remote_code=trust_remote_code
        )
        return self._session.info

    def do_teacher_force(self, prompt: list[int], continuation: list[int]) -> Any:
        """Logits of prompt and continuation; see `harness.backend.teacher_force`."""
        return teacher_force(self._loaded(), _tokens(prompt), _tokens(continuation))

    def do_generate(self, prompt: list[int], max_new_tokens: int, end_tokens: list[int]) -> list[int]:
        """Greedy decoding by the runtime's own loop."""
        return [int(t) for t in self._loaded().generate(_tokens(prompt), max_new_tokens, end_tokens)]

    def do_evidence(self) -> Any:
        """Where the session's calls were computed."""
        return self._loaded().evidence()

    def do_invoke(self, method: str, arguments: dict[str, Any]) -> Any:
        """Call a public method that only some sessions have, such as those of the golden reference."""
        if method.startswith("_"):
            raise AttributeError(method)
        return getattr(self._loaded(), method)(**arguments)

    def _opened(self) -> Backend:
        if self._backend is None:
            raise RuntimeError("no backend was opened in this worker")
        return self._backend

    def _loaded(self) -> Session:
        if self._session is None:
            raise RuntimeError("no session was loaded in this worker")
        return self._session


def _tokens(ids: list[int]) -> Any:
    return np.asarray(ids, dtype=np.int64)
