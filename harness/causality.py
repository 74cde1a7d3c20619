"""Causality: what comes later in a text never changes what was computed earlier in it."""

from __future__ import annotations

import numpy as np

from harness.compare import Verdict
from harness.consistency import Allowance, Comparisons
from harness.errors import Unsupported
from harness.sessions import TargetSession
from harness.stepping import Oracle, Stepper, text_of

# Tokens that two texts share, around the sizes of tiles, and tokens after them in which they differ.
SHARED = (1, 2, 16, 17, 64, 65, 128, 129)
_OTHERS = 19
_EXACT = Allowance(1.0, 0.0, "the runtime repeats itself to the last bit")


def later_tokens(session: TargetSession) -> Verdict:
    """Two texts that differ in their last tokens, each fed at once, give the same rows before these.

    To the last bit where the runtime repeats itself so, since shapes are the same; otherwise within the allowance.
    """
    stepper = Stepper(session)
    if not stepper.able.whole_prompt_logits:
        raise Unsupported(
            "the session gives the logits of a prompt's last token only, so earlier ones cannot be looked at",
            stepper.able.longer and "load it for all: --load-option='openvino:*:*=whole-prompt=yes'",
        )
    with stepper.left_clean():
        found = Comparisons(_EXACT if _repeats(session, stepper) else Oracle(session).allowance())
        for shared in (n for n in SHARED if n + _OTHERS <= stepper.context):
            text = text_of(session, shared)
            one, other = (stepper.feed([[*text, *text_of(session, _OTHERS, start)]]) for start in (600, 1100))
            found.see(f"{shared} tokens, then {_OTHERS} others", one[:shared], other[:shared], 0)
    return found.verdict()


def _repeats(session: TargetSession, stepper: Stepper) -> bool:
    """Whether the same text gives the same bits twice."""
    text = text_of(session, 48)
    return np.array_equal(stepper.feed([text]), stepper.feed([text]))
