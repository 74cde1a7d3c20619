"""How long a streamed recording will still take, judged by the passes that it has made."""

from __future__ import annotations

import time
from collections.abc import Callable


class Remaining:
    """Times passes: those that are fed whole texts by their rows, those of decoding by their number."""

    def __init__(self, whole_rows: int, clock: Callable[[], float] = time.monotonic) -> None:
        """`whole_rows`: of the last pass, which is fed all texts."""
        self._whole_rows = whole_rows
        self._clock = clock
        self._began = 0.0
        self._rows = 0
        self._seconds_a_row: float | None = None
        self._seconds_a_step: float | None = None

    def begin(self, rows: int) -> None:
        """A pass begins that is fed so many rows."""
        self._began, self._rows = self._clock(), rows

    def end(self, *, whole: bool) -> None:
        """It is over; `whole`: it was fed prompts, and not only what follows them."""
        seconds = self._clock() - self._began
        if whole:
            self._seconds_a_row = seconds / max(1, self._rows)
        else:
            self._seconds_a_step = seconds

    def left(self, done: float, steps: float, *, last: bool) -> float | None:
        """Seconds left with a share `done` of the pass over and so many steps to come; None while nothing is known.

        `last`: the pass that is on is fed whole texts, and nothing comes after it.
        """
        here = (self._clock() - self._began) * (1 - done) / done if done > 0 else None
        if last or here is None:
            return here
        a_row = self._seconds_a_row or (here / (1 - done) / max(1, self._rows) if done < 1 else 0.0)
        a_step = self._seconds_a_step if self._seconds_a_step is not None else 0.0
        return here + steps * a_step + self._whole_rows * a_row


def in_words(seconds: float) -> str:
    """`about 40 s`, `about 12 min`, `about 2.5 h`."""
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
