"""Four acceptance rules in use elsewhere, on the same data: golden against device, the three errors together.

| rule | alarm |
| --- | --- |
| top-5 at divergence | at the first differing greedy token, either's choice is not among the other's five best |
| top-1 / top-5 floors | the golden's best token is best at fewer than 89 % of positions, or in the best five at 99 % |
| KL doubled | mean KL above twice that of the same target without the fault |
| rtol / atol | a logit differs by more than 1e-2 + 1e-2 x its own size |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detection.battery.trial import Logits
from harness import metrics

NAMES = ("top-5 at divergence", "top-1/top-5 floors", "KL doubled", "rtol/atol")


def apply(
    golden: Sequence[Logits], device: Sequence[Logits], prefills: Sequence[int], usual_kl: float
) -> dict[str, bool | None]:
    """Which rules raise an alarm. `prefills`: each prompt's length; `usual_kl`: mean KL without the fault, in nat."""
    if any(g.shape != d.shape or not np.isfinite(d).all() for g, d in zip(golden, device, strict=True)):
        return dict.fromkeys(NAMES)
    everything, all_of_device = np.concatenate(list(golden)), np.concatenate(list(device))
    best = everything.argmax(axis=1)
    top1 = float((best == all_of_device.argmax(axis=1)).mean())
    top5 = float((_best_five(all_of_device) == best[:, None]).any(axis=1).mean())
    diverged = any(not _mutual(g[n - 1 :], d[n - 1 :]) for g, d, n in zip(golden, device, prefills, strict=True))
    alarms = (
        diverged,
        top1 < 0.89 or top5 < 0.99,
        mean_kl(golden, device) > 2 * usual_kl,
        not np.allclose(all_of_device, everything, rtol=1e-2, atol=1e-2),
    )
    return dict(zip(NAMES, alarms, strict=True))


def mean_kl(golden: Sequence[Logits], device: Sequence[Logits]) -> float:
    """Mean KL over all positions, in nat."""
    return float(np.concatenate([metrics.kl_divergence(g, d) for g, d in zip(golden, device, strict=True)]).mean())


def _best_five(logits: Logits) -> np.ndarray:
    return np.argpartition(logits, -5, axis=1)[:, -5:]


def _mutual(golden: Logits, device: Logits) -> bool:
    """Rows that choose tokens: whether each one's choice at the first divergence is among the other's five best."""
    ours, theirs = golden.argmax(axis=1), device.argmax(axis=1)
    differing = np.flatnonzero(ours != theirs)
    if differing.size == 0:
        return True
    at = int(differing[0])
    return bool(
        (_best_five(golden[at : at + 1])[0] == theirs[at]).any()
        and (_best_five(device[at : at + 1])[0] == ours[at]).any()
    )
