"""A run: what the user asked for, and what its targets share: goldens, discovery, the reference."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.backend import Backend, DeviceReport, Recipe
from harness.checkpoint import Checkpoint, Fingerprint
from harness.connection import Host
from harness.crew import Crew
from harness.decompose import ArtifactReferences, Undecomposed, reference_key
from harness.devices import this_machine
from harness.errors import GoldenError, HarnessError, ResourceError, Stage, StageError
from harness.golden import Case, Golden, open_golden
from harness.longrope import crossed, generation, switch_of
from harness.policy import Policy
from harness.prompts import PromptSuite
from harness.recording import start_reference
from harness.reference_memory import must_stream
from harness.reference_rows import ReferenceRows
from harness.target import DeviceKind, Precision, Target, Unavailable
from harness.watch import Limits
from harness.worker import Worker

DEVICE_WAIT = 1800.0
_REFERENCE = "artifact-reference"
# Bytes of a model in FP32 up to which a process that is done with it is kept for another, holding it until then.
_SMALL = 1 << 30


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
    memory: int | None = None
    """Bytes that a reference may take, what is free by default; where it needs more, it holds a layer at a time."""
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

    def rows(self) -> ReferenceRows:
        """The golden's n + m rows, whole or compact."""
        return self.golden.rows(self.case.id)

    def choosing_rows(self, *, cached: bool = False) -> ReferenceRows:
        """The golden's rows at the positions that chose its m continuation tokens; see `Golden.choosing_logits`."""
        return self.golden.choosing_rows(self.id, cached=cached)


def _untold(_: str) -> None:
    """Nobody looks on."""


class Run:
    """Backends, goldens, workers and caches of one process. `close` stops every worker.

    `beside` is another run whose workers, hosts and devices this one shares. `announce` is told what must be known,
    `step` what is happening now. Raises ResourceError when the temporary folder has no room for one of ours.
    """

    def __init__(
        self,
        settings: Settings,
        backends: Mapping[str, Backend],
        announce: Callable[[str], None],
        step: Callable[[str], None] = _untold,
        beside: Run | None = None,
    ) -> None:
        self.settings = settings
        self.backends = backends
        self.announce = announce
        self.step = step
        self._beside = beside
        self.limits: Limits = beside.limits if beside else Limits(settings.timeouts, settings.worker_memory)
        self.crew: Crew = beside.crew if beside else self._new_crew()
        self._goldens: dict[str, Golden] = {}
        self._reference: Worker | ArtifactReferences | StageError | None = None
        self._longest = 0
        self._reference_logits: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def _new_crew(self) -> Crew:
        given = self.settings
        return Crew(self.backends, interpreters=given.interpreters, hosts=given.hosts, limits=self.limits)

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

    def reference_logits(self, case: Case, tokens: Sequence[int], *, recomputes: bool = True) -> NDArray[np.float32]:
        """FP32 PyTorch's logits at the positions that chose `tokens` after the case's prompt, `[m, V]` float32.

        `recomputes`: as generation gives them that computes a text anew at LongRoPE's switch, else with its cache kept.
        Raises StageError(compare) when the reference cannot be run here.
        """
        key = (*case.tokens, *tokens, recomputes)
        if key not in self._reference_logits:
            rows = self._rows_of(case, tokens, recomputes=recomputes)
            self._reference_logits = {key: rows}  # the last one only: several tests ask for the same in a row
        start = len(case.tokens) - 1
        return self._reference_logits[key][start : start + len(tokens)]

    def _rows_of(self, case: Case, tokens: Sequence[int], *, recomputes: bool) -> NDArray[np.float32]:
        whole = [*case.tokens, *tokens]
        switch = crossed(switch_of(self.settings.checkpoint.config), len(case.tokens), len(whole))
        if switch and not recomputes:
            return self._ask_reference(whole, prefill=len(case.tokens))
        passes = generation(len(whole), len(whole), switch, recomputes=recomputes)
        return np.concatenate([self._ask_reference(whole[: one.end])[one.first :] for one in passes])

    def golden_rows(self, tokens: Sequence[int], prefill: int | None = None) -> NDArray[np.float32]:
        """FP32 PyTorch's logits of a text, fed at once, `[n, V]` float32. Raises StageError(compare).

        With `prefill`, of which so many tokens are fed at once and then the others one by one.
        """
        return self._ask_reference(list(tokens), prefill)

    def _ask_reference(self, tokens: list[int], prefill: int | None = None) -> NDArray[np.float32]:
        """Rows `[n, V]` of a text, fed at once, or `prefill` tokens of it and then one by one."""
        reference = self._reference_for(len(tokens))
        if isinstance(reference, ArtifactReferences):
            return reference.logits(tokens, len(tokens) if prefill is None else prefill, Arithmetic())
        try:
            arguments: dict[str, Any] = {"method": "whole_logits", "arguments": {"tokens": tokens}}
            operation = "invoke"
            if prefill is not None:
                arguments = {"prompt": tokens[:prefill], "continuation": tokens[prefill:]}
                operation = "teacher_force"
            rows: NDArray[np.float32] = reference.call(Stage.RUN, operation, **arguments)
        except StageError as error:
            if not reference.running:
                self._reference = None
            raise _no_reference(error) from None
        return rows

    def _reference_for(self, length: int) -> Worker | ArtifactReferences:
        """The golden reference, with memory for a text of so many tokens and for all of the goldens. StageError."""
        if self._reference is not None and length > self._longest:
            self._let_reference_go()
        if self._reference is None:
            texts = (case.sequence for golden in self._goldens.values() for case in golden.manifest.cases)
            longest = max([length, *map(len, texts)])
            try:
                streamed = must_stream(self.settings.checkpoint, longest, self.settings.memory)
            except ResourceError as error:  # a shorter text may fit
                raise _no_reference(error) from None
            self._longest = longest
            self._reference = self._start_streaming() if streamed else self._start_reference()
        if isinstance(self._reference, StageError):
            raise self._reference
        return self._reference

    def _start_reference(self) -> Worker | StageError:
        worker = self.crew.hire_for("reference", "pytorch")
        try:
            start_reference(self.settings.checkpoint, worker, trust_remote_code=self.settings.trust_remote_code)
        except (StageError, GoldenError) as error:
            worker.stop()
            return _no_reference(error)
        return worker

    def _start_streaming(self) -> ArtifactReferences | StageError:
        """The checkpoint as the artifact that it is for PyTorch, a layer at a time."""
        checkpoint = self.settings.checkpoint
        opening = {"backend": "pytorch", "artifact": str(checkpoint.path), "config": checkpoint.config}
        found = ArtifactReferences(
            lambda: self.crew.hire_for("reference", "pytorch"),
            opening,
            reference_key(["golden"], self.settings.fingerprint.key, this_machine().processor),
            streamed=True,
            tell=lambda what: self.step(f"the golden reference: {what}"),
        )
        try:
            found.open()
        except Undecomposed as reason:
            problem = f"the golden reference cannot be run: {reason}"
            return StageError(Stage.COMPARE, problem, "python -m pip install -e .[pytorch]")
        except StageError as error:
            return _no_reference(error)
        return found

    def _let_reference_go(self) -> None:
        if isinstance(self._reference, ArtifactReferences):
            self._reference.close()
        elif isinstance(self._reference, Worker):
            self._reference.stop()
        self._reference = None

    def take_worker(self, target: Target) -> Worker:
        """A started worker that has opened the target's backend, to load a session in. Raises StageError.

        A run beside another uses one process for all sessions of a backend where nothing speaks against it: starting
        one takes longer than loading what is small.
        """
        kept = self.crew.take_idle(target.backend, target) if self._in_turn(target) else None
        if kept is None:
            return self.crew.take(target)
        kept.label = str(target)
        return kept

    def dismiss(self, target: Target, worker: Worker) -> None:
        """Stop a session's worker, or keep it for the next of the same backend: see `take_worker`."""
        if self._beside is not None:
            self.dismiss_for_others(target, worker)
        else:
            worker.stop()

    def dismiss_for_others(self, target: Target, worker: Worker) -> None:
        """Stop a session's worker, or keep it for a run beside this one, which may begin with a used process."""
        if worker.running and self._may_be_shared(target):
            self.crew.keep_idle(target.backend, target, worker)
        else:
            worker.stop()

    def _in_turn(self, target: Target) -> bool:
        return self._beside is not None and self._may_be_shared(target)

    def _may_be_shared(self, target: Target) -> bool:
        """Whether sessions may follow each other in one process: what is kept holds its model until the next."""
        alone = getattr(self.backends[target.backend], "one_model_a_process", False)
        return self._is_small and not alone and target.host is None and self.kind(target) is DeviceKind.CPU

    @functools.cached_property
    def _is_small(self) -> bool:
        return 4 * self.settings.checkpoint.parameters() <= _SMALL

    def hire_reference(self) -> Worker:
        """A worker for the references of an artifact, started or not; the same for all artifacts of a small model."""
        target = Target("pytorch", "cpu", Precision.FP32)
        kept = self.crew.take_idle(_REFERENCE, target) if self._is_small else None
        return kept or self.crew.hire_for(_REFERENCE, "pytorch")

    def dismiss_reference(self, worker: Worker) -> None:
        """Stop a worker that `hire_reference` gave, or keep it for the next artifact."""
        if worker.running and self._is_small:
            self.crew.keep_idle(_REFERENCE, Target("pytorch", "cpu", Precision.FP32), worker)
        else:
            worker.stop()

    def close(self) -> None:
        """Stop every worker and delete the scratch folder; those of a run beside another are the other's to stop."""
        if self._beside is None:
            self.crew.close()
        else:
            self._let_reference_go()


def _no_reference(error: HarnessError) -> StageError:
    return StageError(Stage.COMPARE, f"the golden reference cannot be run: {error.problem}", error.remedy)
