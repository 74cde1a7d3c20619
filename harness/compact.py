"""Compact rows of a golden: the likeliest tokens, two samples of the others, and what is judged by them.

With p the reference's probabilities, q the device's and T a set of entries that the reference keeps no more than a
sample of, KL is a sum over the kept tokens, one term for T as a whole, and what is left within T:

    KL = sum over kept of p f(q / p)  +  P f(Q / P)  +  P sum over T of p' f(q' / p'),    f(r) = r - 1 - log r

P and Q are the probabilities of T, p' = p / P and q' = q / Q. All is exact but for the last sum: the reference's
log-sum-exp over T is kept, and the device's row is whole. No term is negative, and none is linear in a small error, so
that sampling adds little: of errors without a pattern the sum's terms are p' times the square of a Gaussian number.
It is estimated from both samples of T, by the balance heuristic of multiple importance sampling (Veach and Guibas,
SIGGRAPH 1995): an entry that is found counts for 1 / (expected number of times that it is), even / V + drawn p'. That
is unbiased. Likewise the centred RMS error: exact over the kept tokens and between T and these, since both means
are, and estimated for the squares within T. Standard errors are those of both samples' sums (the even one drawn without
replacement, the other with it, as Hansen and Hurwitz have it, Ann. Math. Stat. 14, 1943).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.compact_plan import Places, Plan
from harness.metrics import EntryErrors, Floats, Ints, Logits, RowErrors
from harness.reference_rows import ReferenceRows, Regret

# Elements of float64 scratch a chunk, as in harness.metrics.
_CHUNK_ELEMENTS = 1 << 19


class _Chunk(NamedTuple):
    """Some rows of the reference in float64, and which they are; see `Plan.row`."""

    rows: slice
    top: Ints
    top_logits: Floats
    tail: Floats
    sampled: Ints
    sampled_logits: Floats


class CompactRows(ReferenceRows):
    """Rows as `harness.compacting` makes them.

    `packed`: `[n]` of `plan.row`; `following`: `[n]`, the tokens that follow in the text, -1 where there is none.
    """

    def __init__(self, packed: NDArray[Any], following: Ints, places: Places, plan: Plan) -> None:
        self._packed, self._following, self._places, self.plan = packed, following, places, plan

    @property
    def shape(self) -> tuple[int, int]:
        """Positions, and entries of the vocabulary."""
        return self._packed.size, self.plan.vocabulary

    def __getitem__(self, rows: slice) -> CompactRows:
        return CompactRows(self._packed[rows], self._following[rows], self._places[rows], self.plan)

    def joined(self, rest: CompactRows) -> CompactRows:
        """These rows, and after them others of the same plan."""
        both = [
            np.concatenate(pair)
            for pair in (
                (self._packed, rest._packed),
                (self._following, rest._following),
                (self._places, rest._places),
            )
        ]
        return CompactRows(both[0], both[1], both[2], self.plan)

    def compare(self, device: Logits) -> RowErrors:
        """All distances of device from reference: KL and the centred RMS error estimated, with standard errors."""
        self._check(device)
        n, width = self.shape
        kl, kl_deviation, square, square_deviation = np.empty(n), np.empty(n), np.empty(n), np.empty(n)
        agrees, looked = np.empty(n, dtype=np.bool_), np.empty((n, self.plan.even), dtype=np.float32)
        for chunk in self._chunks():
            rows = chunk.rows
            seen = _Seen.of(chunk, device[rows].astype(np.float64))
            agrees[rows] = seen.best == chunk.top[:, 0]
            kl[rows], kl_deviation[rows] = self._kl(chunk, seen)
            shift = seen.mean - _mean(chunk, width)
            square[rows], square_deviation[rows] = self._square(chunk, seen, shift)
            even = slice(0, self.plan.even)
            looked[rows] = (seen.sampled - chunk.sampled_logits)[:, even] - shift[:, None]
        rms, scale = np.sqrt(square), np.maximum(self.scale(), 1e-150)
        return RowErrors(
            kl=kl,
            centred_rms=rms,
            centred_relative=rms / scale,
            top1_agrees=agrees,
            kl_deviation=kl_deviation,
            relative_deviation=square_deviation / np.maximum(2 * rms, 1e-150) / scale,
            entries=EntryErrors(
                width,
                looked.ravel(),
                (looked > 0).astype(np.int32).ravel(),
                1,
                self.plan.even_entries(self._places).ravel(),
            ),
        )

    def rms_error(self, device: Logits) -> Floats:
        """Centred RMS logit errors of a device's rows, estimated."""
        return self.compare(device).centred_rms

    def scale(self) -> Floats:
        """The centred RMS of each row, exact."""
        top, (_, tail_mean, tail_std) = self._top_logits(), self._packed["tail"].T
        width, kept = self.shape[1], self.plan.top
        mean = (top.sum(axis=1) + (width - kept) * tail_mean) / width
        squares = np.square(top - mean[:, None]).sum(axis=1)
        squares += (width - kept) * (np.square(tail_mean - mean) + np.square(tail_std))
        return np.asarray(np.sqrt(squares / width))

    def best(self) -> Ints:
        """The likeliest token of each row, exact."""
        return self._packed["top"][:, 0].astype(np.int64)

    def margins(self) -> Floats:
        """Best minus second-best logit, exact."""
        top = self._top_logits()
        return np.asarray(top[:, 0] - top[:, 1])

    def regret(self, tokens: Sequence[int]) -> Regret:
        """How far below the best logit of each row its token lies.

        Known where the row has the token's logit; else the token is none of the likeliest, and lies no higher than the
        last of these.
        """
        chosen = np.asarray(tokens, dtype=np.int64)
        if chosen.shape != (self.shape[0],) or not chosen.size:
            raise ValueError(f"{chosen.shape} tokens do not go with {self.shape[0]} rows")
        if chosen.min() < 0 or chosen.max() >= self.shape[1]:
            raise ValueError(f"token ids outside 0..{self.shape[1] - 1}")
        logits = self._logits_of(chosen)
        top = self._top_logits()
        known = ~np.isnan(logits)
        return Regret(top[:, 0] - np.where(known, logits, top[:, -1]), known)

    def likeliest(self, count: int) -> tuple[Ints, Floats]:
        """The `count` likeliest tokens of each row, the likeliest first, and their probabilities; no more than kept."""
        probabilities = np.exp(self._top_logits()[:, :count] - self._log_sum()[:, None])
        return self._packed["top"][:, :count].astype(np.int64), probabilities

    def log_likelihood(self, tokens: Sequence[int]) -> Floats:
        """Log probabilities, in nat, of one token a row. Raises ValueError where a row has no logit of its token."""
        logits = self._logits_of(np.asarray(tokens, dtype=np.int64))
        if np.isnan(logits).any():
            raise ValueError("a compact golden has no logits of these tokens")
        return np.asarray(logits - self._log_sum())

    @property
    def mass(self) -> Floats:
        """The probability of the kept tokens together."""
        return np.asarray(-np.expm1(self._packed["tail"][:, 0] - self._log_sum()))

    def _log_sum(self) -> Floats:
        return np.asarray(np.logaddexp(_log_sum_exp(self._top_logits()), self._packed["tail"][:, 0]))

    def _top_logits(self) -> Floats:
        return np.asarray(self._packed["top_logits"], dtype=np.float64)

    def _logits_of(self, tokens: Ints) -> Floats:
        """`[n]`: the logit of a token a row, NaN where there is none."""
        packed = self._packed
        found = np.where(self._following == tokens, packed["following"].astype(np.float64), np.nan)
        even = self.plan.even_entries(self._places)
        for entries, logits in (
            (packed["drawn"], packed["drawn_logits"]),
            (even, packed["even_logits"]),
            (packed["top"], packed["top_logits"]),
        ):
            here = entries == tokens[:, None]
            found = np.where(here.any(axis=1), logits[np.arange(tokens.size), here.argmax(axis=1)], found)
        return found

    def _check(self, device: Logits) -> None:
        if device.shape != self.shape or not device.size:
            raise ValueError(f"logits of shapes {self.shape} (reference) and {device.shape} (device) do not compare")
        if metrics.first_non_finite(device) is not None:
            raise ValueError("NaN or Inf among the logits")

    def _chunks(self) -> Iterator[_Chunk]:
        n, width = self.shape
        step = max(1, _CHUNK_ELEMENTS // width)
        for start in range(0, n, step):
            rows = slice(start, min(start + step, n))
            some = self._packed[rows]
            even = self.plan.even_entries(self._places[rows])
            yield _Chunk(
                rows,
                some["top"].astype(np.int64),
                some["top_logits"].astype(np.float64),
                some["tail"],
                np.concatenate([even, some["drawn"]], axis=1),
                np.concatenate([some["even_logits"], some["drawn_logits"]], axis=1).astype(np.float64),
            )

    def _kl(self, chunk: _Chunk, seen: _Seen) -> tuple[Floats, Floats]:
        tail = chunk.tail[:, :1]
        total = np.logaddexp(_log_sum_exp(chunk.top_logits)[:, None], tail)
        device_tail = seen.tail_log_sum[:, None]
        device_total = np.logaddexp(_log_sum_exp(seen.top)[:, None], device_tail)
        kept = _excess(chunk.top_logits - total, seen.top - device_total).sum(axis=1)
        between = _excess(tail - total, device_tail - device_total)[:, 0]
        inside, deviation = self._total(chunk, seen, _excess(chunk.sampled_logits - tail, seen.sampled - device_tail))
        share = np.exp(tail - total)[:, 0]
        return kept + between + share * inside, share * deviation

    def _square(self, chunk: _Chunk, seen: _Seen, shift: Floats) -> tuple[Floats, Floats]:
        """The mean square of the centred difference, and its standard error; `shift`: of the means of both rows."""
        width, kept = self.shape[1], self.plan.top
        tail_shift = seen.tail_mean - chunk.tail[:, 1]
        exact = np.square(seen.top - chunk.top_logits - shift[:, None]).sum(axis=1)
        exact += (width - kept) * np.square(tail_shift - shift)
        inside, deviation = self._total(
            chunk, seen, np.square(seen.sampled - chunk.sampled_logits - tail_shift[:, None])
        )
        return (exact + inside) / width, deviation / width

    def _total(self, chunk: _Chunk, seen: _Seen, terms: Floats) -> tuple[Floats, Floats]:
        """The sum of terms over the tail from those of the entries that were sampled, and its standard error."""
        plan, even = self.plan, self.plan.even
        expected = even / plan.vocabulary + plan.drawn * np.exp(
            np.minimum(chunk.sampled_logits - chunk.tail[:, :1], 0.0)
        )
        weighed = np.where(seen.in_tail, terms / expected, 0.0)
        variance = even * weighed[:, :even].var(axis=1, ddof=1) * (1 - even / plan.vocabulary)
        variance += plan.drawn * weighed[:, even:].var(axis=1, ddof=1)
        return weighed.sum(axis=1), np.sqrt(variance)


class _Seen(NamedTuple):
    """What a device's rows have where the reference looks, and of the tail in sum."""

    best: Ints
    mean: Floats
    top: Floats
    sampled: Floats
    in_tail: NDArray[np.bool_]
    tail_mean: Floats
    tail_log_sum: Floats

    @classmethod
    def of(cls, chunk: _Chunk, device: Floats) -> _Seen:
        """`device`, `[n, V]`, is used up."""
        best, total, width = device.argmax(axis=1), device.sum(axis=1), device.shape[1]
        top = np.take_along_axis(device, chunk.top, axis=1)
        sampled = np.take_along_axis(device, chunk.sampled, axis=1)
        np.put_along_axis(device, chunk.top, -np.inf, axis=1)
        # The even sample looks at kept tokens, too.
        in_tail = np.take_along_axis(device, chunk.sampled, axis=1) != -np.inf
        tail_mean = (total - top.sum(axis=1)) / (width - top.shape[1])
        highest = device.max(axis=1, keepdims=True)
        device -= highest
        np.exp(device, out=device)
        log_sum = np.log(device.sum(axis=1)) + highest[:, 0]
        return cls(best, total / width, top, sampled, in_tail, tail_mean, log_sum)


def _mean(chunk: _Chunk, width: int) -> Floats:
    kept = chunk.top.shape[1]
    return np.asarray((chunk.top_logits.sum(axis=1) + (width - kept) * chunk.tail[:, 1]) / width)


def _log_sum_exp(logits: Floats) -> Floats:
    highest = logits.max(axis=1)
    return np.asarray(np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest)


def _excess(p: Floats, q: Floats) -> Floats:
    """e^p (r - 1 - log r) with r = e^(q - p), for log probabilities p and q: nothing cancels, nothing overflows.

    Kept tokens that the even sample meets have no probability within the tail: what is made of them is not used.
    """
    ratio = q - p
    near = np.clip(ratio, -2.0, 2.0)
    small = np.abs(near) < 1e-4
    excess = np.where(small, near * near * (0.5 + near * (1 / 6)), np.expm1(near) - near)
    far = np.abs(ratio) > 1.0
    weight = np.exp(np.minimum(p, 0.0))
    return np.where(far, np.exp(np.minimum(q, 0.0)) - weight * (1 + ratio), weight * excess)


def unpacked(stored: NDArray[Any], following: Ints, places: Places, plan: Plan) -> CompactRows:
    """Rows from `[n, bytes a row]` uint8, as a file has them. Raises ValueError with words that follow their name."""
    size = plan.row.itemsize
    if stored.shape != (places.size, size) or stored.dtype != np.uint8:
        raise ValueError(f"is {stored.dtype} {stored.shape}, not uint8 {(places.size, size)}")
    packed = np.ascontiguousarray(stored).view(plan.row)[:, 0]
    floats = ("tail", "following", "top_logits", "even_logits", "drawn_logits")
    if not all(np.isfinite(packed[name]).all() for name in floats):
        raise ValueError("has NaN or Inf")
    if max(packed["top"].max(), packed["drawn"].max()) >= plan.vocabulary:
        raise ValueError("has entries outside the vocabulary")
    in_order = np.sort(packed["top"], axis=1)
    if (in_order[:, 1:] == in_order[:, :-1]).any() or (np.diff(packed["top_logits"], axis=1) > 0).any():
        raise ValueError("does not have its likeliest tokens in order")
    return CompactRows(packed, following, places, plan)
