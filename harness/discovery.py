"""Which devices each runtime finds, on this machine and on the hosts of a lab, asked once for each interpreter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from harness.backend import Backend, DeviceReport
from harness.errors import Stage, StageError
from harness.target import Target, Unavailable
from harness.worker import Worker

Found = DeviceReport | Unavailable


class RuntimeReport(msgspec.Struct, frozen=True):
    """What one interpreter has for a backend: its Python, the versions installed, the devices found.

    `error` is why it could not be asked. `devices` holds what was asked for so far.
    """

    backend: str
    host: str | None
    python: str
    versions: dict[str, str]
    devices: dict[str, DeviceReport | Unavailable]
    error: str = ""


class _Answers:
    """What one interpreter has said so far, and the worker that said it, kept for the first session."""

    def __init__(self) -> None:
        self.python = ""
        self.versions: dict[str, str] = {}
        self.devices: dict[str, Found] = {}
        self.missing: Unavailable | None = None
        self.error: StageError | None = None
        self.spare: Worker | None = None


def _reports(backend: str, found: Any) -> dict[str, Found]:
    """The wire carries builtins; both Structs are tagged, so the union can be told apart. Raises StageError."""
    try:
        return msgspec.convert(found, dict[str, DeviceReport | Unavailable])
    except msgspec.ValidationError as error:
        problem = f"the backend {backend} answered with something else than devices: {error}"
        raise StageError(Stage.DISCOVER, problem, "mend its method discover") from None


class Discovery:
    """Asks runtimes for devices. `hire` makes a worker, not yet started, for a label, a backend and a target."""

    def __init__(
        self,
        backends: Mapping[str, Backend],
        hire: Callable[[str, Target], Worker],
        interpreter: Callable[[Target], Any],
    ) -> None:
        self._backends = backends
        self._hire = hire
        self._interpreter = interpreter
        self._known: dict[tuple[str, str | None, Any], _Answers] = {}

    def find(self, target: Target) -> Found:
        """The target's device, or why it cannot be used. Raises StageError(discover) when looking failed."""
        answers = self._answers(target)
        if answers.error is not None:
            raise answers.error
        if answers.missing is not None:
            return answers.missing
        if target.device not in answers.devices:  # one with an index, which nobody asks for unless it is named
            self._ask(answers, target, [target.device])
        if target.device not in answers.devices:
            raise StageError(Stage.DISCOVER, f"the backend {target.backend} says nothing of the device {target.device}")
        return answers.devices[target.device]

    def take_spare(self, target: Target) -> Worker | None:
        """The worker that was asked for the target's device, if no session has taken it and it still runs."""
        answers = self._known.get(self._key(target))
        if answers is None or answers.spare is None:
            return None
        spare, answers.spare = answers.spare, None
        return spare if spare.running else None

    def reports(self) -> list[RuntimeReport]:
        """All that was found so far."""
        return [
            RuntimeReport(
                backend,
                host,
                answers.python,
                answers.versions,
                dict(answers.devices) or ({"*": answers.missing} if answers.missing else {}),
                str(answers.error or ""),
            )
            for (backend, host, _), answers in self._known.items()
        ]

    def _key(self, target: Target) -> tuple[str, str | None, Any]:
        return target.backend, target.host, self._interpreter(target)

    def _answers(self, target: Target) -> _Answers:
        key = self._key(target)
        if key not in self._known:
            self._known[key] = answers = _Answers()
            mine = [device for device in self._backends[target.backend].devices if self._same(target, device, key)]
            self._ask(answers, target, mine)
        return self._known[key]

    def _same(self, target: Target, device: str, key: tuple[str, str | None, Any]) -> bool:
        """Whether another device of the backend is served by the same interpreter."""
        return self._key(msgspec.structs.replace(target, device=device)) == key

    def _ask(self, answers: _Answers, target: Target, devices: list[str]) -> None:
        worker = self.take_spare(target) or self._hire(f"{target.backend}-discovery", target)
        try:
            if not worker.running:
                self._open(answers, worker, target)
            if answers.missing is not None:
                worker.stop()
                return
            answers.devices |= _reports(target.backend, worker.call(Stage.DISCOVER, "discover", devices=devices))
        except StageError as error:
            worker.stop()
            if answers.devices:  # what was found before stands
                raise
            answers.error = error
            return
        answers.spare = worker

    def _open(self, answers: _Answers, worker: Worker, target: Target) -> None:
        backend = self._backends[target.backend]
        worker.start(Stage.DISCOVER)
        opened = worker.call(Stage.DISCOVER, "open", backend=backend.name)
        answers.python, answers.versions = worker.python, opened["versions"]
        if opened["missing"]:
            names = ", ".join(name.split("|")[0] for name in opened["missing"])
            answers.missing = Unavailable(f"{names} not installed", backend.install)
