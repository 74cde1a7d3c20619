"""Linux's busy counters: the NPU's in sysfs, and the GPU time of this process in `/proc/self/fdinfo`.

NPU: `npu_busy_time_us` of the intel_vpu driver, kernel 6.11 and later, is the time in which jobs were with the
firmware, in microseconds, whoever submitted them; it should be read once a second at most (comment in
drivers/accel/ivpu/ivpu_sysfs.c).

GPU: every open DRM file has a text in fdinfo (Documentation/gpu/drm-usage-stats.rst) with its client's busy time
by class of engine: `drm-engine-<class>: <n> ns` from i915 and amdgpu; `drm-cycles-<class>` and
`drm-total-cycles-<class>`, ticks of the GPU's own clock, from xe. What ROCm computes goes through /dev/kfd and
is not in it.

Neither has yet been read on hardware.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from harness.busy_counter import Counter, Sample
from harness.target import Unavailable

_RENDER_GROUP = "join the group render (sudo usermod -aG render $USER) and log in again"
# Engines that compute, in the words of i915, amdgpu and xe; copying and video engines are left out.
_COMPUTE_ENGINES = frozenset({"render", "compute", "gfx", "rcs", "ccs"})


class NpuCounter:
    """`npu_busy_time_us` of one NPU, in microseconds; device wide.

    Reads at most once a second and gives the last reading, with its time, to whoever asks sooner.
    """

    device_wide = True

    def __init__(self, path: Path, clock: Callable[[], float]) -> None:
        self.name = f"{path.parent.parent.name} {path.name}"
        self._path = path
        self._clock = clock
        self._last: Sample | None = None

    def sample(self) -> Sample:
        """Microseconds busy. Raises OSError where the file cannot be read or holds no number."""
        at = self._clock()
        if self._last is None or at - self._last.at >= 1.0:
            text = self._path.read_text(encoding="ascii", errors="replace").strip()
            if not text.isdigit():
                raise OSError(f"{self._path} holds {text!r}, not a number of microseconds")
            self._last = Sample(float(text), at * 1e6, at)
        return self._last


def find_npu_counters(
    root: Path, clock: Callable[[], float], adapter: str | None = None
) -> list[Counter] | Unavailable:
    """The counters of the NPUs, or of the one at a PCI address; Unavailable says what is in the way."""
    devices = sorted((root / "sys/class/accel").glob("accel*"))
    if adapter is not None:
        devices = [device for device in devices if (device / "device").resolve().name == adapter]
    if not devices:
        where = "" if adapter is None else f" at PCI address {adapter}"
        return Unavailable(
            f"the operating system knows no NPU{where}: no /sys/class/accel/accel*",
            "use a machine with an NPU and a kernel with its driver (intel_vpu)",
        )
    found: list[Counter] = []
    problems = []
    for device in devices:
        counter = NpuCounter(device / "device/npu_busy_time_us", clock)
        try:
            counter.sample()
        except OSError as error:
            problems.append(_npu_problem(device.name, error))
        else:
            found.append(counter)
    return found or problems[0]


def _npu_problem(device: str, error: OSError) -> Unavailable:
    if isinstance(error, FileNotFoundError):
        return Unavailable(
            f"{device} has no npu_busy_time_us under kernel {platform.release()}",
            "use kernel 6.11 or later with the intel_vpu driver",
        )
    if isinstance(error, PermissionError):
        return Unavailable(f"npu_busy_time_us of {device} may not be read by this user", _RENDER_GROUP)
    return Unavailable(f"npu_busy_time_us of {device} cannot be read: {error}", "see the kernel's log (dmesg)")


class DrmClient(NamedTuple):
    """One DRM client of this process, as its fdinfo tells: `busy` by engine class, those that compute only.

    `total` is the GPU's clock in the unit of `busy` where the driver counts cycles, None where it counts
    nanoseconds. `busy` is empty where the driver reports no engine times.
    """

    driver: str
    pci: str
    id: str
    busy: dict[str, int]
    total: int | None


def parse_fdinfo(text: str) -> DrmClient | None:
    """Read the text of one file in fdinfo; None where it is not of a DRM client with an id and a PCI address."""
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    driver, pci, client = (fields.get(key) for key in ("drm-driver", "drm-pdev", "drm-client-id"))
    if not driver or not pci or not client:
        return None
    times = _numbers(fields, "drm-engine-", "ns")
    cycles = _numbers(fields, "drm-cycles-")
    # xe gives every class the same clock, read once (show_run_ticks in drivers/gpu/drm/xe/xe_drm_client.c), so
    # one total holds for the sum over classes.
    totals = _numbers(fields, "drm-total-cycles-")
    if not times and cycles and totals:
        return DrmClient(driver, pci, client, cycles, max(totals.values()))
    if driver == "amdgpu":
        # Leaves out the engines that have done nothing yet (drivers/gpu/drm/amd/amdgpu/amdgpu_fdinfo.c).
        times = {"gfx": 0, "compute": 0, **times}
    return DrmClient(driver, pci, client, times, None)


def _numbers(fields: dict[str, str], prefix: str, unit: str | None = None) -> dict[str, int]:
    found = {}
    for engine in _COMPUTE_ENGINES:
        number, *units = fields.get(prefix + engine, "").split() or [""]
        if number.isdigit() and units == ([] if unit is None else [unit]):
            found[engine] = int(number)
    return found


def open_clients(fdinfo: Path) -> Iterator[DrmClient]:
    """The DRM clients among a process's open files; one that several descriptors share comes several times.

    Raises OSError when the folder cannot be read. Descriptors closed meanwhile are left out.
    """
    for descriptor in fdinfo.iterdir():
        try:
            text = descriptor.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        client = parse_fdinfo(text)
        if client is not None:
            yield client


class DrmCounter:
    """What this process keeps one GPU busy with: the sum over its clients and over the engines that compute.

    One counter per PCI device and not per engine, since which engine the driver computes on is its own
    affair (xe: rcs or ccs). The share may exceed 1 where several engines run at once. Clients are looked for
    anew in every sample; a closed one stays in the sum.
    """

    device_wide = False

    def __init__(self, client: DrmClient, fdinfo: Path, clock: Callable[[], float]) -> None:
        self._cycles = client.total is not None
        engines = ",".join(sorted(client.busy))
        self.name = f"{client.driver} drm-{'cycles' if self._cycles else 'engine'}-{{{engines}}} of {client.pci}"
        self._pci = client.pci
        self._fdinfo = fdinfo
        self._clock = clock
        self._seen: dict[tuple[str, str], int] = {}
        self._total = 0

    def sample(self) -> Sample:
        """Nanoseconds or cycles busy. Raises OSError when fdinfo cannot be read.

        While this process has no client of the device, the total of a counter of cycles stands still.
        """
        at = self._clock()
        for client in open_clients(self._fdinfo):
            if client.pci != self._pci:
                continue
            for engine, busy in client.busy.items():
                # The kernel may report less than before for a while and asks to keep the larger value.
                key = (client.id, engine)
                self._seen[key] = max(self._seen.get(key, 0), busy)
            self._total = max(self._total, client.total or 0)
        total = self._total if self._cycles else at * 1e9
        return Sample(float(sum(self._seen.values())), float(total), at)


def find_drm_counters(
    root: Path, clock: Callable[[], float], adapter: str | None = None
) -> list[Counter] | Unavailable:
    """The counters of the GPUs that this process has open, or of the one at a PCI address."""
    fdinfo = root / "proc/self/fdinfo"
    try:
        clients = [client for client in open_clients(fdinfo) if adapter in (None, client.pci)]
    except PermissionError as error:
        return Unavailable(f"{error.filename} may not be read by this user", _RENDER_GROUP)
    except OSError as error:
        return Unavailable(f"the open files of this process cannot be listed: {error}", "mount /proc")
    counting = {client.pci: client for client in clients if client.busy}
    if counting:
        return [DrmCounter(counting[pci], fdinfo, clock) for pci in sorted(counting)]
    where = "" if adapter is None else f" at PCI address {adapter}"
    if clients:
        silent = ", ".join(sorted({f"{client.driver} of {client.pci}" for client in clients}))
        return Unavailable(
            f"under kernel {platform.release()} no engine times are in fdinfo from {silent}",
            "use a newer kernel, with the driver i915, xe or amdgpu",
        )
    if not any((root / "sys/class/drm").glob("renderD*")):
        return Unavailable(
            "the operating system knows no GPU: no /sys/class/drm/renderD*",
            "use a machine with a GPU and a kernel with its driver (i915, xe or amdgpu)",
        )
    return Unavailable(
        f"this process has no GPU{where} open through a DRM driver",
        f"load the model on the GPU first; if it was, {_RENDER_GROUP}",
    )
