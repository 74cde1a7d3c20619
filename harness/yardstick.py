"""The implementation error and the yardstick that it is held against.

Both are centred RMS logit errors against the artifact reference: that of the device, and that of honest ways of
computing the same. Their ratio says how many times honest rounding the device is off. KL will not do for this: it
is quadratic, and its worst position wild. Prefill and decode are kept apart, since they are different kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.compare import Outcome, Rows, Verdict
from harness.metrics import RowErrors
from harness.policy import ImplementationLimits, Limit

Floats = NDArray[np.float64]

# Below this share of the logits' own RMS a yardstick is the rounding of FP32 results and no measure of a runtime:
# variants of a short row may happen to agree to the last bit.
_FLOOR = 1e-7
FEW = 8
"""Positions below which a mean is not judged: see `judge_implementation`."""


class Decomposed(msgspec.Struct, frozen=True):
    """One prompt's errors taken apart.

    `total`: golden against device. `quantisation`: golden against the reference on the artifact's exact weights.
    `implementation`: that reference, in the device's arithmetic, against the device. `yardsticks`: for each honest
    variant its centred RMS errors `[n]`, in logits, a position of the sequence. `prefill`: how many of the
    sequence's tokens were fed at once. `pooled`: see `pool`.
    """

    total: Rows
    quantisation: Rows
    implementation: Rows
    yardsticks: Mapping[str, Floats]
    prefill: int
    compute_class: str
    pooled: Mapping[str, float]


def pool(yardsticks: Sequence[tuple[int, Mapping[str, Floats]]]) -> dict[str, float]:
    """The yardstick of prompts together, each with its prefill: `prefill_mean`, `decode_worst` and so on, in logits.

    Where rounding is chaotic a short prompt may meet no value that rounds the other way, and its own yardstick is then
    that of FP32, while the device meets one. No prompt is judged by less than by what its target's prompts show.
    """
    found: dict[str, float] = {}
    for name in ("prefill", "decode"):
        for variant in yardsticks[0][1]:
            rows = [y[variant][:prefill] if name == "prefill" else y[variant][prefill:] for prefill, y in yardsticks]
            joined = np.concatenate(rows)
            if joined.size:
                for key, value in (("mean", joined.mean()), ("worst", joined.max())):
                    found[f"{name}_{key}"] = max(found.get(f"{name}_{key}", 0.0), float(value))
    return found


class Part(msgspec.Struct, frozen=True):
    """Prefill or decode of one or more prompts: device errors and those of each variant, in logits, and their unit."""

    name: str
    first: int
    errors: Floats
    yardsticks: tuple[Floats, ...]
    pooled: Mapping[str, float]
    floor: float

    @property
    def mean_yardstick(self) -> float:
        """The largest mean of the variants."""
        least = max(self.floor, self.pooled.get(f"{self.name}_mean", 0.0))
        return max(least, *(float(found.mean()) for found in self.yardsticks))

    @property
    def worst_yardstick(self) -> float:
        """The largest position of any variant."""
        least = max(self.floor, self.pooled.get(f"{self.name}_worst", 0.0))
        return max(least, *(float(found.max()) for found in self.yardsticks))


def parts(found: Sequence[Decomposed]) -> Iterator[Part]:
    """Prefill and decode of one or more prompts together, each left out where it has no positions."""
    for name in ("prefill", "decode"):
        cut = [_cut(one, name) for one in found]
        sizes = [errors.size for errors, _, _ in cut]
        if sum(sizes):
            errors = np.concatenate([e for e, _, _ in cut])
            variants = tuple(np.concatenate(v) for v in zip(*(y for _, y, _ in cut), strict=True))
            scale = np.concatenate([s for _, _, s in cut]).mean()
            first = found[0].implementation.first if name == "prefill" else found[0].prefill
            yield Part(name, first, errors, variants, found[0].pooled, _FLOOR * float(scale))


def _cut(found: Decomposed, part: str) -> tuple[Floats, list[Floats], Floats]:
    border = max(0, found.prefill - found.implementation.first)
    rows = slice(0, border) if part == "prefill" else slice(border, None)
    errors: RowErrors = found.implementation.errors
    first = found.implementation.first
    yardsticks = [found.yardsticks[name][first:][rows] for name in sorted(found.yardsticks)]
    scale = errors.centred_rms / np.maximum(errors.centred_relative, 1e-300)
    return errors.centred_rms[rows], yardsticks, scale[rows]


def judge_implementation(found: Sequence[Decomposed], limits: ImplementationLimits, *, suite: bool = False) -> Verdict:
    """Hold mean and worst implementation error, of prefill and of decode, against multiples of the yardstick.

    `found` is one prompt, or all of a suite. The mean of fewer than eight positions scatters like the worst one does,
    and is left to that and to the suite's.
    """
    numbers: dict[str, float] = {}
    lines: list[str] = []
    mean = limits.suite_mean if suite else limits.mean
    for part in parts(found):
        ratios = {
            "mean": float(part.errors.mean()) / part.mean_yardstick,
            "worst": float(part.errors.max()) / part.worst_yardstick,
        }
        numbers[f"implementation_{part.name}_mean"] = float(part.errors.mean())
        numbers[f"implementation_{part.name}_worst"] = float(part.errors.max())
        numbers[f"yardstick_{part.name}_mean"] = part.mean_yardstick
        numbers[f"yardstick_{part.name}_worst"] = part.worst_yardstick
        for key, bound in (("mean", mean), ("worst", limits.worst)):
            numbers[f"ratio_{part.name}_{key}"] = ratios[key]
            judged = key == "worst" or part.errors.size >= FEW or not np.isfinite(ratios[key])
            if judged and not ratios[key] <= bound.limit:
                place = f" at position {part.first + int(part.errors.argmax())}" if key == "worst" else ""
                place = place if len(found) == 1 else ""
                lines.append(_beyond(part, key, ratios[key], numbers, bound) + place)
    bounds = {"ratio_mean": mean.limit, "ratio_worst": limits.worst.limit}
    if not numbers:
        return Verdict(Outcome.FAIL, {}, bounds, "zero positions were compared")
    return Verdict(Outcome.FAIL if lines else Outcome.PASS, numbers, bounds, "\n".join(lines))


def _beyond(part: Part, key: str, ratio: float, numbers: Mapping[str, float], bound: Limit) -> str:
    error, yardstick = numbers[f"implementation_{part.name}_{key}"], numbers[f"yardstick_{part.name}_{key}"]
    return (
        f"implementation error in {part.name}, {key} {error:.3g} logits, is {ratio:.3g} x the yardstick of "
        f"{yardstick:.3g}; allowed: {bound.limit:.3g} x ({bound.origin})"
    )


def judge_regret(
    reference: NDArray[np.floating], tokens: Sequence[int], yardsticks: Sequence[Floats], pooled: float, bound: Limit
) -> Verdict:
    """Every token the device chose must be, for the artifact reference on the device's own text, nearly its best.

    `reference` is `[m, V]` and each yardstick `[m]`, at the rows that chose the m tokens. Regret is in logits; the
    limit is a multiple of the worst of the yardsticks' rows, or of `pooled`, what other prompts show, if that is more.
    """
    absolute = metrics.regret(reference, np.asarray(tokens))
    scale = float(metrics.centred_scale(reference).mean())
    unit = max(_FLOOR * scale, pooled, *(float(found.max()) for found in yardsticks))
    worst = int(absolute.argmax())
    numbers = {
        "regret_worst_logits": float(absolute[worst]),
        "regret_worst": float(absolute[worst]) / scale,
        "regret_yardstick": unit,
        "regret_ratio": float(absolute[worst]) / unit,
        "token": float(worst),
        "chosen": float(tokens[worst]),
        "preferred": float(reference[worst].argmax()),
    }
    limit = {"regret_ratio": bound.limit}
    if numbers["regret_ratio"] <= bound.limit:
        return Verdict(Outcome.PASS, numbers, limit)
    message = (
        f"implementation error: token {worst} of {len(tokens)}: the reference on the artifact's own weights, on the "
        f"device's own text, prefers another by {absolute[worst]:.3g} logits; allowed: {bound.limit * unit:.3g} "
        f"({bound.limit:.3g} x the yardstick of {unit:.3g}: {bound.origin})"
    )
    return Verdict(Outcome.FAIL, numbers, limit, message)
