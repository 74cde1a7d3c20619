"""The few prompts that a session is asked before any case, and again later.

The arithmetic in effect is inferred from its answers, and from the second ones how much its runtime varies.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.backend import Capabilities, SessionInfo
from harness.record import Repeat
from harness.run import PromptCase, Run

_PROBES = 6
_PROBE_TOKENS = 56
_KEPT_BYTES = 256 << 20


def choose_probes(run: Run, info: SessionInfo | None) -> list[PromptCase]:
    """A few prompts of middling length, with their answers, which the session can take."""
    able = info.capabilities if info else Capabilities()
    suites = run.settings.suites
    prompts = [run.case(suite, case.id) for suite in suites for case in run.golden(suite).manifest.cases]
    fitting = [p for p in prompts if len(p.case.tokens) > 1]
    fitting = [p for p in fitting if not able.refuses(len(p.case.tokens), len(p.case.continuation))]
    return sorted(fitting, key=lambda prompt: abs(len(prompt.case.sequence) - _PROBE_TOKENS))[:_PROBES]


class Repeats:
    """How far a session's answers to one prompt lie from each other: the noise of its runtime, which costs nothing.

    First answers are kept while they may be wanted, since a vocabulary of 200,000 makes them large.
    """

    def __init__(self) -> None:
        self.found: list[Repeat] = []
        self._kept: dict[tuple[str, str], NDArray[np.float32]] = {}

    def see(self, prompt: PromptCase, logits: NDArray[np.float32], *, keep: bool = False) -> None:
        """Compare an answer `[n, V]` with the first one to the same prompt, or else be told to `keep` it as the first.

        Answers that do not compare are no noise: their own case tells of them.
        """
        key = (prompt.suite, prompt.id)
        first = self._kept.pop(key, None)
        if first is None:
            if keep and logits.nbytes + sum(kept.nbytes for kept in self._kept.values()) <= _KEPT_BYTES:
                self._kept[key] = logits
            return
        if first.shape == logits.shape and np.isfinite(first).all() and np.isfinite(logits).all():
            self.found.append(_repeat(prompt.id, first, logits))

    def forget(self) -> None:
        """Another process answers from here on: what the one before gave is not this one's first answer."""
        self._kept.clear()


def _repeat(prompt_id: str, first: NDArray[np.float32], second: NDArray[np.float32]) -> Repeat:
    if first.tobytes() == second.tobytes():
        return Repeat(prompt_id, True, 0.0, 0.0, 0.0)
    errors = metrics.compare_rows(first, second)
    rms = errors.centred_rms
    return Repeat(prompt_id, False, float(rms.mean()), float(rms.max()), float(errors.kl.mean()))
