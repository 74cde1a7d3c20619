"""A run: what the user asked for, and what its targets share: goldens, discovery, the reference."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.backend import Backend, DeviceReport, Recipe
from harness.checkpoint import Checkpoint, Fingerprint
from harness.connection import Host
from harness.crew import Crew
from harness.errors import GoldenError, HarnessError, ResourceError, Stage, StageError
from harness.golden import Case, Golden, open_golden
from harness.policy import Policy
from harness.prompts import PromptSuite
from harness.recording import check_memory, start_reference
from harness.target import DeviceKind, Target, Unavailable
from harness.watch import Limits
from harness.worker import Worker

DEVICE_WAIT = 1800.0


class Settings(msgspec.Struct, frozen=True):
    """What the user asked for. `artifacts`, `recipes` and `load_options` begin with a target or glob.

    A recipe is one of the backend's by its name, or one of the user's own.
    """

    checkpoint: Checkpoint
    fingerprint: Fingerprint
    suites: tuple[PromptSuite, ...]
    golden_roots: tuple[Path, ...]
    policy: Policy
    artifacts: tuple[tuple[str, Path], ...] = ()
    recipes: tuple[tuple[str, str | Recipe], ...] = ()
    load_options: tuple[tuple[str, str, str], ...] = ()
    interpreters: dict[str, PurePath] = {}
    hosts: dict[str, Host] = {}
    device_wait: float = DEVICE_WAIT
    """Seconds that a session waits for an NPU or GPU that another process uses."""
    timeouts: dict[Stage, float] = {}
    worker_memory: int | None = None
    """Bytes that a worker may hold, None for no limit."""
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


def _untold(_: str) -> None:
    """Nobody looks on."""


class Run:
    """Backends, goldens, workers and caches of one process. `close` stops every worker.

    `announce` is told what must be known, `step` what is happening now. Raises ResourceError when the temporary folder
    has no room for one of ours.
    """

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[str, Backend],
        announce: Callable[[str], None],
        step: Callable[[str], None] = _untold,
    ) -> None:
        self.settings = settings
        self.backends = backends
        self.announce = announce
        self.step = step
        self.limits = Limits(settings.timeouts, settings.worker_memory)
        self.crew = Crew(backends, interpreters=settings.interpreters, hosts=settings.hosts, limits=self.limits)
        self._goldens: dict[str, Golden] = {}
        self._reference: Worker | StageError | None = None
        self._reference_logits: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def golden(self, suite: PromptSuite) -> Golden:
        """The verified golden of a suite. Raises GoldenError."""
        if suite.name not in self._goldens:
            found = open_golden(self.settings.golden_roots, self.settings.checkpoint, self.settings.fingerprint, suite)
            self._goldens[suite.name] = found
        return self._goldens[suite.name]

    @property
    def goldens(self) -> Mapping[str, Golden]:
        """The goldens verified so far, by suite."""
        return self._goldens

    def case(self, suite: PromptSuite, prompt_id: str) -> PromptCase:
        """A prompt with its golden."""
        golden = self.golden(suite)
        return PromptCase(suite.name, golden.case(prompt_id), golden)

    def kind(self, target: Target) -> DeviceKind:
        """The kind of device that a target names."""
        return self.backends[target.backend].devices[target.base_device]

    def find_device(self, target: Target) -> DeviceReport | Unavailable:
        """The target's device, or why it cannot be used. Raises StageError(discover) when looking failed."""
        return self.crew.discovery.find(target)

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

    def golden_rows(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """FP32 PyTorch's logits of a text, fed at once, `[n, V]` float32. Raises StageError(compare)."""
        return self._ask_reference(list(tokens))

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
        worker = self.crew.hire_for("reference", "pytorch")
        try:
            check_memory(self.settings.checkpoint, length)
            start_reference(self.settings.checkpoint, worker, trust_remote_code=self.settings.trust_remote_code)
        except (StageError, GoldenError, ResourceError) as error:
            worker.stop()
            return _no_reference(error)
        return worker

    def close(self) -> None:
        """Stop every worker and delete the scratch folder."""
        self.crew.close()


def _no_reference(error: HarnessError) -> StageError:
    return StageError(Stage.COMPARE, f"the golden reference cannot be run: {error.problem}", error.remedy)
