"""A run's targets: is the device there, which artifact, a worker with a session in it, and what it answered.

`Run` is what one process needs to judge targets; `TargetSession` is the controller's handle on one of
them. A session whose worker died is started again for the next case; one that keeps dying is given up.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.artifacts import Artifact, describe, ensure_exported
from harness.backend import Backend, DeviceReport, SessionInfo
from harness.checkpoint import Checkpoint, Fingerprint
from harness.compare import Policy, Rows, Verdict, compare_logits, compute_class
from harness.devices import find_interpreter
from harness.errors import GoldenError, HarnessError, NotRun, Stage, StageError, UsageError, WorkerDied, WorkerTimeout
from harness.golden import TREE, Case, Golden, open_golden
from harness.prompts import PromptSuite
from harness.recording import start_reference
from harness.target import DeviceKind, Evidence, Precision, Target, Unavailable, matches
from harness.worker import Worker

# A target whose worker has died this often is given up.
MAX_DEATHS = 3

T = TypeVar("T")


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
    """Backends, goldens, workers and caches of one process. Close it, or leave its `with` block."""

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
        worker.call(Stage.LOAD, "open", backend=backend.name)
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
            self._reference = self._start_reference()
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

    def _start_reference(self) -> Worker | StageError:
        worker = self.new_worker("reference", self.backends["pytorch"])
        try:
            start_reference(self.settings.checkpoint, worker, trust_remote_code=self.settings.trust_remote_code)
        except (StageError, GoldenError) as error:
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


class TargetSession:
    """The controller's handle on one target: answers are remembered, failures too."""

    def __init__(self, run: Run, target: Target) -> None:
        self.run = run
        self.target = target
        self.kind = run.kind(target)
        self.artifact: Artifact | None = None
        self.info: SessionInfo | None = None
        self.deaths = 0
        self._worker: Worker | None = None
        self._known: dict[tuple[str, str, str], Any] = {}
        self._evidence: Evidence | None = None

    def start(self) -> None:
        """Prepare the artifact and load it. Raises StageError with the stage that failed."""
        backend = self.run.backends[self.target.backend]
        self._worker = self.run.take_worker(self.target)
        try:
            if self.artifact is None:
                self.artifact = self._prepare(backend, self._worker)
            info = self._worker.call(
                Stage.LOAD,
                "load",
                artifact=str(self.artifact.path),
                target=str(self.target),
                options={},
                trust_remote_code=self.run.settings.trust_remote_code,
            )
        except BaseException:
            self._worker.stop()
            raise
        self.info = msgspec.convert(info, SessionInfo)
        expected = self.run.settings.checkpoint.vocabulary
        if self.info.vocabulary != expected:
            raise StageError(
                Stage.LOAD,
                f"the artifact has a vocabulary of {self.info.vocabulary}, the checkpoint one of {expected}",
                "give the checkpoint that the artifact was made from: --checkpoint",
            )

    @property
    def compute_class(self) -> Precision:
        """The class whose limits apply: the coarser of the weights' precision and of the arithmetic read back."""
        return compute_class(self.target.precision, self.info.arithmetic if self.info else None)

    def errors(self, prompt: PromptCase) -> Rows | Verdict:
        """Teacher-forced logits compared with the golden's, position by position; a verdict if they do not compare."""
        return self._remember("logits", prompt, lambda: self._compare(prompt))

    def generate(self, prompt: PromptCase) -> list[int]:
        """Greedy tokens by the runtime's own loop, the end token included."""
        return self._remember("generate", prompt, lambda: self._generate(prompt))

    def evidence(self) -> Evidence:
        """Where the session's calls were computed."""
        if self._evidence is None:
            self._evidence = msgspec.convert(self._call("evidence"), Evidence)
        return self._evidence

    @property
    def known_evidence(self) -> Evidence | None:
        """The evidence gathered so far, None before the first case."""
        return self._evidence

    def versions(self) -> dict[str, str]:
        """Versions of the distributions that compute."""
        return dict(self.info.versions) if self.info else {}

    def close(self) -> None:
        """Stop the worker."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None

    def _prepare(self, backend: Backend, worker: Worker) -> Artifact:
        settings = self.run.settings
        given = [path for pattern, path in settings.artifacts if matches(self.target, pattern)]
        if given:
            return describe(given[-1], "given")
        named = [name for pattern, name in settings.recipes if matches(self.target, pattern)]
        try:
            recipe = backend.recipe(self.target, named[-1] if named else None)
        except UsageError as error:
            raise StageError(Stage.PREPARE, error.problem, error.remedy) from None
        if recipe is None:
            return describe(settings.checkpoint.path, "checkpoint")

        def export(out: Path) -> list[str]:
            command: list[str] = worker.call(
                Stage.PREPARE,
                "export",
                recipe=recipe,
                checkpoint=str(settings.checkpoint.path),
                out=str(out),
                trust_remote_code=settings.trust_remote_code,
            )
            return command

        versions = worker.call(Stage.PREPARE, "versions", names=list(recipe.exporter))
        key = settings.fingerprint.key
        return ensure_exported(
            settings.checkpoint, key, backend.name, recipe, versions, export, announce=self.run.announce
        )

    def _compare(self, prompt: PromptCase) -> Rows | Verdict:
        case = prompt.case
        logits = self._call("teacher_force", prompt=list(case.tokens), continuation=list(case.continuation))
        whole = self.info is None or self.info.capabilities.whole_prompt_logits
        return compare_logits(prompt.logits(), logits, len(case.tokens), whole_prompt=whole)

    def _generate(self, prompt: PromptCase) -> list[int]:
        case = prompt.case
        ends = list(prompt.golden.manifest.end_tokens)
        tokens: list[int] = self._call(
            "generate", prompt=list(case.tokens), max_new_tokens=case.new_tokens, end_tokens=ends
        )
        return tokens

    def _remember(self, what: str, prompt: PromptCase, compute: Callable[[], T]) -> T:
        """Compute once a case; an error is remembered too, so that a crash is not repeated by every test of it."""
        key = (what, prompt.suite, prompt.id)
        if key not in self._known:
            try:
                self._known[key] = compute()
            except StageError as error:
                self._known[key] = error
        found = self._known[key]
        if isinstance(found, StageError):
            raise found
        value: T = found
        return value

    def _call(self, operation: str, **arguments: Any) -> Any:
        if self._worker is None or not self._worker.running:
            if self.deaths >= MAX_DEATHS:
                raise NotRun(f"{self.target} was given up after its worker had died {self.deaths} times")
            self.start()
        assert self._worker is not None
        try:
            return self._worker.call(Stage.RUN, operation, **arguments)
        except (WorkerDied, WorkerTimeout):
            self.deaths += 1
            raise


def _no_reference(error: HarnessError) -> StageError:
    return StageError(Stage.COMPARE, f"the golden reference cannot be run: {error.problem}", error.remedy)


def _reports(found: Mapping[str, Any]) -> dict[str, DeviceReport | Unavailable]:
    # The wire carries builtins; both Structs are tagged, so the union can be told apart.
    return {device: msgspec.convert(report, DeviceReport | Unavailable) for device, report in found.items()}
