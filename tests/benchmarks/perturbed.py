"""A golden against itself perturbed: what whole and compact rows of it say of the same noise.

    python tests/benchmarks/perturbed.py WHOLE COMPACT

The folders are goldens of the same checkpoint and prompts, recorded with `--form full` and `--form compact`. Each row
of the first, with Gaussian noise of the size of FP16, INT8 and INT4 (see `compact.py`), is compared with itself and
with the row of the second. Printed are the mean KL by either, in nat; what it ought to be, which is half the variance
of the noise times one less the chance that two tokens drawn from the row are the same, to leading order; and by how
many spreads an entry that is 1 logit too high throughout is off, the least of 32 entries drawn among the unlikely ones,
and how many of these were looked at often enough to be judged.

Exit status 1 where compact KL is not within 2 % of the exact one or three of its standard errors.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.golden import TREE, Golden, verify_files
from harness.metrics import EntryErrors, RowErrors
from harness.reference_rows import ReferenceRows, WholeRows
from harness.vocabulary import weigh

sys.path.insert(0, str(TREE / "tests"))  # run as a script, this has its own folder there
from benchmarks.compact import NOISE, TOLERANCE, Rows

_DRAWN = 32


def main() -> int:
    """Print a line for each size of noise; 1 where compact KL is off."""
    whole, compact = (verify_files(Path(folder)) for folder in sys.argv[1:3])
    return int(not tell(whole, compact))


def tell(whole: Golden, compact: Golden) -> bool:
    """Print a line for each size of noise, and return whether compact KL is right."""
    ids = [case.id for case in whole.manifest.cases]
    rows = [whole.logits(one) for one in ids]
    kept = [compact.rows(one) for one in ids]
    positions = sum(len(one) for one in rows)
    print(f"{positions} positions, {rows[0].shape[1]} entries\n{'noise':5} {'by theory':>10} {'whole':>10} "
          f"{'compact':>10} {'off %':>7} {'SE %':>6} {'entry, whole':>13} {'compact':>12}")  # fmt: skip
    right = [_tell(name, size, rows, kept) for name, size in NOISE.items()]
    return all(right)


def _tell(name: str, size: float, rows: list[Rows], kept: list[ReferenceRows]) -> bool:
    generator = np.random.default_rng(1)
    scale = float(np.mean(np.concatenate([metrics.centred_scale(one) for one in rows])))
    sigma = size * scale
    devices = [one + generator.normal(scale=sigma, size=one.shape).astype(np.float32) for one in rows]
    whole: list[ReferenceRows] = [WholeRows(one) for one in rows]
    kl = float(np.concatenate([one.kl for one in _compared(whole, devices)]).mean())
    estimated = _compared(kept, devices)
    near = np.concatenate([one.kl for one in estimated])
    error = float(np.sqrt(np.square(_deviations(estimated)).sum()) / near.size)
    off = float(near.mean()) / kl - 1

    unlikely = np.argsort(np.mean(np.concatenate(rows), axis=0))[: rows[0].shape[1] // 2]
    entries = generator.choice(unlikely, _DRAWN, replace=False)
    for device in devices:
        device[:, entries] += 1.0
    by_whole, by_compact = (_least_off(_compared(form, devices), entries, scale) for form in (whole, kept))
    theory = 0.5 * sigma**2 * (1 - np.mean(np.concatenate([_same(one) for one in rows])))
    print(
        f"{name:5} {theory:10.3e} {kl:10.3e} {near.mean():10.3e} {100 * off:+7.2f} {100 * error / kl:6.2f} "
        f"{by_whole:>13} {by_compact:>12}"
    )
    return abs(off) <= max(TOLERANCE, 3 * error / kl)


def _compared(references: list[ReferenceRows], devices: list[Rows]) -> list[RowErrors]:
    return [reference.compare(device) for reference, device in zip(references, devices, strict=True)]


def _same(rows: Rows) -> NDArray[np.float64]:
    """The chance, `[n]`, that two tokens drawn from a row are the same."""
    found: NDArray[np.float64] = np.exp(2 * metrics.log_softmax(rows)).sum(axis=1)
    return found


def _deviations(errors: list[RowErrors]) -> NDArray[np.float64]:
    return np.concatenate([np.zeros(one.kl.size) if one.kl_deviation is None else one.kl_deviation for one in errors])


def _least_off(errors: list[RowErrors], entries: NDArray[np.intp], scale: float) -> str:
    """How far the least of the changed entries is off, in spreads, and how many of them were looked at often enough."""
    found: list[EntryErrors] = [one.entries for one in errors if one.entries is not None]
    spreads = weigh(found, scale).spreads[entries]
    judged = spreads[~np.isnan(spreads)]
    return f"{judged.min():.1f} ({judged.size})" if judged.size else "not judged"


if __name__ == "__main__":
    sys.exit(main())
