"""Rows of a golden, whole or compact: what all that is judged against a golden asks of them.

`n` positions, `V` vocabulary entries; results are `[n]` float64 unless said otherwise. Logits of a device are `[n, V]`
of any float dtype. See `harness.compact` for the other form.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import metrics
from harness.metrics import Floats, Ints, Logits, RowErrors


class Regret(NamedTuple):
    """How far tokens lie below the best, in logits; where `known` is false they lie further than that, or as far."""

    least: Floats
    known: NDArray[np.bool_]


class ReferenceRows(ABC):
    """Rows of a golden."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """Positions, and entries of the vocabulary."""

    @abstractmethod
    def __getitem__(self, rows: slice) -> ReferenceRows:
        """Some of the rows."""

    @abstractmethod
    def compare(self, device: Logits) -> RowErrors:
        """The distances of a device's rows from these, entries included. Raises ValueError as `harness.metrics`."""

    @abstractmethod
    def rms_error(self, device: Logits) -> Floats:
        """Centred RMS logit errors of a device's rows, in logits."""

    @abstractmethod
    def scale(self) -> Floats:
        """The centred RMS of each row."""

    @abstractmethod
    def best(self) -> Ints:
        """The likeliest token of each row."""

    @abstractmethod
    def margins(self) -> Floats:
        """Best minus second-best logit."""

    @abstractmethod
    def regret(self, tokens: Sequence[int]) -> Regret:
        """How far below the best logit of each row its token lies. Raises ValueError for tokens that there are not."""

    @abstractmethod
    def log_likelihood(self, tokens: Sequence[int]) -> Floats:
        """Log probabilities, in nat, of the tokens that follow each row in its text. Raises ValueError for others."""


class WholeRows(ReferenceRows):
    """Rows with every logit, `[n, V]`."""

    def __init__(self, logits: Logits) -> None:
        self.logits = logits

    @property
    def shape(self) -> tuple[int, int]:
        """Positions, and entries of the vocabulary."""
        rows, width = self.logits.shape
        return rows, width

    def __getitem__(self, rows: slice) -> WholeRows:
        return WholeRows(self.logits[rows])

    def compare(self, device: Logits) -> RowErrors:
        """See `harness.metrics.compare_rows`."""
        return metrics.compare_rows(self.logits, device, entries=True)

    def rms_error(self, device: Logits) -> Floats:
        """See `harness.metrics.centred_rms_error`."""
        return metrics.centred_rms_error(self.logits, device)

    def scale(self) -> Floats:
        """See `harness.metrics.centred_scale`."""
        return metrics.centred_scale(self.logits)

    def best(self) -> Ints:
        """The likeliest token of each row."""
        return np.asarray(self.logits.argmax(axis=1))

    def margins(self) -> Floats:
        """See `harness.metrics.margins`."""
        return metrics.margins(self.logits)

    def regret(self, tokens: Sequence[int]) -> Regret:
        """See `harness.metrics.regret`."""
        least = metrics.regret(self.logits, np.asarray(tokens, dtype=np.intp))
        return Regret(least, np.ones(least.size, dtype=np.bool_))

    def log_likelihood(self, tokens: Sequence[int]) -> Floats:
        """Log probabilities, in nat, of one token a row."""
        found = metrics.log_softmax(self.logits)[np.arange(len(tokens)), np.asarray(tokens, dtype=np.intp)]
        return np.asarray(found)


def as_rows(given: Logits | ReferenceRows) -> ReferenceRows:
    """Rows as they are, or logits as whole rows."""
    return given if isinstance(given, ReferenceRows) else WholeRows(given)
