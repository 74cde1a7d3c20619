"""What compact rows of a golden take and tell, against whole ones.

    python tests/benchmarks/compact.py [--vocabulary 32064] [--vocabulary 200064] [--positions 1000] [--seed 1]

For rows of three shapes (flat: no token above a few per mille; usual: logits as a language model's; peaked: one token
nearly certain) and noise of the size of FP16, INT8 and INT4 (the centred relative errors measured in
`conformance/policy.toml`), of which `--own` (by default a third) of the variance is an error of each entry's own, as a
quantised LM head makes it, the rest drawn anew at every position:

- bytes a position in the file, against whole rows (four bytes an entry) and llama.cpp's base file (two, and eight),
- mean KL from compact rows against the exact one, the standard error of that, and the spread of the z-scores of single
  positions, which is 1 where standard errors are right; likewise for the mean centred relative error,
- the worst position's KL, exact, and as compact rows are judged by (an estimate less two standard errors),
- one entry of the tail, of probability around 1e-9, 1 logit too high throughout: how many spreads of the others it is
  off, and the most that any honest entry is, see `harness.vocabulary`,
- milliseconds of processor time a position to compare device rows with whole and with compact ones, and to make
  compact ones.

Nothing is asserted but that KL is within 2 %; 1 is the exit status where it is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from harness import metrics
from harness.compact import CompactRows
from harness.compact_plan import Lengths, Plan, places_of, plan_for
from harness.compacting import compacted
from harness.metrics import EntryErrors, RowErrors
from harness.vocabulary import weigh

Rows = NDArray[np.float32]

NOISE = {"FP16": 2e-3, "INT8": 2.5e-2, "INT4": 0.21}
SHAPES = ("flat", "usual", "peaked")
TOLERANCE = 0.02
_BATCH, _PROMPT, _TEXT = 64, 60, 124
# The entry that is changed: unlikely at every position.
_CHANGED = 777


class Errors(NamedTuple):
    """Errors of one kind of noise by whole and by compact rows, batch by batch."""

    exact: list[RowErrors]
    compact: list[RowErrors]
    changed: list[EntryErrors]


def rows_of(shape: str, count: int, vocabulary: int, generator: np.random.Generator) -> Rows:
    """`[count, V]` logits: the same sort of tokens is unlikely at every position, as in a language model."""
    spread = 1.0 if shape == "flat" else 2.5
    usual = np.random.default_rng(5).normal(size=vocabulary)
    rows = spread * (0.6 * usual + 0.8 * generator.normal(size=(count, vocabulary)))
    rows[:, _CHANGED] = rows.mean() - (4 if shape == "flat" else 8)
    if shape != "flat":
        heads = generator.integers(0, vocabulary, size=(count, 12))
        lift = np.geomspace(1.0, 0.3, 12) * (10.0 if shape == "usual" else 30.0)
        np.put_along_axis(rows, heads, np.take_along_axis(rows, heads, axis=1) + lift, axis=1)
    found: Rows = rows.astype(np.float32)
    return found


def batches(positions: int) -> Iterator[tuple[int, int]]:
    """First and last position of a batch."""
    for first in range(0, positions, _BATCH):
        yield first, min(first + _BATCH, positions)


def measure(
    shape: str, plan: Plan, positions: int, own: float, seed: int
) -> tuple[dict[str, Errors], dict[str, float]]:
    """Errors for every noise, and what it took: bytes a position, seconds of making and of both comparisons."""
    generator = np.random.default_rng(seed)
    texts = -(-positions // _TEXT)
    places = np.concatenate([rows for rows, _ in places_of([Lengths(_PROMPT, _TEXT, 0)] * texts)])
    biases = {name: np.random.default_rng(9).normal(size=plan.vocabulary).astype(np.float32) for name in NOISE}
    found = {name: Errors([], [], []) for name in NOISE}
    taken = dict.fromkeys(("bytes", "make", "whole", "compact"), 0.0)
    for first, last in batches(positions):
        reference = rows_of(shape, last - first, plan.vocabulary, generator)
        following = np.full(last - first, -1)
        began = time.process_time()
        packed = compacted(reference, following, places[first:last], plan)
        taken["make"] += time.process_time() - began
        taken["bytes"] += len(save({"a-prompt": packed.view(np.uint8).reshape(packed.size, -1)}))
        rows = CompactRows(packed, following, places[first:last], plan)
        scale = float(metrics.centred_scale(reference).mean())
        for name, size in NOISE.items():
            noise = np.float32(np.sqrt(1 - own)) * generator.standard_normal(reference.shape, dtype=np.float32)
            device = reference + np.float32(size * scale) * (noise + np.float32(np.sqrt(own)) * biases[name])
            began = time.process_time()
            found[name].exact.append(metrics.compare_rows(reference, device))
            middle = time.process_time()
            found[name].compact.append(rows.compare(device))
            taken["whole"] += (middle - began) / len(NOISE)
            taken["compact"] += (time.process_time() - middle) / len(NOISE)
            device[:, _CHANGED] += 1.0
            seen = rows.compare(device).entries
            assert seen is not None
            found[name].changed.append(seen)
    return found, taken


def joined(errors: list[RowErrors], name: str) -> NDArray[np.float64]:
    """One array of all batches."""
    return np.concatenate([np.asarray(getattr(one, name)) for one in errors])


def tell(shape: str, name: str, found: Errors, scale: float) -> float:
    """Print a line; the relative error of mean KL."""
    exact, estimate = joined(found.exact, "kl"), joined(found.compact, "kl")
    deviation = joined(found.compact, "kl_deviation")
    relative, near = joined(found.exact, "centred_relative"), joined(found.compact, "centred_relative")
    relative_deviation = joined(found.compact, "relative_deviation")
    off = estimate.mean() / exact.mean() - 1
    of_mean = np.sqrt(np.square(deviation).sum()) / exact.size / exact.mean()
    z, z_relative = (estimate - exact) / deviation, (near - relative) / relative_deviation
    honest = weigh([one.entries for one in found.compact if one.entries is not None], scale)
    changed = weigh(found.changed, scale)
    print(
        f"{shape:7} {name:5} {exact.mean():10.3e} {100 * off:+7.2f} {100 * of_mean:6.2f} {z.std():6.2f} "
        f"{exact.max():10.3e} {joined(found.compact, 'kl_surely').max():10.3e} "
        f"{100 * (near.mean() / relative.mean() - 1):+7.2f} {z_relative.std():6.2f} "
        f"{changed.spreads[_CHANGED]:9.1f} {_most(honest.spreads):7.1f} {int(changed.looks[_CHANGED]):6}"
    )
    return float(off)


def _most(spreads: NDArray[np.float64]) -> float:
    return float(np.nanmax(spreads)) if not np.isnan(spreads).all() else float("nan")


def main() -> int:
    """Print the tables; 1 where KL is not within the tolerance."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabulary", type=int, action="append")
    parser.add_argument("--positions", type=int, default=1000)
    parser.add_argument("--own", type=float, default=1 / 3)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    worst = 0.0
    for vocabulary in arguments.vocabulary or [32064, 200064]:
        plan = plan_for(vocabulary, compact=True)
        assert plan is not None
        print(
            f"\nvocabulary {vocabulary}, {arguments.positions} positions: {plan.top} likeliest tokens, "
            f"{plan.even} even and {plan.drawn} drawn samples\n"
            f"{'rows':7} {'noise':5} {'KL':>10} {'off %':>7} {'SE %':>6} {'z':>6} "
            f"{'worst':>10} {'judged':>10} {'rms %':>7} {'z':>6} {'changed':>9} {'honest':>7} {'looks':>6}"
        )
        taken: dict[str, float] = {}
        for shape in SHAPES:
            found, taken = measure(shape, plan, arguments.positions, arguments.own, arguments.seed)
            scale = 1.0 if shape == "flat" else 2.5
            worst = max(worst, *(abs(tell(shape, name, errors, scale)) for name, errors in found.items()))
        per = {key: value / arguments.positions for key, value in taken.items()}
        print(
            f"bytes a position: {per['bytes']:.0f}; whole {4 * vocabulary}, "
            f"llama.cpp's base file {2 * vocabulary + 8}\n"
            f"ms a position: {1000 * per['compact']:.2f} to compare compact, {1000 * per['whole']:.2f} whole; "
            f"{1000 * per['make']:.2f} to make compact"
        )
    print(f"\nmean KL off by at most {100 * worst:.2f} %; allowed: {100 * TOLERANCE:.0f} %")
    return int(worst > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
