"""A target judged without workers: the planted session in this process, the float64 oracle for its reference.

For suites that drive a session step by step, whose planted faults are then found in milliseconds. What lies between
(workers, goldens, evidence, records) is tested by runs of their own.
"""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from harness import phi3_float64
from harness.backend import SessionInfo, teacher_force
from harness.checkpoint import open_checkpoint
from harness.errors import HarnessError, Stage, Unsupported, WorkerRaised
from harness.golden import Golden, open_golden
from harness.options import POLICY
from harness.policy import read_policy
from harness.prompts import PromptSuite, read_suite
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.steps import Steps
from harness.target import Precision, Target
from harness.worker import NO_MESSAGE
from support import PLANTED, Tiny

if TYPE_CHECKING:
    from phi3_planted import PlantedSession


def _planted() -> ModuleType:
    """The planted backend's module. Its folder is not left on the path, where it would register its backends."""
    sys.path.append(str(PLANTED))
    try:
        return importlib.import_module("phi3_planted")
    finally:
        sys.path.remove(str(PLANTED))


class _NoWitness:
    """Evidence is not what is tested."""

    def work(self) -> Any:
        return contextlib.nullcontext()


class DirectRun:
    """What a suite asks of `harness.run.Run`."""

    def __init__(self, tiny: Tiny) -> None:
        checkpoint, suite = open_checkpoint(tiny.checkpoint), read_suite(tiny.prompts)
        self.settings = SimpleNamespace(checkpoint=checkpoint, policy=read_policy(POLICY), suites=(suite,))
        self._golden = open_golden((tiny.golden,), checkpoint, checkpoint.fingerprint(), suite)

    def golden(self, suite: PromptSuite) -> Golden:  # noqa: ARG002 - there is one
        return self._golden

    def case(self, suite: PromptSuite, prompt_id: str) -> PromptCase:
        return PromptCase(suite.name, self._golden.case(prompt_id), self._golden)

    def golden_rows(self, tokens: Sequence[int], prefill: int | None = None) -> NDArray[np.float32]:
        fed = len(tokens) if prefill is None else prefill
        return phi3_float64.forward(self.settings.checkpoint, [list(tokens)], [fed])[0].astype(np.float32)


class DirectTarget:
    """What a suite asks of `TargetSession`, of a session in this process."""

    def __init__(self, tiny: Tiny) -> None:
        self.target = Target("planted", "cpu", Precision.FP32)
        self.run = DirectRun(tiny)
        self.session: PlantedSession = _planted().PlantedSession(Path(tiny.checkpoint), self.target)
        self._steps = Steps(lambda: cast(Any, self.session), lambda: cast(Any, _NoWitness()))

    @property
    def info(self) -> SessionInfo:
        return self.session.info

    @property
    def compute_class(self) -> Precision:
        return Precision.FP32

    @property
    def alive(self) -> bool:
        return True

    def infer(self) -> None:
        """No arithmetic: the session is held against the golden reference."""

    def references(self) -> None:
        """None."""

    def call(self, operation: str, **arguments: Any) -> Any:
        try:
            if operation == "generate":
                tokens = np.asarray(arguments.pop("prompt"), dtype=np.int64)
                return self.session.generate(tokens, **arguments)
            if operation == "teacher_force":
                return teacher_force(self.session, *(np.asarray(v, dtype=np.int64) for v in arguments.values()))
            return getattr(self._steps, f"do_{operation}")(**arguments)
        except Unsupported as error:
            raise Unsupported(f"{self.target}: {error.problem}", error.remedy) from None
        except HarnessError:
            raise
        except Exception as error:  # noqa: BLE001 - as in a worker
            words = str(error).strip() or NO_MESSAGE  # as a worker's error has it
            problem = f"{self.target} raised {type(error).__name__} in {operation}: {words}"
            raise WorkerRaised(Stage.RUN, problem) from None


def direct(tiny: Tiny) -> TargetSession:
    """The planted session as a target."""
    return cast(TargetSession, DirectTarget(tiny))
