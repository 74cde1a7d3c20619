"""Have a loaded target watched on one prompt, and say where it breaks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.errors import HarnessError, Unsupported
from harness.localise import Localisation, judge
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.states import LOGITS


def trace(session: TargetSession, prompt: PromptCase) -> Localisation:
    """Where a started session breaks on a prompt and its continuation.

    Raises Unsupported where the artifact's weights cannot be read or the prompt is too long for the session, and
    StageError where the runtime shows no inner values or fails.
    """
    references = session.references()
    if references is None or session.info is None:
        raise Unsupported(f"{session.target} has no reference to localise by: {session.undecomposed}")
    case = prompt.case
    states, plain = session.watch(prompt)
    inference = session.infer()
    permitted = (inference.permitted if inference else ()) or session.info.permitted
    found = references.examine(states, case.sequence, len(case.tokens), permitted)
    return Localisation(
        target=str(session.target),
        prompt=prompt.id,
        arithmetic=found.arithmetic,
        distances=found.distances,
        sublayers=judge(found),
        undisturbed=_relative(states[LOGITS], plain),
    )


def first_bad(session: TargetSession, prompt: PromptCase) -> str:
    """A line for the report of a failure: the first bad sublayer, or why none can be named. Raises nothing of ours."""
    try:
        session.localisation = trace(session, prompt)
        return session.localisation.sentence
    except HarnessError as error:
        return f"first bad: not localised, {error.problem.splitlines()[0]}"


def _relative(watched: NDArray[np.float32], plain: NDArray[np.float32]) -> float:
    if watched.shape != plain.shape or not (np.isfinite(watched).all() and np.isfinite(plain).all()):
        return float("nan")
    return float(metrics.compare_rows(watched, plain).centred_relative.mean())
