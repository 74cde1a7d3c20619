"""Have a loaded target answer the prompts that known faults would show on, and weigh every suspect."""

from __future__ import annotations

import numpy as np

from harness.compare import Verdict, compare_logits
from harness.errors import Unsupported, WorkerRaised
from harness.probes import choose_probes
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.suspects import Suspicion, weigh

# Few positions of a prompt lie past the window, and neighbours err alike.
_FAR = 2


def suspicions(session: TargetSession) -> list[Suspicion]:
    """Every suspect for a started session, those that explain most of its error first.

    Raises Unsupported where the artifact's weights cannot be read, or too few positions have logits that compare,
    StageError where the runtime or the reference fails.
    """
    inference, references = session.infer(), session.references()
    if inference is None or references is None:
        raise Unsupported(f"{session.target} has no reference to hold faults against: {session.undecomposed}")
    answers = []
    for prompt in _prompts(session):
        case = prompt.case
        try:
            logits = session.logits(prompt)
        except WorkerRaised:  # its own case tells of it
            continue
        whole = session.info is None or session.info.capabilities.whole_prompt_logits
        if not isinstance(compare_logits(prompt.rows(), logits, len(case.tokens), whole_prompt=whole), Verdict):
            answers.append((case.sequence, len(case.tokens), np.asarray(logits)))
    if not answers:
        raise Unsupported(f"{session.target}: no prompt of middling length has logits that compare")
    found = weigh(references.lineup(answers, inference.arithmetic))
    if not any(one.heard for one in found):
        raise Unsupported(
            f"{session.target}: the prompts asked ({len(answers)}) have too few positions to tell known faults",
            "give more prompts, or longer ones: --prompts",
        )
    return found


def _prompts(session: TargetSession) -> list[PromptCase]:
    """The session's probes, and the two shortest prompts that go past the sliding window with their answers."""
    run, window = session.run, session.run.settings.checkpoint.config.get("sliding_window")
    chosen = choose_probes(run, session.info)
    able = session.info.capabilities if session.info else None
    every = [run.case(suite, case.id) for suite in run.settings.suites for case in run.golden(suite).manifest.cases]
    taken = {(prompt.suite, prompt.id) for prompt in chosen}  # asked twice, its errors would count as independent
    far = [
        prompt
        for prompt in every
        if window
        and (prompt.suite, prompt.id) not in taken
        and len(prompt.case.sequence) > window + 8
        and not (able and able.refuses(len(prompt.case.tokens), len(prompt.case.continuation)))
    ]
    return [*chosen, *sorted(far, key=lambda prompt: len(prompt.case.sequence))[:_FAR]]
