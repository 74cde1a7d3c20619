"""Linux's and NVIDIA's busy counters, on files and answers in the form that kernels and NVML give; the meter."""

from __future__ import annotations

import platform
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.busy import BusyMeter, Counter, Reading, Sample, find_counters
from harness.busy_linux import parse_fdinfo
from harness.busy_nvidia import NvidiaCounter, pci_address
from harness.target import DeviceKind, Unavailable


class Clock:
    """Seconds that pass only in `sleep`, which calls `during` first."""

    def __init__(self, now: float = 1024.0) -> None:
        self.now = now
        self.during: Callable[[float], None] = lambda _: None

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.during(seconds)
        self.now += seconds


def linux(kind: DeviceKind, root: Path, clock: Clock, adapter: str | None = None) -> list[Counter] | Unavailable:
    return find_counters(kind, root=root, clock=clock, adapter=adapter, platform="linux")


def only(found: list[Counter] | Unavailable) -> Counter:
    assert isinstance(found, list), str(found)
    (counter,) = found
    return counter


def refused(found: list[Counter] | Unavailable) -> Unavailable:
    assert isinstance(found, Unavailable)
    return found


def share(first: Sample, last: Sample) -> float:
    return (last.busy - first.busy) / (last.total - first.total)


# The NPU in sysfs.


def npu(root: Path, microseconds: int | str, name: str = "accel0") -> Path:
    file = root / "sys/class/accel" / name / "device/npu_busy_time_us"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{microseconds}\n", encoding="ascii")
    return file


def test_the_npu_is_busy_for_the_microseconds_its_driver_counts(tmp_path: Path) -> None:
    clock = Clock()
    npu(tmp_path, 5_000_000)
    counter = only(linux(DeviceKind.NPU, tmp_path, clock))
    first = counter.sample()
    clock.sleep(2.0)
    npu(tmp_path, 5_500_000)
    assert share(first, counter.sample()) == pytest.approx(0.25)
    assert counter.device_wide
    assert counter.name == "accel0 npu_busy_time_us"


def test_the_npu_is_read_once_a_second_at_most(tmp_path: Path) -> None:
    clock = Clock()
    npu(tmp_path, 1000)
    counter = only(linux(DeviceKind.NPU, tmp_path, clock))
    first = counter.sample()
    npu(tmp_path, 2000)
    clock.sleep(0.75)
    assert counter.sample() == first, "a reading keeps the time at which it was made"
    clock.sleep(0.25)
    assert counter.sample() == Sample(2000, clock.now * 1e6, clock.now)


@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links, as Linux does")
def test_each_npu_has_a_counter_and_one_may_be_chosen_by_address(tmp_path: Path) -> None:
    for number, address in enumerate(("0000:00:0b.0", "0000:05:00.0")):
        device = tmp_path / "sys/devices" / address
        device.mkdir(parents=True)
        (device / "npu_busy_time_us").write_text("7\n", encoding="ascii")
        accel = tmp_path / "sys/class/accel" / f"accel{number}"
        accel.mkdir(parents=True)
        (accel / "device").symlink_to(device, target_is_directory=True)
    found = linux(DeviceKind.NPU, tmp_path, Clock())
    assert isinstance(found, list)
    assert [counter.name.split()[0] for counter in found] == ["accel0", "accel1"]
    chosen = only(linux(DeviceKind.NPU, tmp_path, Clock(), "0000:05:00.0"))
    assert chosen.name.startswith("accel1 ")
    assert "0000:07:00.0" in refused(linux(DeviceKind.NPU, tmp_path, Clock(), "0000:07:00.0")).reason


def test_a_machine_without_npu_says_so(tmp_path: Path) -> None:
    assert "/sys/class/accel" in refused(linux(DeviceKind.NPU, tmp_path, Clock())).reason


def test_a_kernel_without_the_npu_counter_is_named(tmp_path: Path) -> None:
    npu(tmp_path, 1).unlink()
    found = refused(linux(DeviceKind.NPU, tmp_path, Clock()))
    assert platform.release() in found.reason
    assert "6.11" in found.remedy


def test_a_forbidden_npu_counter_names_the_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    npu(tmp_path, 1)

    def forbidden(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert "render" in refused(linux(DeviceKind.NPU, tmp_path, Clock())).remedy


def test_an_npu_counter_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    clock = Clock()
    npu(tmp_path, 1)
    counter = only(linux(DeviceKind.NPU, tmp_path, clock))
    npu(tmp_path, "busy")
    clock.sleep(1.0)
    with pytest.raises(OSError, match="busy"):
        counter.sample()


# GPUs in fdinfo.

XE, I915, AMDGPU = "0000:03:00.0", "0000:00:02.0", "0000:c1:00.0"


def xe(client: int, rcs: int, ccs: int, clock: int, pci: str = XE) -> str:
    return (
        f"pos:\t0\nflags:\t02100002\nmnt_id:\t26\nino:\t685\ndrm-driver:\txe\ndrm-client-id:\t{client}\n"
        f"drm-pdev:\t{pci}\ndrm-total-vram0:\t23992 KiB\ndrm-cycles-rcs:\t{rcs}\ndrm-total-cycles-rcs:\t{clock}\n"
        f"drm-cycles-bcs:\t777777\ndrm-total-cycles-bcs:\t{clock}\ndrm-cycles-ccs:\t{ccs}\n"
        f"drm-total-cycles-ccs:\t{clock}\ndrm-engine-capacity-ccs:\t4\n"
    )


def i915(client: int, render: int, compute: int = 0) -> str:
    return (
        f"pos:\t0\nflags:\t0100002\nmnt_id:\t26\nino:\t712\ndrm-driver:\ti915\ndrm-client-id:\t{client}\n"
        f"drm-pdev:\t{I915}\ndrm-total-system0:\t4 KiB\ndrm-engine-render:\t{render} ns\ndrm-engine-copy:\t888888 ns\n"
        f"drm-engine-video:\t999999 ns\ndrm-engine-capacity-video:\t2\ndrm-engine-compute:\t{compute} ns\n"
    )


def amdgpu(client: int, **engines: int) -> str:
    lines = "".join(f"drm-engine-{engine}:\t{time} ns\n" for engine, time in engines.items())
    return (
        f"pos:\t0\nflags:\t02100002\nmnt_id:\t26\nino:\t1082\npasid:\t32770\ndrm-driver:\tamdgpu\n"
        f"drm-pdev:\t{AMDGPU}\ndrm-client-id:\t{client}\ndrm-memory-vram:\t1024 KiB\ndrm-memory-gtt: \t0 KiB\n{lines}"
    )


def open_files(root: Path, *texts: str) -> None:
    """Leave exactly these files open, behind standard input."""
    fdinfo = root / "proc/self/fdinfo"
    fdinfo.mkdir(parents=True, exist_ok=True)
    for old in fdinfo.iterdir():
        old.unlink()
    for number, text in enumerate(("pos:\t0\nflags:\t0100002\nmnt_id:\t28\nino:\t3\n", *texts)):
        (fdinfo / str(number)).write_text(text, encoding="ascii")


def test_xe_is_busy_for_its_share_of_the_gpus_own_clock(tmp_path: Path) -> None:
    open_files(tmp_path, xe(3, 100, 1_000, 50_000))
    counter = only(linux(DeviceKind.GPU, tmp_path, Clock()))
    first = counter.sample()
    open_files(tmp_path, xe(3, 200, 1_500, 52_000))
    assert share(first, counter.sample()) == pytest.approx(600 / 2_000), "rcs and ccs, not bcs"
    assert not counter.device_wide
    assert counter.name == f"xe drm-cycles-{{ccs,rcs}} of {XE}"


def test_i915_is_busy_for_nanoseconds_of_render_and_compute(tmp_path: Path) -> None:
    clock = Clock()
    open_files(tmp_path, i915(9, 1_000_000_000, 5))
    counter = only(linux(DeviceKind.GPU, tmp_path, clock))
    first = counter.sample()
    open_files(tmp_path, i915(9, 1_500_000_000, 500_000_005))
    clock.sleep(4.0)
    assert share(first, counter.sample()) == pytest.approx(0.25)


def test_amdgpu_leaves_idle_engines_out_and_still_has_a_counter(tmp_path: Path) -> None:
    clock = Clock()
    open_files(tmp_path, amdgpu(12))
    counter = only(linux(DeviceKind.GPU, tmp_path, clock))
    first = counter.sample()
    open_files(tmp_path, amdgpu(12, gfx=250_000_000, compute=250_000_000, dec=10**9))
    clock.sleep(1.0)
    assert share(first, counter.sample()) == pytest.approx(0.5)


def test_a_client_counts_once_however_many_descriptors_it_has(tmp_path: Path) -> None:
    clock = Clock()
    open_files(tmp_path, i915(9, 0), i915(9, 0), i915(9, 0))
    counter = only(linux(DeviceKind.GPU, tmp_path, clock))
    first = counter.sample()
    open_files(tmp_path, i915(9, 10**9), i915(9, 10**9), i915(9, 10**9))
    clock.sleep(1.0)
    assert counter.sample().busy - first.busy == 10**9


def test_each_pci_device_has_a_counter_of_its_own(tmp_path: Path) -> None:
    open_files(tmp_path, i915(9, 1), xe(9, 20, 0, 50), xe(9, 3_000, 0, 60, pci="0000:04:00.0"))
    found = linux(DeviceKind.GPU, tmp_path, Clock())
    assert isinstance(found, list)
    busy = {counter.name.split()[-1]: counter.sample().busy for counter in found}
    assert busy == {I915: 1, XE: 20, "0000:04:00.0": 3_000}
    assert only(linux(DeviceKind.GPU, tmp_path, Clock(), XE)).sample().busy == 20
    (tmp_path / "sys/class/drm/renderD128").mkdir(parents=True)
    assert "0000:09:00.0" in refused(linux(DeviceKind.GPU, tmp_path, Clock(), "0000:09:00.0")).reason


def test_a_client_opened_after_discovery_counts_and_a_closed_one_stays(tmp_path: Path) -> None:
    open_files(tmp_path, i915(9, 100))
    counter = only(linux(DeviceKind.GPU, tmp_path, Clock()))
    assert counter.sample().busy == 100
    open_files(tmp_path, i915(9, 150), i915(10, 30))
    assert counter.sample().busy == 180
    open_files(tmp_path, i915(10, 40))
    assert counter.sample().busy == 190
    open_files(tmp_path)
    assert counter.sample().busy == 190


def test_a_value_that_dips_is_held_until_the_kernel_catches_up(tmp_path: Path) -> None:
    counts = []
    open_files(tmp_path, i915(9, 100))
    counter = only(linux(DeviceKind.GPU, tmp_path, Clock()))
    for value in (100, 90, 95, 120):
        open_files(tmp_path, i915(9, value))
        counts.append(counter.sample().busy)
    assert counts == [100, 100, 100, 120]


@given(
    st.lists(st.dictionaries(st.integers(0, 3), st.tuples(st.integers(0, 1000), st.booleans()), min_size=1), max_size=8)
)
def test_the_sum_over_clients_that_come_and_go_is_all_that_was_seen(steps: list[dict[int, tuple[int, bool]]]) -> None:
    """Each step: what each client does next, and whether it is open when the counter is read."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        open_files(root, i915(99, 0))
        counter = only(linux(DeviceKind.GPU, root, Clock()))
        done = dict.fromkeys(range(4), 0)
        seen = dict.fromkeys(range(4), 0)
        before = 0.0
        for step in steps:
            for client, (work, _) in step.items():
                done[client] += work
            visible = [client for client, (_, is_open) in step.items() if is_open]
            seen.update({client: done[client] for client in visible})
            open_files(root, *(i915(client, done[client]) for client in visible))
            now = counter.sample().busy
            assert now == sum(seen.values())
            assert now >= before
            before = now


@pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links, as Linux does")
def test_a_descriptor_closed_while_fdinfo_is_read_is_left_out(tmp_path: Path) -> None:
    open_files(tmp_path, i915(9, 100))
    (tmp_path / "proc/self/fdinfo/9").symlink_to("gone")
    assert only(linux(DeviceKind.GPU, tmp_path, Clock())).sample().busy == 100


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("pos:\t0\nflags:\t02\n", id="a plain file"),
        pytest.param(i915(9, 1).replace("drm-client-id:\t9\n", ""), id="no client id"),
        pytest.param(i915(9, 1).replace(f"drm-pdev:\t{I915}\n", ""), id="no PCI address"),
        pytest.param("", id="nothing"),
    ],
)
def test_what_is_no_drm_client_is_passed_over(text: str) -> None:
    assert parse_fdinfo(text) is None


def test_times_in_an_unknown_unit_are_not_taken_for_nanoseconds() -> None:
    client = parse_fdinfo(i915(9, 100).replace("100 ns", "100 us"))
    assert client is not None
    assert client.busy == {"compute": 0}


def test_a_driver_without_engine_times_is_named(tmp_path: Path) -> None:
    open_files(tmp_path, f"drm-driver:\tnvidia-drm\ndrm-client-id:\t4\ndrm-pdev:\t{XE}\n")
    found = refused(linux(DeviceKind.GPU, tmp_path, Clock()))
    assert f"nvidia-drm of {XE}" in found.reason
    assert platform.release() in found.reason


def test_a_gpu_that_this_process_has_not_opened_has_no_counter(tmp_path: Path) -> None:
    open_files(tmp_path)
    assert "knows no GPU" in refused(linux(DeviceKind.GPU, tmp_path, Clock())).reason
    (tmp_path / "sys/class/drm/renderD128").mkdir(parents=True)
    found = refused(linux(DeviceKind.GPU, tmp_path, Clock()))
    assert "DRM driver" in found.reason
    assert "render" in found.remedy


def test_without_proc_the_open_files_cannot_be_listed(tmp_path: Path) -> None:
    assert "cannot be listed" in refused(linux(DeviceKind.GPU, tmp_path, Clock())).reason


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads this process's own /proc")
@pytest.mark.parametrize("kind", list(DeviceKind))
def test_this_very_machine_answers(kind: DeviceKind) -> None:
    found = find_counters(kind)
    if isinstance(found, Unavailable):
        assert found.reason
        assert found.remedy
    else:
        assert all(counter.sample().at > 0 for counter in found)


def test_processors_and_other_systems_have_no_counter(tmp_path: Path) -> None:
    assert "processors" in refused(linux(DeviceKind.CPU, tmp_path, Clock())).reason
    assert "darwin" in refused(find_counters(DeviceKind.NPU, root=tmp_path, platform="darwin")).reason


# NVIDIA through NVML.


class NvmlError(Exception):
    """Stands for pynvml.NVMLError."""


def nvml(shares: dict[str, int], **replaced: Any) -> SimpleNamespace:
    """A pynvml with GPUs at these bus ids, busy for these percentages."""
    members: dict[str, Any] = {
        "NVMLError": NvmlError,
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: len(shares),
        "nvmlDeviceGetHandleByIndex": lambda index: list(shares)[index],
        "nvmlDeviceGetPciInfo": lambda handle: SimpleNamespace(busId=handle),
        "nvmlDeviceGetUtilizationRates": lambda handle: SimpleNamespace(gpu=shares[handle], memory=0),
    }
    return SimpleNamespace(**{**members, **replaced})


@pytest.fixture
def nvidia(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Path]:
    """Makes a machine with NVIDIA's driver and the given pynvml."""

    def make(module: Any) -> Path:
        (tmp_path / "proc/driver/nvidia").mkdir(parents=True)
        open_files(tmp_path)
        monkeypatch.setitem(sys.modules, "pynvml", module)
        return tmp_path

    return make


def polled(read: Callable[[], float], clock: Clock) -> NvidiaCounter:
    return NvidiaCounter("NVML", read, clock, period=None)


def test_nvmls_shares_are_added_up_over_time() -> None:
    clock = Clock()
    shares = iter([0.0, 1.0, 1.0, 0.5, 0.0])
    counter = polled(lambda: next(shares), clock)
    first = counter.sample()
    for _ in range(4):
        clock.sleep(0.25)
        last = counter.sample()
    assert last.busy - first.busy == pytest.approx(0.25 * 2.5)
    assert last.total - first.total == pytest.approx(1.0)
    assert counter.device_wide


def test_a_share_says_nothing_of_more_than_the_second_before_it() -> None:
    clock = Clock()
    counter = polled(lambda: 1.0, clock)
    first = counter.sample()
    clock.sleep(60.0)
    last = counter.sample()
    assert (last.busy - first.busy, last.total - first.total) == (1.0, 1.0)
    assert last.at - first.at == 60.0


def test_nvml_is_read_between_samples_too() -> None:
    enough = threading.Event()
    reads: list[None] = []

    def read() -> float:
        reads.append(None)
        if len(reads) > 3:
            enough.set()
        return 0.0

    counter = NvidiaCounter("NVML", read, Clock(), period=0.001)
    counter.sample()
    assert enough.wait(10)
    counter.stop()


def test_nvidia_gpus_are_found_by_the_kernels_address(nvidia: Callable[[Any], Path]) -> None:
    root = nvidia(nvml({"00000000:01:00.0": 10, "00000000:82:00.0": 60}))
    found = linux(DeviceKind.GPU, root, Clock())
    assert isinstance(found, list)
    assert [counter.name.split()[-1] for counter in found] == ["0000:01:00.0", "0000:82:00.0"]
    clock = Clock()
    counter = only(linux(DeviceKind.GPU, root, clock, "0000:82:00.0"))
    assert isinstance(counter, NvidiaCounter)
    first = counter.sample()
    clock.sleep(1.0)
    assert share(first, counter.sample()) == pytest.approx(0.6)
    counter.stop()


def test_without_pynvml_the_command_that_installs_it_is_given(nvidia: Callable[[Any], Path]) -> None:
    found = refused(linux(DeviceKind.GPU, nvidia(None), Clock()))
    assert "python -m pip install nvidia-ml-py" in found.remedy


def test_an_nvml_that_cannot_be_read_says_why(nvidia: Callable[[Any], Path]) -> None:
    def not_supported(_: object) -> None:
        raise NvmlError("Not Supported")

    root = nvidia(nvml({"00000000:01:00.0": 0}, nvmlDeviceGetUtilizationRates=not_supported))
    assert "Not Supported" in refused(linux(DeviceKind.GPU, root, Clock())).reason


def test_an_nvml_that_fails_later_is_an_oserror(nvidia: Callable[[Any], Path]) -> None:
    module = nvml({"00000000:01:00.0": 0})
    counter = only(linux(DeviceKind.GPU, nvidia(module), Clock()))

    def lost(_: object) -> None:
        raise NvmlError("GPU is lost")

    module.nvmlDeviceGetUtilizationRates = lost
    with pytest.raises(OSError, match="GPU is lost"):
        counter.sample()
    assert isinstance(counter, NvidiaCounter)
    counter.stop()


def test_a_bus_id_of_older_nvml_is_bytes() -> None:
    assert pci_address(b"00000000:0A:00.0\0") == "0000:0a:00.0"


# The meter.


class Device:
    """A counter of a device that is busy for a share of the time; `unit` is its counts a second."""

    device_wide = True

    def __init__(self, clock: Clock, name: str = "device", unit: float = 1.0) -> None:
        self.name = name
        self.busy = 0.0
        self.share = 0.0
        self.total = 0.0
        self.problem: OSError | None = None
        self._clock = clock
        self._unit = unit

    def sample(self) -> Sample:
        if self.problem is not None:
            raise self.problem
        return Sample(self.busy * self._unit, self.total * self._unit, self._clock.now)

    def pass_time(self, seconds: float) -> None:
        self.busy += seconds * self.share
        self.total += seconds


def metered(*devices: Device, clock: Clock, min_work: float = 1.0) -> BusyMeter:
    def during(seconds: float) -> None:
        for device in devices:
            device.pass_time(seconds)

    clock.during = during
    meter = BusyMeter(devices, clock=clock, sleep=clock.sleep, min_work=min_work)
    meter.baseline()
    return meter


def call(meter: BusyMeter, clock: Clock, seconds: float) -> None:
    with meter.work():
        clock.sleep(seconds)


quarters = st.integers(1, 40).map(lambda n: n / 4)
shares = st.integers(0, 16).map(lambda n: n / 16)


@given(
    idle=shares,
    busy=shares,
    pause_share=shares,
    calls=st.lists(st.tuples(quarters, quarters), min_size=1),
    unit=st.sampled_from([1.0, 1e6, 1e9, 19.2e6]),
)
def test_a_window_holds_what_the_device_did_from_its_first_call_to_its_end(
    idle: float, busy: float, pause_share: float, calls: list[tuple[float, float]], unit: float
) -> None:
    """Each call is followed by a pause; the share busy differs before, in calls, and in pauses."""
    clock = Clock()
    device = Device(clock, unit=unit)
    device.share = idle
    meter = metered(device, clock=clock, min_work=0.25)
    device.share = 1.0
    clock.sleep(7.0)
    for work, pause in calls:
        device.share = busy
        call(meter, clock, work)
        device.share = pause_share
        clock.sleep(pause)
    worked, paused = (sum(seconds) for seconds in zip(*calls, strict=True))
    assert meter.work_seconds == pytest.approx(worked)
    (reading,) = meter.readings()
    assert (reading.counter, reading.device_wide) == ("device", True)
    # Others' load after the window counts as well, where the counter counts others' work.
    assert reading.idle_share == pytest.approx(max(idle, pause_share))
    assert reading.work_seconds == pytest.approx(worked)
    assert reading.elapsed_seconds == pytest.approx(worked + paused)
    assert reading.busy_seconds == pytest.approx(worked * busy + paused * pause_share)
    assert meter.work_seconds == 0


def test_too_little_work_gives_the_last_windows_readings() -> None:
    clock = Clock()
    device = Device(clock)
    meter = metered(device, clock=clock)
    call(meter, clock, 0.75)
    assert meter.readings() == ()
    call(meter, clock, 0.25)
    first = meter.readings()
    assert len(first) == 1
    call(meter, clock, 0.75)
    assert meter.readings() is first
    assert meter.work_seconds == 0.75, "the open window goes on"


def test_a_window_begins_with_its_first_call_not_with_the_end_of_the_last() -> None:
    clock = Clock()
    device = Device(clock)
    meter = metered(device, clock=clock)
    device.share = 1.0
    call(meter, clock, 2.0)
    assert meter.readings()[0].busy_seconds == pytest.approx(2.0)
    clock.sleep(100.0)
    device.share = 0.0
    call(meter, clock, 3.0)
    (reading,) = meter.readings()
    assert (reading.busy_seconds, reading.elapsed_seconds, reading.work_seconds) == pytest.approx((0.0, 3.0, 3.0))


def test_a_call_inside_a_call_counts_once_and_a_failed_one_counts() -> None:
    clock = Clock()
    meter = metered(Device(clock), clock=clock)
    with meter.work():
        clock.sleep(1.0)
        call(meter, clock, 2.0)
    assert meter.work_seconds == 3.0

    def crash() -> None:
        with meter.work():
            clock.sleep(4.0)
            raise ValueError("driver")

    with pytest.raises(ValueError, match="driver"):
        crash()
    assert meter.work_seconds == 7.0


@pytest.mark.parametrize("when", ["baseline", "first call", "end"])
def test_a_counter_that_cannot_be_read_is_left_out_with_its_reason(when: str) -> None:
    clock = Clock()
    bad, good = Device(clock, "bad"), Device(clock, "good")

    def fail(stage: str) -> None:
        if stage == when:
            bad.problem = OSError("driver unloaded")

    fail("baseline")
    meter = metered(bad, good, clock=clock)
    fail("first call")
    call(meter, clock, 1.0)
    fail("end")
    assert [reading.counter for reading in meter.readings()] == ["good"]
    assert meter.unread == {"bad": "driver unloaded"}
    bad.problem = None
    call(meter, clock, 1.0)
    assert [reading.counter for reading in meter.readings()] == ["good"], "once dropped, it stays out"


def test_a_window_that_no_counter_could_read_has_no_readings() -> None:
    clock = Clock()
    device = Device(clock)
    meter = metered(device, clock=clock)
    call(meter, clock, 1.0)
    assert meter.readings()
    device.problem = OSError("gone")
    call(meter, clock, 1.0)
    assert meter.readings() == (), "not those of a window before"


def test_a_counter_that_goes_backwards_or_whose_clock_stands_still_says_nothing() -> None:
    clock = Clock()
    reset, frozen = Device(clock, "reset"), Device(clock, "frozen")
    reset.busy = 50.0
    meter = metered(reset, frozen, clock=clock)
    with meter.work():
        clock.sleep(1.0)
        reset.busy = 0.0
        frozen.total -= 1.0
    assert meter.readings() == ()
    assert "backwards" in meter.unread["reset"]
    assert "stood still" in meter.unread["frozen"]


def test_work_wants_a_baseline_first() -> None:
    clock = Clock()
    meter = BusyMeter([Device(clock)], clock=clock, sleep=clock.sleep)
    with pytest.raises(RuntimeError, match="baseline"), meter.work():
        pass


def test_without_counters_nothing_is_waited_for() -> None:
    clock = Clock()
    meter = metered(clock=clock)
    assert clock.now == Clock().now
    call(meter, clock, 1.0)
    assert meter.readings() == ()


def test_an_npu_counter_read_once_a_second_is_metered_right(tmp_path: Path) -> None:
    """The closed window's last reading may serve as the next one's first: then with its own time."""
    clock = Clock()
    npu(tmp_path, 0)
    meter = BusyMeter([only(linux(DeviceKind.NPU, tmp_path, clock))], clock=clock, sleep=clock.sleep)
    meter.baseline()
    call(meter, clock, 1.5)
    npu(tmp_path, 1_500_000)
    (first,) = meter.readings()
    clock.sleep(0.5)
    call(meter, clock, 1.0)
    npu(tmp_path, 2_400_000)
    (second,) = meter.readings()
    assert (first.busy_seconds, first.elapsed_seconds) == pytest.approx((1.5, 1.5))
    assert (second.busy_seconds, second.elapsed_seconds) == pytest.approx((0.9, 1.5))
    assert second.work_seconds == pytest.approx(1.0)


def test_readings_cross_a_process_border_unchanged() -> None:
    reading = Reading("accel0 npu_busy_time_us", True, 0.02, 1.4, 1.5, 1.45)
    assert msgspec.json.decode(msgspec.json.encode((reading,)), type=tuple[Reading, ...]) == (reading,)
