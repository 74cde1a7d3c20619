"""One target in a run: its artifact, its session, and what that answered; of its process see `session_worker`."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.artifacts import Artifact
from harness.backend import Capabilities, SessionInfo
from harness.compare import Rows, Verdict, compare_logits
from harness.decompose import ArtifactReferences, Inference, Undecomposed
from harness.details import Answer, answer
from harness.errors import StageError, Unsupported
from harness.exact_weights import audit_of, open_references
from harness.findings import AuditReport
from harness.loading import check_session, claim_device, load_session
from harness.localise import Localisation
from harness.longrope import crossed, switch_of
from harness.policy import compute_class
from harness.preparation import prepare
from harness.probes import Repeats, choose_probes
from harness.record import Repeat, Speed, Timings
from harness.run import PromptCase, Run
from harness.session_worker import SessionWorker
from harness.states import States
from harness.stopwatch import Times
from harness.target import Evidence, Precision, Target, matches
from harness.tokenization import OPERATIONS
from harness.worker import Worker
from harness.yardstick import Decomposed

T = TypeVar("T")


class TargetSession:
    """The controller's handle on one target: answers are remembered, failures too."""

    def __init__(self, run: Run, target: Target) -> None:
        self.run = run
        self.target = target
        self.kind = run.kind(target)
        self.artifact: Artifact | None = None
        self._location = ""
        self.info: SessionInfo | None = None
        self.process = SessionWorker(run, target, self._start)
        self._known: dict[tuple[str, str, str], Any] = {}
        self._answers: dict[tuple[str, str], Answer] = {}
        self._generated: list[tuple[list[int], int]] = []
        self._repeats = Repeats()
        self.timings: Timings | None = None
        """How long it took to prepare and to load, the first time."""
        self._evidence: Evidence | None = None
        self._last_evidence: Evidence | None = None
        self._computed = False
        self._references: ArtifactReferences | None = None
        self.inference: Inference | None = None
        self.first_bad: str | None = None
        """Where it breaks, on the first prompt that failed by its implementation error; None before one has."""
        self.localisation: Localisation | None = None
        """The errors by sublayer behind `first_bad`, where it could be found."""
        self.speed: tuple[Speed, ...] = ()
        """What was measured of it last, shortest prompt first."""
        self.undecomposed = ""
        """Why the total error is not taken apart; empty where it is, or was not yet asked for."""

    def start(self) -> None:
        """Prepare the artifact and load it. Raises StageError with the stage that failed, see `SessionWorker.start`."""
        self.process.start()

    def _start(self) -> None:
        """Load, in a new worker.

        What an earlier process answered is forgotten: its evidence would not be this one's.
        """
        self._evidence, self._computed = None, False
        self._repeats.forget()
        self._known = {key: value for key, value in self._known.items() if isinstance(value, StageError)}
        began = time.monotonic()
        worker = self.run.take_worker(self.target)
        starting = time.monotonic() - began
        self.process.load(worker, lambda worker: self._load(worker, starting))

    def _load(self, worker: Worker, starting: float) -> None:
        settings = self.run.settings
        if self.artifact is None:
            self.run.step(f"{self.target}: preparing the artifact")
            self.artifact, self._location = prepare(self.run, self.target, worker)
        self.process.refused = claim_device(worker, self.target, settings.device_wait, self.run.announce)
        if self.process.refused is not None:
            raise self.process.refused
        began = time.monotonic()
        self.run.step(f"{self.target}: loading and compiling")
        self.info = load_session(worker, self.target, self._location, self.load_options, settings)
        if self.timings is None:
            self.timings = Timings(self.artifact.export_seconds, time.monotonic() - began, starting)
        check_session(self.info, self.target, settings.checkpoint.vocabulary)

    @property
    def load_options(self) -> dict[str, str]:
        """What the session is loaded with beyond the runtime's defaults; its verdicts are diagnostic then."""
        given = self.run.settings.load_options
        return {name: value for pattern, name, value in given if matches(self.target, pattern)}

    def recomputes(self, prompt: PromptCase, tokens: Sequence[int]) -> bool:
        """Whether `generate` computed a prompt with the answer `tokens` anew where LongRoPE switched: by its design."""
        case, switch = prompt.case, switch_of(self.run.settings.checkpoint.config)
        crossing = crossed(switch, len(case.tokens), len(case.tokens) + len(tokens))
        return self.info is not None and self.info.capabilities.recomputes(crossing)

    @property
    def compute_class(self) -> Precision:
        """The class whose limits apply: the coarser of the weights' precision and of the arithmetic read back."""
        return compute_class(self.target.precision, self.info.arithmetic if self.info else None)

    def errors(self, prompt: PromptCase) -> Rows | Decomposed | Verdict:
        """Teacher-forced logits compared position by position; a verdict if they do not compare.

        With the golden, and where the artifact's weights can be read with the reference on them as well.
        """
        return self._remember("logits", prompt, lambda: self.compare(prompt, self.logits(prompt)))

    def logits(self, prompt: PromptCase) -> NDArray[np.float32]:
        """What the session gives for a prompt and its continuation, teacher-forced; not remembered, being large."""
        case = prompt.case
        self._check_length(prompt, len(case.continuation))
        found: NDArray[np.float32] = self.call(
            "teacher_force", prompt=list(case.tokens), continuation=list(case.continuation)
        )
        return found

    def compare(self, prompt: PromptCase, logits: NDArray[np.float32]) -> Rows | Decomposed | Verdict:
        """The session's logits compared, as `errors` gives it."""
        case = prompt.case
        whole = self.info is None or self.info.capabilities.whole_prompt_logits
        golden = prompt.rows()
        total = compare_logits(golden, logits, len(case.tokens), whole_prompt=whole)
        self._answers[prompt.suite, prompt.id] = answer(logits, total)
        inference = self.infer() if isinstance(total, Rows) else None
        self._repeats.see(prompt, logits, keep=not self.repeats)
        if isinstance(total, Rows) and not self.repeats:  # without an inference nothing is asked twice otherwise
            self._repeats.see(prompt, self.logits(prompt))
        if inference is None or isinstance(total, Verdict):
            return total
        assert self._references is not None
        return self._references.decompose(golden, logits, total, case.sequence, len(case.tokens), inference)

    def answer(self, prompt: PromptCase) -> Answer | None:
        """What is kept of the logits that were compared last; None where there were none."""
        return self._answers.get((prompt.suite, prompt.id))

    @property
    def repeats(self) -> tuple[Repeat, ...]:
        """How far answers to the same prompt lie from each other."""
        return tuple(self._repeats.found)

    def references(self) -> ArtifactReferences | None:
        """The references on the artifact's exact weights; None where there are none, and `undecomposed` says why."""
        if self._references is None and not self.undecomposed:
            self.run.step(f"{self.target}: reading the artifact's exact weights")
            try:
                self._references = self._open_references()
            except Undecomposed as error:
                self.undecomposed = str(error)
        return self._references

    def audit(self) -> AuditReport:
        """The audit of the artifact's weights. Raises Unsupported where they cannot be read without its runtime."""
        assert self.artifact is not None
        return audit_of(self.run, self.target, self.artifact, self.info, self.call)

    def infer(self) -> Inference | None:
        """The arithmetic in effect, inferred from what the device gives for a few prompts; None without references."""
        references = self.references()
        if references is None or self.info is None:
            return None
        references.foresee(self._generated, exact=False)
        if self.inference is None:
            self.run.step(f"{self.target}: finding out how it computes")
            probes = [probe for probe in map(self._probe, choose_probes(self.run, self.info)) if probe is not None]
            if not probes:
                self.undecomposed = "no prompt of middling length has logits that compare"
                references.close()
                self._references = None
                return None
            self.inference = references.infer(self.info.permitted, probes, self.call("products"))
        return self.inference

    def watch(self, prompt: PromptCase) -> tuple[States, NDArray[np.float32]]:
        """The residual stream of prompt and continuation, and the logits of the session when it is not watched.

        See `harness.states.GivesStates`. Not remembered: it is large.
        """
        case = prompt.case
        self._check_length(prompt, len(case.continuation))
        states = self.call("residual_states", tokens=list(case.sequence), prefill=len(case.tokens))
        return states, self.logits(prompt)

    def generate(self, prompt: PromptCase) -> list[int]:
        """Greedy tokens by the runtime's own loop, the end token included."""
        return self._remember("generate", prompt, lambda: self._generate(prompt))

    def measure(self, prompt: list[int], new_tokens: int, seconds: float) -> Times:
        """How long a prompt and each further token take; see `harness.stopwatch`."""
        return msgspec.convert(self.call("measure", prompt=prompt, new_tokens=new_tokens, seconds=seconds), Times)

    def evidence(self) -> Evidence:
        """Where the session's calls were computed; a counter says nothing before anything was, so two tokens are."""
        if not self._computed:
            self.call("teacher_force", prompt=[0], continuation=[0])
        if self._evidence is None:
            self._evidence = self._last_evidence = msgspec.convert(self.call("evidence"), Evidence)
        return self._evidence

    @property
    def known_evidence(self) -> Evidence | None:
        """The last evidence gathered, if only of a process that has died since; None before the first.

        It is for the record: cases are judged by `evidence`, which is the present process's.
        """
        return self._last_evidence

    def versions(self) -> dict[str, str]:
        """Versions of the distributions that compute."""
        return dict(self.info.versions) if self.info else {}

    @property
    def alive(self) -> bool:
        """See `SessionWorker.alive`."""
        return self.process.alive

    def rest(self) -> None:
        """See `SessionWorker.rest`."""
        self.process.rest()

    def restart(self, *, spare_the_old: bool = False) -> None:
        """See `SessionWorker.restart`."""
        self.process.restart(spare_the_old=spare_the_old)

    @property
    def loading(self) -> dict[str, Any]:
        """The arguments of the operation that loads its artifact: `call("load", **loading)` does so once more."""
        given = {"target": str(self.target), "options": self.load_options}
        return {"artifact": self._location, "trust_remote_code": self.run.settings.trust_remote_code, **given}

    def close(self) -> None:
        """Stop the workers."""
        if self._references is not None:
            self._references.close()
            self._references = None
        self.process.close()

    def _open_references(self) -> ArtifactReferences:
        """Raises Undecomposed."""
        assert self.artifact is not None
        return open_references(self.run, self.target, self.artifact, self.info, self.call)

    def _probe(self, prompt: PromptCase) -> tuple[tuple[int, ...], int, Any] | None:
        """A prompt and what the device gives for it; None where nothing compares, of which its own case will tell."""
        case = prompt.case
        logits = self.logits(prompt)
        self._repeats.see(prompt, logits, keep=True)
        if not self.repeats:  # of the others a second answer comes with their own cases, if these are asked for
            self._repeats.see(prompt, self.logits(prompt))
        whole = self.info is None or self.info.capabilities.whole_prompt_logits
        found = compare_logits(prompt.rows(), logits, len(case.tokens), whole_prompt=whole)
        return None if isinstance(found, Verdict) else (case.sequence, len(case.tokens), logits)

    def _generate(self, prompt: PromptCase) -> list[int]:
        case = prompt.case
        if case.given:
            raise Unsupported(f"the continuation of {prompt.id!r} is given", "it is scored by its logits, see sign-off")
        self._check_length(prompt, case.new_tokens)
        ends = list(prompt.golden.manifest.end_tokens)
        tokens: list[int] = self.call(
            "generate", prompt=list(case.tokens), max_new_tokens=case.new_tokens, end_tokens=ends
        )
        self._generated.append(([*case.tokens, *tokens], len(case.tokens)))  # regret is going to be asked for
        return tokens

    def _check_length(self, prompt: PromptCase, new_tokens: int) -> None:
        """Refuse here what the runtime would refuse by raising, or by ending its process."""
        able = self.info.capabilities if self.info else Capabilities()
        refusal = able.refuses(len(prompt.case.tokens), new_tokens)
        if refusal:
            raise Unsupported(f"{self.target}: {refusal}", able.longer)

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

    def call(self, operation: str, **arguments: Any) -> Any:
        """Have the worker carry out an operation of `harness.worker_main`, in a new one where the last has died.

        Raises StageError(run), Unsupported where the session cannot do that, NotRun where the target was given up.
        """
        value = self.process.call(operation, **arguments)
        if operation != "evidence" and operation not in OPERATIONS:  # a tokenizer has no part of the device
            self._computed, self._evidence = True, None
        return value
