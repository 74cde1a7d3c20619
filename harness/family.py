"""The members of the Phi-3 family that come with the project: a driver is judged on all of them, whatever it validates.

Each is a checkpoint with a real model's configuration at reduced size, and a golden of the prompts in
conformance/family/. A run of a member stands beside that of the checkpoint under validation and shares its workers, its
hosts and its devices; the artifact is exported by the same recipe.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.checkpoint import find_checkpoint
from harness.compare import Outcome, Verdict
from harness.errors import Unsupported
from harness.golden import TREE, golden_roots
from harness.judge import CaseFailed, Judge
from harness.prompts import read_suite
from harness.run import PromptCase, Run
from harness.sessions import TargetSession
from harness.target import Target, matches

PROMPTS = TREE / "conformance" / "family" / "family.jsonl"
MEMBERS: Mapping[str, str] = {"phi-3-5-mini": "phi-3.5-mini-tiny", "phi-4-mini": "phi-4-mini-tiny"}
"""The folders of the members below golden/, by the names that they have in the ids of cases."""
# Numbers that say which, and not how much.
_WHICH = ("token", "chosen", "preferred")


def member_run(run: Run, target: Target, member: str) -> Run:
    """A run of a member beside `run`, by the same settings but for what is the checkpoint's. Close it.

    Raises Unsupported where the target's artifact is ready-made: it is of one checkpoint. GoldenError, CheckpointError.
    """
    if any(matches(target, pattern) for pattern, _ in run.settings.artifacts):
        raise Unsupported(
            f"{target} is judged on a ready-made artifact, and there is none of {MEMBERS[member]}",
            "leave --artifact out, and the family's are exported",
        )
    checkpoint = find_checkpoint(str(TREE / "golden" / MEMBERS[member] / "checkpoint"))
    fingerprint = checkpoint.fingerprint()
    settings = msgspec.structs.replace(
        run.settings,
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        suites=(read_suite(PROMPTS),),
        golden_roots=golden_roots(checkpoint, fingerprint),
    )
    return Run(settings, run.backends, run.announce, run.step, beside=run)


class MemberSession(TargetSession):
    """A session of a member: its few logits are small, and are kept for when they are asked for again."""

    def __init__(self, run: Run, target: Target) -> None:
        super().__init__(run, target)
        self._kept: dict[str, NDArray[np.float32]] = {}

    def logits(self, prompt: PromptCase) -> NDArray[np.float32]:
        """See `TargetSession.logits`; remembered, since what it computes with is inferred from most of them first."""
        if prompt.id not in self._kept:
            self._kept[prompt.id] = super().logits(prompt)
        return self._kept[prompt.id]

    def _start(self) -> None:
        self._kept.clear()
        super()._start()


def prompts_of(session: TargetSession, stretch: str) -> list[PromptCase]:
    """The prompts of a stretch with their goldens: `before`, `across` and `past` LongRoPE's switch.

    Raises GoldenError.
    """
    run = session.run
    suite = run.settings.suites[0]
    return [run.case(suite, prompt.id) for prompt in suite.prompts if prompt.id.startswith(f"{stretch}-")]


def together(judge: Judge, prompts: Sequence[PromptCase], ask: Callable[[Judge, PromptCase], None]) -> Verdict:
    """One verdict on several prompts, each judged by `ask` as a case of its own would be."""
    found = {}
    for prompt in prompts:
        alone = Judge(judge.session, judge.policy, judge.session.run.settings.checkpoint)
        try:
            ask(alone, prompt)
            found[prompt.id] = alone.verdicts[-1]
        except CaseFailed as failed:
            found[prompt.id] = failed.verdict
    return joined(found)


def joined(found: Mapping[str, Verdict]) -> Verdict:
    """Verdicts on prompts in one, which passes where all do: of every number the largest, and how many are wrong."""
    wrong = [verdict for verdict in found.values() if verdict.outcome is not Outcome.PASS]
    numbers: dict[str, float] = {}
    for verdict in found.values():
        for name, value in verdict.numbers.items():
            if name not in _WHICH:
                numbers[name] = max(value, numbers.get(name, value))
    numbers |= {"prompts": float(len(found)), "wrong_prompts": float(len(wrong))}
    limits = {name: value for verdict in found.values() for name, value in verdict.limits.items()}
    if not found:
        return Verdict(Outcome.FAIL, numbers, limits, "zero prompts were compared")
    outcomes = [verdict.outcome for verdict in wrong]
    outcome = Outcome.FAIL if Outcome.FAIL in outcomes else (outcomes or [Outcome.PASS])[0]
    return Verdict(outcome, numbers, limits, "\n".join(verdict.message for verdict in wrong))


def judge_logits(judge: Judge, stretch: str) -> Verdict:
    """Teacher-forced logits of every prompt of a stretch, judged as `test_logits` judges one."""
    session = judge.session
    return together(
        judge, prompts_of(session, stretch), lambda alone, prompt: alone.logits(prompt, session.errors(prompt))
    )


def judge_answers(judge: Judge, stretch: str) -> Verdict:
    """Greedy answers to every prompt of a stretch, judged as `test_greedy_form` and `test_greedy_regret` judge one."""

    def ask(alone: Judge, prompt: PromptCase) -> None:
        tokens = judge.session.generate(prompt)
        alone.form(prompt, tokens)
        alone.regret(prompt, tokens)

    return together(judge, prompts_of(judge.session, stretch), ask)
