"""What a record keeps of an answer position by position: short enough for every case of a run."""

from __future__ import annotations

import hashlib
import sys

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compact import CompactRows
from harness.compare import Rows, Verdict
from harness.record import Detail, PromptRecord, Tops
from harness.reference_rows import ReferenceRows, WholeRows
from harness.run import PromptCase
from harness.yardstick import Decomposed

Logits = NDArray[np.floating]

TOP = 3
_DIGITS = 4
# Elements a chunk of rows, so that a vocabulary of 200,000 takes no memory worth mentioning.
_CHUNK = 1 << 20


class Answer(msgspec.Struct, frozen=True):
    """What is kept of a device's logits: their hash and likeliest tokens, and the position of the first row."""

    sha256: str
    first: int
    top: Tops | None


def answer(logits: Logits, found: Rows | Verdict) -> Answer:
    """What to keep of `[n, V]` logits; nothing but the hash where they did not compare."""
    if isinstance(found, Verdict):
        return Answer(logits_sha256(logits), 0, None)
    return Answer(logits_sha256(logits), found.first, tops(logits))


def logits_sha256(logits: Logits) -> str:
    """SHA-256 of logits as little-endian float32, row by row."""
    rows = np.ascontiguousarray(logits, dtype=np.float32)
    return hashlib.sha256((rows if sys.byteorder == "little" else rows.byteswap()).data).hexdigest()


def tops(logits: Logits, count: int = TOP) -> Tops:
    """The `count` likeliest tokens of each row of finite `[n, V]` logits, the likeliest first, with probabilities."""
    width = logits.shape[1]
    count, step = min(count, width), max(1, _CHUNK // width)
    tokens: list[list[int]] = []
    probabilities: list[list[float]] = []
    for start in range(0, logits.shape[0], step):
        rows = np.array(logits[start : start + step], dtype=np.float32)
        highest = rows.max(axis=1)
        total = np.exp(rows - highest[:, None]).sum(axis=1)
        every, best, value = np.arange(rows.shape[0]), [], []
        for _ in range(count):  # passes of argmax are faster than a partition of so wide a row
            place = rows.argmax(axis=1)
            best.append(place)
            value.append(np.exp(rows[every, place] - highest) / total)
            rows[every, place] = -np.inf
        tokens += np.stack(best, axis=1).tolist()
        probabilities += [rounded(row) for row in np.stack(value, axis=1)]
    return Tops(tokens, probabilities)


def detail(found: Rows | Decomposed | Verdict, kept: Answer | None) -> Detail:
    """The detail of a teacher-forced case."""
    sha256, top = (kept.sha256, kept.top) if kept is not None else ("", None)
    if isinstance(found, Verdict):
        return Detail(logits_sha256=sha256, first=kept.first if kept is not None else 0)
    if isinstance(found, Rows):
        return Detail(logits_sha256=sha256, first=found.first, kl=rounded(found.errors.kl), top=top)
    first = found.total.first
    yardstick = np.max([errors[first:] for errors in found.yardsticks.values()], axis=0)
    return Detail(
        logits_sha256=sha256,
        first=first,
        kl=rounded(found.total.errors.kl),
        quantisation=rounded(found.quantisation.errors.centred_rms),
        implementation=rounded(found.implementation.errors.centred_rms),
        yardstick=rounded(yardstick),
        top=top,
    )


def prompt_record(prompt: PromptCase, about: str) -> PromptRecord:
    """A prompt with its golden's likeliest tokens and margins. Raises GoldenError when the golden cannot be read."""
    rows = prompt.rows()
    return PromptRecord(
        suite=prompt.suite,
        id=prompt.id,
        about=about,
        tokens=list(prompt.case.sequence),
        prefill=len(prompt.case.tokens),
        top=_tops_of(rows),
        margins=rounded(rows.margins()),
    )


def _tops_of(rows: ReferenceRows) -> Tops:
    """Tops of a golden's rows."""
    if isinstance(rows, WholeRows):
        return tops(rows.logits)
    assert isinstance(rows, CompactRows)
    tokens, probabilities = rows.likeliest(TOP)
    return Tops(tokens.tolist(), [rounded(row) for row in probabilities])


def rounded(values: NDArray[np.floating]) -> list[float]:
    """Numbers with four significant digits, which is more than two runs of one machine need have in common."""
    return [float(f"{value:.{_DIGITS}g}") for value in values.tolist()]
