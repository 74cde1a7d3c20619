"""Distances between logits, in NumPy and float64.

Shapes: logits are `[n, V]` (n positions, V vocabulary entries) of any float dtype; results are `[n]`
float64 unless said otherwise. Rows are taken in chunks of bounded size, so memory stays small at a
vocabulary of 200,000. Every function raises ValueError on unequal shapes, on zero positions and on
NaN or Inf: such input is a defect to be reported by the caller, never a number.

KL divergence is in nat, D(reference || device) = sum p (log p - log q). The centred RMS logit error is
the root mean square over the vocabulary of the difference of the two rows after the mean of each is
taken off: softmax does not see a constant added to a row, so neither does this measure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.typing import NDArray

Logits = NDArray[np.floating]
Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

# Elements of float64 scratch a chunk: 4 MiB, so that the few arrays of a pass stay in the last-level cache.
_CHUNK_ELEMENTS = 1 << 19
# Logits that differ by more than this are far apart: e^300 is still a float64.
_FAR = 150.0
SURELY = 2.0
"""Standard errors by which the worst of many estimates is taken to be less: the luckiest of them lies above its own."""


class EntryErrors(msgspec.Struct, frozen=True):
    """How far the entries of a vocabulary are off: device less reference, after the means of both rows.

    `sums`, float32, are in logits: `[V]`, each entry's over `looks` positions; or, where `entries` names them, `[k]`,
    one look at an entry each, which may be looked at more than once. `above`: as `sums`, how many of the looks found
    more than zero.
    """

    vocabulary: int
    sums: NDArray[np.float32]
    above: NDArray[np.int32]
    looks: int = 1
    entries: Ints | None = None


class RowErrors(msgspec.Struct, frozen=True):
    """The distances of n device rows from their n reference rows; each array is `[n]`.

    The deviations are the standard errors of `kl` and of `centred_relative` where these are estimates, else None.
    `entries`: what there is to be said of the entries of the vocabulary, where it was asked for.
    """

    kl: Floats
    centred_rms: Floats
    centred_relative: Floats
    top1_agrees: NDArray[np.bool_]
    kl_deviation: Floats | None = None
    relative_deviation: Floats | None = None
    entries: EntryErrors | None = None

    @property
    def kl_surely(self) -> Floats:
        """What KL is at least: less `SURELY` standard errors, where it is an estimate."""
        return _surely(self.kl, self.kl_deviation)

    @property
    def relative_surely(self) -> Floats:
        """What the centred relative error is at least, likewise."""
        return _surely(self.centred_relative, self.relative_deviation)


def _surely(values: Floats, deviation: Floats | None) -> Floats:
    return values if deviation is None else np.maximum(0.0, values - SURELY * deviation)


def _check_pair(reference: Logits, device: Logits) -> None:
    if reference.ndim != 2 or reference.shape != device.shape:
        raise ValueError(f"logits of shapes {reference.shape} (reference) and {device.shape} (device) do not compare")
    _check(reference)
    _check(device)


def _check(logits: Logits) -> None:
    if logits.ndim != 2 or logits.size == 0:
        raise ValueError(f"zero positions or entries in logits of shape {logits.shape}")
    if first_non_finite(logits) is not None:
        raise ValueError("NaN or Inf among the logits")


def _chunks(rows: int, width: int) -> Iterator[slice]:
    step = max(1, _CHUNK_ELEMENTS // width)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def first_non_finite(logits: Logits) -> tuple[int, int] | None:
    """The position and vocabulary entry of the first NaN or Inf in `[n, V]` logits, or None."""
    for rows in _chunks(*logits.shape):
        bad = ~np.isfinite(logits[rows])
        if bad.any():
            row, column = np.argwhere(bad)[0]
            return rows.start + int(row), int(column)
    return None


def log_softmax(logits: Logits) -> Floats:
    """Log probabilities in nat, `[n, V]` float64."""
    _check(logits)
    shifted: Floats = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    normaliser: Floats = np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return np.subtract(shifted, normaliser)


def compare_rows(reference: Logits, device: Logits, *, entries: bool = False) -> RowErrors:
    """All distances of device from reference, row by row, in one pass over both; and of `entries`, if asked for."""
    _check_pair(reference, device)
    n, width = reference.shape
    kl, rms, relative = np.empty(n), np.empty(n), np.empty(n)
    agrees = np.empty(n, dtype=np.bool_)
    sums, above = np.zeros(width), np.zeros(width, dtype=np.int32)
    for rows in _chunks(n, width):
        ref, dev = reference[rows].astype(np.float64), device[rows].astype(np.float64)
        agrees[rows] = ref.argmax(axis=1) == dev.argmax(axis=1)
        ref -= ref.mean(axis=1, keepdims=True)
        dev -= dev.mean(axis=1, keepdims=True)
        dev -= ref  # from here on: the centred difference
        rms[rows] = np.sqrt(np.einsum("nv,nv->n", dev, dev) / width)
        if entries:
            sums += dev.sum(axis=0)
            above += np.count_nonzero(dev > 0, axis=0).astype(np.int32)
        scale = np.sqrt(np.einsum("nv,nv->n", ref, ref) / width)
        # A constant row has a scale of 0: its relative error is enormous, but finite.
        relative[rows] = rms[rows] / np.maximum(scale, 1e-150)
        kl[rows] = _kl_from_difference(ref, dev)
    seen = EntryErrors(width, sums.astype(np.float32), above, n) if entries else None
    return RowErrors(kl=kl, centred_rms=rms, centred_relative=relative, top1_agrees=agrees, entries=seen)


def _kl_from_difference(ref: Floats, difference: Floats) -> Floats:
    """KL from the reference row and device minus reference, accurate down to the rounding of the inputs.

    With d = device - reference and p the reference's probabilities, KL = log(sum p e^d) - sum p d.
    Written as log1p(sum p (e^d - 1 - d) + sum p d) - sum p d it does not cancel for small d once the
    probability-weighted mean of d is taken off first: then KL = log1p(sum p (e^d - 1 - d)). The
    parenthesis is d^2/2 to first order and is taken from its series where d is small. Rows that are far
    apart, where e^d overflows and nothing cancels, take the definition.
    """
    far = np.abs(difference).max(axis=1) > _FAR
    kl = np.empty(ref.shape[0])
    kl[~far] = _kl_of_near_rows(ref[~far], difference[~far])
    if far.any():
        p, q = log_softmax(ref[far]), log_softmax(ref[far] + difference[far])
        kl[far] = np.einsum("nv,nv->n", np.exp(p), p - q)
    return kl


def _kl_of_near_rows(ref: Floats, difference: Floats) -> Floats:
    p = np.exp(ref - ref.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    d = difference - np.einsum("nv,nv->n", p, difference)[:, None]
    excess = np.expm1(d)
    excess -= d
    small = np.abs(d) < 1e-4
    np.copyto(excess, d * d * (0.5 + d * (1 / 6)), where=small)
    return np.asarray(np.log1p(np.einsum("nv,nv->n", p, excess)))


def kl_divergence(reference: Logits, device: Logits) -> Floats:
    """D(reference || device) a position, in nat."""
    return compare_rows(reference, device).kl


def centred_rms_error(reference: Logits, device: Logits) -> Floats:
    """Centred RMS logit error a position, in logits."""
    if reference.ndim != 2 or reference.shape != device.shape or not reference.size:
        _check_pair(reference, device)
    rms = np.empty(reference.shape[0])
    with np.errstate(invalid="ignore"):  # of Inf less Inf
        for rows in _chunks(*reference.shape):
            difference = np.subtract(device[rows], reference[rows], dtype=np.float64)
            difference -= difference.mean(axis=1, keepdims=True)
            rms[rows] = np.sqrt(np.einsum("nv,nv->n", difference, difference) / reference.shape[1])
    if not np.isfinite(rms).all():  # finite logits give finite errors, which are fewer to look at
        raise ValueError("NaN or Inf among the logits")
    return rms


def centred_scale(logits: Logits) -> Floats:
    """The centred RMS of each row: the unit in which relative errors and regret are given."""
    _check(logits)
    scale = np.empty(logits.shape[0])
    for rows in _chunks(*logits.shape):
        scale[rows] = logits[rows].astype(np.float64).std(axis=1)
    return scale


def margins(logits: Logits) -> Floats:
    """Best minus second-best logit a position."""
    if logits.ndim != 2 or logits.shape[0] == 0 or logits.shape[1] < 2:
        raise ValueError(f"no margin in logits of shape {logits.shape}")
    _check(logits)
    best_two = np.partition(logits, logits.shape[1] - 2, axis=1)[:, -2:].astype(np.float64)
    return np.asarray(best_two[:, 1] - best_two[:, 0])


def regret(reference: Logits, tokens: Ints) -> Floats:
    """How far below the reference's best logit each chosen token lies, in logits.

    `reference` is `[m, V]`: row t is the reference teacher-forced on the device's own tokens before t;
    `tokens` is `[m]`: what the device chose there. Zero where the device chose the reference's best.
    """
    if reference.ndim != 2 or tokens.ndim != 1 or reference.shape[0] != tokens.shape[0] or tokens.size == 0:
        raise ValueError(f"{tokens.shape} tokens do not go with reference logits of shape {reference.shape}")
    if tokens.min() < 0 or tokens.max() >= reference.shape[1]:
        raise ValueError(f"token ids outside 0..{reference.shape[1] - 1}")
    if first_non_finite(reference) is not None:
        raise ValueError("NaN or Inf among the reference's logits")
    chosen = np.take_along_axis(reference, tokens[:, None].astype(np.intp), axis=1)[:, 0]
    best = reference.max(axis=1)
    return np.asarray(best.astype(np.float64) - chosen.astype(np.float64))


def first_divergence(golden: list[int], device: list[int]) -> int | None:
    """The first index at which two token sequences differ, None where they are equal.

    Where one is a prefix of the other, that is the length of the shorter.
    """
    for index, (ours, theirs) in enumerate(zip(golden, device, strict=False)):
        if ours != theirs:
            return index
    return None if len(golden) == len(device) else min(len(golden), len(device))


def wilson_upper(successes: int, trials: int) -> float:
    """The upper end of the 95 % Wilson score interval of a share: what it may be, given `trials` observations.

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927).
    """
    z = 1.959964
    share = successes / trials
    centre = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return min(1.0, (centre + spread) / (1 + z * z / trials))
