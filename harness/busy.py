"""The operating system's busy counters, the evidence that an NPU or a GPU worked while a session computed.

This runs in the worker, the process in which the driver computes, since most counters count one process.
`find_counters` says which counters there are, `BusyMeter` reads them around the session's calls, and its
`Reading`s go to the controller as raw numbers. Judging them is not done here.

None of the counters has yet been read on hardware: the readers are written from the kernel's documentation
and sources, the Windows SDK and NVML's manual, and tested on files and dumps of the forms given there.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from harness.busy_counter import Counter, Sample
from harness.busy_linux import find_drm_counters, find_npu_counters
from harness.busy_nvidia import find_nvidia_counters
from harness.busy_windows import find_engine_counters
from harness.target import DeviceKind, Reading, Unavailable

__all__ = ["BusyMeter", "Counter", "Reading", "Sample", "find_counters"]


def find_counters(
    kind: DeviceKind,
    *,
    root: Path = Path("/"),
    clock: Callable[[], float] = time.perf_counter,
    adapter: str | None = None,
    nvidia: bool | None = None,
    platform: str = sys.platform,
) -> list[Counter] | Unavailable:
    """The busy counters of a kind of device, or why there are none.

    Ask after the model is loaded: a driver's counters of this process exist once it has opened the device.
    `adapter` leaves only one device: its PCI address on Linux (`0000:03:00.0`), on Windows its LUID in
    the form of `harness.dxgi` (`0:54321`). `nvidia` says whether the session is on an NVIDIA GPU, whose counter
    is another, None where that is not known. `clock` gives seconds; the default is the monotonic clock with
    the finest grain (`time.monotonic` steps by 15.6 ms on Windows before Python 3.13). `root` is where `/proc`
    and `/sys` are looked for and `platform` a `sys.platform`; both are for tests.
    """
    if kind is DeviceKind.CPU:
        return Unavailable("processors have no busy counter here", "a CPU target is attested by construction")
    if platform == "win32":
        return find_engine_counters(kind, clock=clock, adapter=adapter)
    if not platform.startswith("linux"):
        return Unavailable(f"no busy counter of {platform} is known", "use Linux or Windows")
    if kind is DeviceKind.NPU:
        return find_npu_counters(root, clock, adapter)
    return _find_linux_gpus(root, clock, adapter, nvidia)


def _find_linux_gpus(
    root: Path, clock: Callable[[], float], adapter: str | None, wanted: bool | None
) -> list[Counter] | Unavailable:
    if wanted is True:
        return find_nvidia_counters(clock, adapter)
    drm = find_drm_counters(root, clock, adapter)
    if wanted is False:
        return drm
    # NVIDIA's own driver reports no engine times through DRM; NVML is its counter.
    if not (root / "proc/driver/nvidia").is_dir():
        return drm
    nvidia = find_nvidia_counters(clock, adapter)
    if isinstance(drm, Unavailable):
        if isinstance(nvidia, Unavailable):
            return Unavailable(f"{nvidia.reason}; {drm.reason}", f"{nvidia.remedy}; {drm.remedy}")
        return nvidia
    return drm if isinstance(nvidia, Unavailable) else drm + nvidia


class BusyMeter:
    """Reads counters around the calls of a session.

    A *window* begins with the first call after the last window was closed and is closed by `readings` once
    it holds `min_work` seconds of work: counters that may be read once a second, and drivers that account
    in batches, say nothing of less. Calls come from one thread.
    """

    unread: dict[str, str]
    """Counters that are read no more, with the reason: an unreadable one is not one that did not move."""

    def __init__(
        self,
        counters: Sequence[Counter],
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
        min_work: float = 1.0,
    ) -> None:
        self.unread = {}
        self._counters = {counter.name: counter for counter in counters}
        self._clock = clock
        self._sleep = sleep
        self._min_work = min_work
        self._idle: dict[str, float] | None = None
        self._first: dict[str, Sample] | None = None
        self._work = 0.0
        self._depth = 0
        self._last: tuple[Reading, ...] = ()

    @property
    def reads(self) -> bool:
        """Whether any counter is still read."""
        return bool(self._counters)

    @property
    def work_seconds(self) -> float:
        """Seconds of work in the open window so far; `readings` closes it from `min_work` on."""
        return self._work

    def baseline(self, seconds: float = 1.0) -> None:
        """Measure what share of the time each device is busy before this session computes: takes `seconds`.

        Less than a second is too little for a counter that may be read only once a second.
        """
        first = self._samples()
        if first:
            self._sleep(seconds)
        shares = {}
        for name, last in self._samples().items():
            if last.total <= first[name].total:
                shares[name] = 0.0  # a device asleep lets its own clock stand
                continue
            moved = self._moved(name, first[name], last)
            if moved is not None:
                shares[name] = moved[0]
        self._idle = shares

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count the time inside as work, whether or not the call succeeds; one inside another counts once.

        Raises RuntimeError where no baseline was measured.
        """
        if self._idle is None:
            raise RuntimeError("BusyMeter.work() before baseline(): there is nothing to hold the counters against")
        if self._first is None:
            self._first = self._samples()
        start = self._clock()
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._work += self._clock() - start

    def readings(self) -> tuple[Reading, ...]:
        """The readings of the open window, which this closes if it holds enough work, else of the last one.

        Closing one takes a second more where a counter counts others' work too: the larger of the idle shares
        before and after the window is the one that is given.

        Empty before the first window is closed, and where no counter can be read.
        """
        if self._first is None or self._work < self._min_work:
            return self._last
        first, work = self._first, self._work
        before = self._idle or {}
        found = [self._reading(name, first[name], last, work) for name, last in self._samples().items()]
        if any(counter.device_wide for counter in self._counters.values()):
            self.baseline()  # others may have begun to use the device since the last one
        after = self._idle or {}
        self._last = tuple(
            msgspec.structs.replace(reading, idle_share=max(before[reading.counter], after.get(reading.counter, 0.0)))
            for reading in found
            if reading is not None
        )
        self._first, self._work = None, 0.0
        return self._last

    def _reading(self, name: str, first: Sample, last: Sample, work: float) -> Reading | None:
        moved = self._moved(name, first, last)
        if moved is None or self._idle is None:
            return None
        share, elapsed = moved
        wide = self._counters[name].device_wide
        return Reading(name, wide, self._idle[name], share * elapsed, elapsed, work)

    def _samples(self) -> dict[str, Sample]:
        samples = {}
        for name, counter in list(self._counters.items()):
            try:
                samples[name] = counter.sample()
            except OSError as error:
                self._drop(name, str(error) or type(error).__name__)
        return samples

    def _moved(self, name: str, first: Sample, last: Sample) -> tuple[float, float] | None:
        """Share busy and seconds between two samples; None, and the counter dropped, where they make no sense."""
        if last.total <= first.total or last.at <= first.at:
            self._drop(name, "the clock it is held against stood still between two readings")
            return None
        if last.busy < first.busy:
            self._drop(name, f"it went backwards, from {first.busy:.0f} to {last.busy:.0f}")
            return None
        return (last.busy - first.busy) / (last.total - first.total), last.at - first.at

    def _drop(self, name: str, reason: str) -> None:
        del self._counters[name]
        self.unread[name] = reason
