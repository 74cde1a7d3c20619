"""A golden's logits held against the float64 oracle and against its own answers, before it is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from harness import metrics, phi3_float64
from harness.checkpoint import Checkpoint
from harness.errors import GoldenError
from harness.golden import Case, Noise
from harness.longrope import recomputed

# The largest difference between FP32 PyTorch and the float64 oracle that is rounding: in logits, or in
# units of the logits' centred RMS where that is above 1 (large models have logits in the tens).
ORACLE_TOLERANCE = 1e-4
# Models up to this size are checked on every case, larger ones on the two shortest: the float64 pass
# over everything would take longer than the recording.
_CHECK_ALL_PARAMETERS = 20_000_000
_CHECK_LARGE_CASES = 2

Logits = Mapping[str, NDArray[np.float32]]
"""`[n + m, V]` by the id of a case."""


def measure_noise(checkpoint: Checkpoint, cases: Sequence[Case], logits: Logits, fresh: Logits | None = None) -> Noise:
    """Compare recorded logits, and the rows of fresh passes where there are some, with the float64 oracle.

    Raises GoldenError when they differ by more than rounding: then one of the two is wrong, and no golden
    must come of it.
    """
    checked = sorted(cases, key=lambda case: len(case.sequence))
    if checkpoint.parameters() > _CHECK_ALL_PARAMETERS:
        checked = checked[:_CHECK_LARGE_CASES]
    passes = [(case, logits[case.id], len(case.tokens)) for case in checked]
    passes += [(case, fresh[case.id], len(case.sequence)) for case in checked if fresh and case.id in fresh]
    oracle = phi3_float64.forward(checkpoint, [case.sequence for case, _, _ in passes], [n for _, _, n in passes])
    worst, scale, rms = 0.0, 1.0, []
    for (case, rows, _), whole in zip(passes, oracle, strict=True):
        exact = whole[-rows.shape[0] :]
        must_be_finite(checkpoint, case.id, rows)
        worst = max(worst, float(np.abs(rows - exact).max()))
        scale = max(scale, float(metrics.centred_scale(exact).max()))
        rms.append(metrics.centred_rms_error(exact, rows))
    if not worst <= ORACLE_TOLERANCE * scale:
        raise GoldenError(
            f"FP32 PyTorch and the float64 oracle differ by {worst:.2e} logits; "
            f"rounding explains {ORACLE_TOLERANCE * scale:.0e}",
            "look for a broken torch build or a configuration that one of the two misreads; nothing was written",
        )
    joined = np.concatenate(rms)
    return Noise(tuple(case.id for case in checked), float(joined.mean()), float(joined.max()), worst)


def must_be_finite(checkpoint: Checkpoint, prompt_id: str, rows: NDArray[np.float32]) -> None:
    """Raise GoldenError where logits `[n, V]` have NaN or Inf; of large models the oracle looks at few prompts."""
    found = metrics.first_non_finite(rows) if rows.size else None
    if found is not None:
        raise GoldenError(
            f"{checkpoint.name}, {prompt_id!r}: FP32 PyTorch gives NaN or Inf at position {found[0]}",
            "look for a broken torch build or checkpoint; nothing was written",
        )


def check_choices(
    checkpoint: Checkpoint, cases: Sequence[Case], chosen: Callable[[Case], NDArray[np.float32]], noise: Noise
) -> None:
    """Greedy decoding went through the KV cache, the logits did not: both must choose the same tokens.

    `chosen` gives of a case `[m, V]`: the logits at the positions that chose the continuation.
    """
    allowed = 100 * max(noise.max_abs, 1e-6)
    for case in cases:
        if case.given:
            continue
        regret = metrics.regret(chosen(case), np.asarray(case.continuation))
        if regret.max() > allowed:
            raise GoldenError(
                f"{checkpoint.name}, {case.id!r}: decoding with a cache chose token {int(regret.argmax())} of the "
                f"continuation {regret.max():.2e} logits below the best of the pass without one; "
                f"rounding explains {allowed:.0e}",
                "look for a defect in this version of transformers; nothing was written",
            )


def choosing(case: Case, logits: Logits, fresh: Logits) -> NDArray[np.float32]:
    """The rows that choose the continuation, as `generate` computes them."""
    rows = recomputed(logits[case.id], fresh[case.id], case.switch) if case.switch else logits[case.id]
    start = len(case.tokens) - 1
    return rows[start : start + len(case.continuation)]
