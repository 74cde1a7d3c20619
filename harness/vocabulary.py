"""Whether single entries of the vocabulary are computed wrongly throughout a suite.

A row of the LM head is one of tens of thousands. Where its token is improbable, KL does not see it, and the centred RMS
error hardly: a driver that computes the last, odd tile of the LM head wrongly passes by both. So of each entry the
mean of the centred difference is taken over all positions where it was looked at, and held against the spread of the
other entries that were looked at as often. Spread is the median absolute deviation, times 1.4826 as for Gaussian
numbers: what is wrong with a few entries has no part in it. Nor does one wild position make an entry wrong: it must be
off to the same side at so many of its positions that chance does not explain it.

Honest errors differ from entry to entry as well: a quantised LM head has an error of its own in every row, which no
mean takes away. They make the spread, so that a fault is seen against the golden where it is larger than
quantisation's errors by the factor of the policy, and against the artifact reference where it is larger than rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.compare import Outcome, Verdict
from harness.metrics import EntryErrors, Floats, RowErrors
from harness.policy import Limit

# Fewer looks at an entry are no mean, and fewer entries that were looked at as often no measure of spread.
_LOOKS, _ENTRIES = 3, 128
_MAD = 1.4826
# Below this share of the largest a spread is the last bit of FP32 results and no measure of a runtime.
_FLOOR, _TINY = 1e-6, 1e-12
# Looks to one side less those to the other, in units of their standard deviation where both are as likely; of few looks
# all must be to one side.
_TO_ONE_SIDE = 3.0
# Entries that a message names.
_NAMED = 4


class Off(NamedTuple):
    """How far entries are off, in logits and in spreads, and how often each was looked at; all `[V]`.

    NaN in spreads where an entry is not judged: it was hardly looked at, or too few were as often as it. Zero where it
    is off now to one side and now to the other.
    """

    logits: Floats
    spreads: Floats
    looks: NDArray[np.int64]


def weigh(found: Sequence[EntryErrors], scale: float) -> Off:
    """How far entries are off over all of a suite's prompts; `scale`: the centred RMS of its rows, in logits."""
    width = found[0].vocabulary
    sums, above, looks = np.zeros(width), np.zeros(width), np.zeros(width, dtype=np.int64)
    for one in found:
        if one.entries is None:
            sums += one.sums
            above += one.above
            looks += one.looks
        else:
            sums += np.bincount(one.entries, weights=one.sums, minlength=width)
            above += np.bincount(one.entries, weights=one.above, minlength=width)
            looks += np.bincount(one.entries, minlength=width)
    logits = sums / np.maximum(looks, 1)
    to_one_side = np.abs(2 * above - looks) >= np.minimum(looks, _TO_ONE_SIDE * np.sqrt(looks))
    spreads = np.full(width, np.nan)
    for count in np.unique(looks[looks >= _LOOKS]).tolist():
        alike = looks == count
        if int(alike.sum()) >= _ENTRIES:
            distance = np.abs(logits[alike] - np.median(logits[alike]))
            spread = max(_MAD * float(np.median(distance)), _FLOOR * scale, _TINY)
            spreads[alike] = np.where(to_one_side[alike], distance / spread, 0.0)
    return Off(logits, spreads, looks)


def judge_entries(errors: Sequence[RowErrors], limit: Limit, name: str) -> Verdict:
    """Hold the entry that is furthest off against the limit, in spreads; `name` says which error this is.

    A suite with too few positions for any entry to be judged passes, and its numbers say of how many entries it does.
    """
    seen = [rows.entries for rows in errors if rows.entries is not None]
    if not seen:  # every comparison gives them: without, this check would pass for ever
        return Verdict(
            Outcome.FAIL, {f"{name}_entries": 0.0}, {}, f"{name} error: no entry of the vocabulary was compared"
        )
    scales = [rows.centred_rms / np.maximum(rows.centred_relative, 1e-300) for rows in errors]
    off = weigh(seen, float(np.concatenate(scales).mean()))
    judged = ~np.isnan(off.spreads)
    numbers = {f"{name}_entries": float(judged.sum())}
    bounds = {f"{name}_entry_spreads": limit.limit}
    if not judged.any():
        return Verdict(Outcome.PASS, numbers, bounds)
    worst = int(np.nanargmax(off.spreads))
    numbers |= {
        f"{name}_entry": float(worst),
        f"{name}_entry_spreads": float(off.spreads[worst]),
        f"{name}_entry_logits": float(off.logits[worst]),
    }
    beyond = np.flatnonzero(off.spreads > limit.limit)
    if not beyond.size:
        return Verdict(Outcome.PASS, numbers, bounds)
    message = (
        f"{name} error: entry {worst} of the vocabulary is off by {off.logits[worst]:.3g} logits on average over "
        f"{off.looks[worst]} positions, {off.spreads[worst]:.3g} x the spread of the others; "
        f"allowed: {limit.limit:.3g} x ({limit.origin}){_others(beyond, worst)}"
    )
    return Verdict(Outcome.FAIL, numbers, bounds, message)


def _others(beyond: NDArray[np.int64], worst: int) -> str:
    others = [str(entry) for entry in beyond.tolist() if entry != worst]
    if not others:
        return ""
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    return f"; so are {', '.join(others[:_NAMED])}{more}"
