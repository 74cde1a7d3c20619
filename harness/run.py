"""A run: what the user asked for, and what its targets share: goldens, discovery, the reference."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.backend import Backend, DeviceReport
from harness.checkpoint import Checkpoint, Fingerprint
from harness.devices import find_interpreter
from harness.errors import GoldenError, HarnessError, ResourceError, Stage, StageError
from harness.golden import TREE, Case, Golden, open_golden
from harness.policy import Policy
from harness.prompts import PromptSuite
from harness.recording import check_memory, start_reference
from harness.target import DeviceKind, Target, Unavailable
from harness.worker import Worker


class Settings(msgspec.Struct, frozen=True):
    """What the user asked for. `artifacts` and `recipes` pair a target or glob with a folder or a recipe's name."""

    checkpoint: Checkpoint
    fingerprint: Fingerprint
    suites: tuple[PromptSuite, ...]
    golden_roots: tuple[Path, ...]
    policy: Policy
    artifacts: tuple[tuple[str, Path], ...] = ()
    recipes: tuple[tuple[str, str], ...] = ()
    interpreters: dict[str, Path] = {}
    timeouts: dict[Stage, float] = {}
    trust_remote_code: bool = False


class PromptCase(msgspec.Struct, frozen=True):
    """A prompt of a suite as its golden holds it."""

    suite: str
    case: Case
    golden: Golden

    @property
    def id(self) -> str:
        """The prompt's id."""
        return self.case.id

    def logits(self) -> NDArray[np.float32]:
        """The golden's logits, `[n + m, V]` float32."""
        return self.golden.logits(self.case.id)

    def choosing_logits(self) -> NDArray[np.float32]:
        """The golden's logits at the positions that chose its m continuation tokens, `[m, V]` float32."""
        start = len(self.case.tokens) - 1
        return self.logits()[start : start + len(self.case.continuation)]


class Run:
    """Backends, goldens, workers and caches of one process. `close` stops the workers that no session owns."""

    def __init__(self, settings: Settings, backends: Mapping[str, Backend], announce: Callable[[str], None]) -> None:
        self.settings = settings
        self.backends = backends
        self.announce = announce
        self.scratch = Path(tempfile.mkdtemp(prefix="phi3-conformance-"))
        self._goldens: dict[str, Golden] = {}
        self._discovered: dict[str, dict[str, DeviceReport | Unavailable] | Unavailable | StageError] = {}
        self._spare: dict[str, Worker] = {}
        self._reference: Worker | StageError | None = None
        self._reference_logits: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def golden(self, suite: PromptSuite) -> Golden:
        """The verified golden of a suite. Raises GoldenError."""
        if suite.name not in self._goldens:
            found = open_golden(self.settings.golden_roots, self.settings.checkpoint, self.settings.fingerprint, suite)
            self._goldens[suite.name] = found
        return self._goldens[suite.name]

    def case(self, suite: PromptSuite, prompt_id: str) -> PromptCase:
        """A prompt with its golden."""
        golden = self.golden(suite)
        return PromptCase(suite.name, golden.case(prompt_id), golden)

    def kind(self, target: Target) -> DeviceKind:
        """The kind of device that a target names."""
        return self.backends[target.backend].devices[target.base_device]

    def new_worker(self, label: str, backend: Backend) -> Worker:
        """A worker, not yet started, under the interpreter that has the backend's runtime."""
        interpreter = find_interpreter(backend, self.settings.interpreters, TREE)
        return Worker(label, self.scratch, interpreter=interpreter, timeouts=self.settings.timeouts)

    def take_worker(self, target: Target) -> Worker:
        """A started worker that has opened the target's backend."""
        spare = self._spare.pop(target.backend, None)
        if spare is not None and spare.running:
            spare.label = str(target)
            return spare
        backend = self.backends[target.backend]
        worker = self.new_worker(str(target), backend)
        worker.start()
        try:
            worker.call(Stage.LOAD, "open", backend=backend.name)
        except BaseException:
            worker.stop()
            raise
        return worker

    def find_device(self, target: Target) -> DeviceReport | Unavailable:
        """The target's device, or why it cannot be used. Raises StageError(discover) when looking failed."""
        if target.backend not in self._discovered:
            self._discovered[target.backend] = self._discover(self.backends[target.backend])
        found = self._discovered[target.backend]
        if isinstance(found, StageError):
            raise found
        if isinstance(found, Unavailable):
            return found
        if target.device not in found:
            worker = self.take_worker(target)
            try:
                found |= _reports(worker.call(Stage.DISCOVER, "discover", devices=[target.device]))
            finally:
                worker.stop()
        if target.device not in found:
            raise StageError(Stage.DISCOVER, f"the backend {target.backend} says nothing of the device {target.device}")
        return found[target.device]

    def _discover(self, backend: Backend) -> dict[str, DeviceReport | Unavailable] | Unavailable | StageError:
        """Ask a backend for all its devices at once; its worker is kept for the first session."""
        worker = self.new_worker(f"{backend.name}-discovery", backend)
        try:
            worker.start(Stage.DISCOVER)
            opened = worker.call(Stage.DISCOVER, "open", backend=backend.name)
            if opened["missing"]:
                worker.stop()
                names = ", ".join(name.split("|")[0] for name in opened["missing"])
                return Unavailable(f"{names} not installed", backend.install)
            found = _reports(worker.call(Stage.DISCOVER, "discover", devices=list(backend.devices)))
        except StageError as error:
            worker.stop()
            return error
        self._spare[backend.name] = worker
        return found

    def reference_logits(self, case: Case, tokens: Sequence[int]) -> NDArray[np.float32]:
        """FP32 PyTorch's logits at the positions that chose `tokens` after the case's prompt, `[m, V]` float32.

        Raises StageError(compare) when the reference cannot be run here.
        """
        key = (*case.tokens, *tokens)
        if key not in self._reference_logits:
            rows = self._ask_reference(list(key))
            self._reference_logits = {key: rows}  # the last one only: several tests ask for the same in a row
        start = len(case.tokens) - 1
        return self._reference_logits[key][start : start + len(tokens)]

    def _ask_reference(self, tokens: list[int]) -> NDArray[np.float32]:
        if self._reference is None:
            self._reference = self._start_reference(len(tokens))
        if isinstance(self._reference, StageError):
            raise self._reference
        try:
            arguments = {"method": "whole_logits", "arguments": {"tokens": tokens}}
            rows: NDArray[np.float32] = self._reference.call(Stage.RUN, "invoke", **arguments)
        except StageError as error:
            if not self._reference.running:
                self._reference = None
            raise _no_reference(error) from None
        return rows

    def _start_reference(self, length: int) -> Worker | StageError:
        worker = self.new_worker("reference", self.backends["pytorch"])
        try:
            check_memory(self.settings.checkpoint, length)
            start_reference(self.settings.checkpoint, worker, trust_remote_code=self.settings.trust_remote_code)
        except (StageError, GoldenError, ResourceError) as error:
            worker.stop()
            return _no_reference(error)
        return worker

    def close(self) -> None:
        """Stop every worker that no session owns and delete the scratch folder."""
        for worker in (*self._spare.values(), self._reference):
            if isinstance(worker, Worker):
                worker.stop()
        self._spare.clear()
        shutil.rmtree(self.scratch, ignore_errors=True)


def _no_reference(error: HarnessError) -> StageError:
    return StageError(Stage.COMPARE, f"the golden reference cannot be run: {error.problem}", error.remedy)


def _reports(found: Mapping[str, Any]) -> dict[str, DeviceReport | Unavailable]:
    # The wire carries builtins; both Structs are tagged, so the union can be told apart.
    return {device: msgspec.convert(report, DeviceReport | Unavailable) for device, report in found.items()}
