"""The busy counter of NVIDIA GPUs on Linux, through NVML. Not yet run on hardware.

NVML has no running time of a process. Its accounting mode has, but must be switched on by the administrator
and gives the time only after the process has ended; its utilisation per process is a list of sampled shares
that not every product keeps, under process ids that a container does not see. What every product has is the
share of the last sample period, of 1/6 to 1 second, in which a kernel of any process ran
(https://docs.nvidia.com/deploy/nvml-api/structnvmlUtilization__t.html). So a thread reads that share ten
times a second and adds it up: device wide, and late by up to one period at both ends of a window.
On Windows `harness.busy_windows` counts NVIDIA GPUs like all others.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

from harness.busy_counter import Counter, Sample
from harness.target import Unavailable

_PERIOD = 0.1
# A share describes at most the second before it was read; a longer gap (another thread held Python's lock)
# is covered by that much, and what is not covered is in neither sum.
_DESCRIBED = 1.0


class NvidiaCounter:
    """The busy time of one NVIDIA GPU in seconds, summed up from the shares that `read` gives (0 to 1).

    `read` raises OSError when it cannot. Every `period` seconds a daemon thread reads it, from the first
    sample on; without a period only `sample` does.
    """

    device_wide = True

    def __init__(
        self, name: str, read: Callable[[], float], clock: Callable[[], float], period: float | None = _PERIOD
    ) -> None:
        self.name = name
        self._read = read
        self._clock = clock
        self._period = period
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._last = Sample(0.0, 0.0, clock())

    def sample(self) -> Sample:
        """Busy and covered seconds so far. Raises OSError when NVML cannot be read."""
        if self._thread is None and self._period is not None:
            self._thread = threading.Thread(target=self._watch, args=(self._period,), daemon=True)
            self._thread.start()
        return self._add()

    def stop(self) -> None:
        """End the thread; a later sample has gaps."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self, period: float) -> None:
        while not self._stop.wait(period):
            try:
                self._add()
            except OSError:
                return  # The next sample meets the same error and reports it.

    def _add(self) -> Sample:
        with self._lock:
            share, at = self._read(), self._clock()
            covered = min(max(at - self._last.at, 0.0), _DESCRIBED)
            self._last = Sample(self._last.busy + share * covered, self._last.total + covered, at)
            return self._last


def find_nvidia_counters(clock: Callable[[], float], adapter: str | None = None) -> list[Counter] | Unavailable:
    """The counters of NVIDIA GPUs, or of the one at a PCI address; Unavailable says what is missing."""
    try:
        nvml: Any = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return Unavailable(
            "NVIDIA's counters are read through NVML, and pynvml is not installed",
            "python -m pip install nvidia-ml-py",
        )
    try:
        nvml.nvmlInit()
        handles = [nvml.nvmlDeviceGetHandleByIndex(i) for i in range(nvml.nvmlDeviceGetCount())]
        found = {pci_address(nvml.nvmlDeviceGetPciInfo(handle).busId): handle for handle in handles}
        wanted = {address: handle for address, handle in found.items() if adapter in (None, address)}
        for handle in wanted.values():
            nvml.nvmlDeviceGetUtilizationRates(handle)
    except nvml.NVMLError as error:
        return Unavailable(f"NVML cannot be read: {error}", "check that nvidia-smi works for this user")
    if not wanted:
        where = "" if adapter is None else f" at {adapter}"
        return Unavailable(f"NVML knows no GPU{where}", "check the list of nvidia-smi")
    return [_counter(nvml, handle, address, clock) for address, handle in wanted.items()]


def _counter(nvml: Any, handle: Any, address: str, clock: Callable[[], float]) -> NvidiaCounter:
    def read() -> float:
        try:
            return float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
        except nvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from error

    return NvidiaCounter(f"NVML utilisation of {address}", read, clock)


def pci_address(bus_id: str | bytes) -> str:
    """NVML's bus id in the kernel's form: `00000000:01:00.0` becomes `0000:01:00.0`."""
    text = bus_id.decode("ascii") if isinstance(bus_id, bytes) else bus_id
    domain, _, rest = text.rstrip("\0").lower().partition(":")
    return f"{int(domain, 16):04x}:{rest}"
