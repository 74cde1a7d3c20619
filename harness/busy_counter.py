"""What a busy counter is: a running count of a device's busy time, and the clock to hold it against."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class Sample(NamedTuple):
    """One reading of a counter; only differences between two of them mean anything.

    `busy` and `total` are in the counter's own unit (nanoseconds, microseconds, cycles), so that the share
    busy between two samples is the difference in `busy` over that in `total`. `at` is when the counter was
    read, in seconds of the clock that it was made with: a cached reading keeps the time of its reading.
    """

    busy: float
    total: float
    at: float


class Counter(Protocol):
    """One device's busy counter, read in the process that computes."""

    name: str
    """What is counted and of which device, e.g. `accel0 npu_busy_time_us`."""
    device_wide: bool
    """Whether the work of other processes counts too; False where only this process's does."""

    def sample(self) -> Sample:
        """Read the counter. Raises OSError when it cannot be read, or when what is read cannot be right."""
        ...
