"""Windows' busy counters on dumps of instance names and running times, and PDH's calls on a stand-in for pdh.dll."""

from __future__ import annotations

import ctypes
import os
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.busy_counter import Counter
from harness.busy_windows import (
    Engine,
    EngineCounter,
    FileTime,
    NoCounterSet,
    Pdh,
    PdhEngines,
    RawCounter,
    RawItem,
    adapters_of_kind,
    find_engine_counters,
    load_pdh,
    parse_instance,
)
from harness.target import DeviceKind, Unavailable

OWN, OTHER = 12332, 4752
GPU, NPU, BASIC = "0:74918", "0:75942", "0:23600"


def name(pid: int, luid: str, engine: int, kind: str) -> str:
    high, low = (int(part) & 0xFFFFFFFF for part in luid.split(":"))
    return f"pid_{pid}_luid_0x{high:08X}_0x{low:08X}_phys_0_eng_{engine}_engtype_{kind}"


def dump(pid: int, **running: int) -> dict[str, int]:
    """A process on a machine with an iGPU, an NPU and the Basic Render Driver: all engines, 100 ns each."""
    times = {"gpu_3d": 0, "gpu_compute": 0, "gpu_neural": 0, "npu": 0, "basic": 0, **running}
    return {
        name(pid, GPU, 0, "3D"): times["gpu_3d"],
        name(pid, GPU, 1, "Copy"): 0,
        name(pid, GPU, 2, "Compute"): times["gpu_compute"],
        name(pid, GPU, 3, "GSC"): 0,
        name(pid, GPU, 4, "Neural"): times["gpu_neural"],
        name(pid, NPU, 0, "Neural"): times["npu"],
        name(pid, BASIC, 0, "3D"): times["basic"],
    }


class Recorded:
    """Running times as they were dumped; `now` is the dump that is read next."""

    def __init__(self, *dumps: dict[str, int]) -> None:
        self.show(*dumps)

    def show(self, *dumps: dict[str, int]) -> None:
        self.now = {instance: time for dumped in dumps for instance, time in dumped.items()}

    def list_instances(self) -> dict[str, int]:
        return self.now


class Clock:
    def __init__(self) -> None:
        self.now = 512.0

    def __call__(self) -> float:
        return self.now


def found(kind: DeviceKind, source: Recorded, clock: Clock, adapter: str | None = None) -> list[Counter] | Unavailable:
    return find_engine_counters(kind, clock=clock, adapter=adapter, source=source, software=[BASIC], pid=OWN)


def only(counters: list[Counter] | Unavailable) -> Counter:
    assert isinstance(counters, list), str(counters)
    (counter,) = counters
    return counter


# Instance names.

luid_parts = st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1))
# Types are the drivers' own words: with spaces, underscores, or none at all.
types = st.sampled_from(["3D", "Compute", "Compute_0", "Neural", "GDI Render", "Timer 0", ""]) | st.text(
    st.characters(codec="ascii", exclude_characters="\n\r", exclude_categories=["Cc"]), max_size=20
)


@given(st.integers(0, 2**32 - 1), luid_parts, st.integers(0, 9), st.integers(0, 63), types, st.booleans())
def test_an_instance_name_is_read_as_it_was_written(
    pid: int, luid: tuple[int, int], physical: int, engine: int, kind: str, upper: bool
) -> None:
    high, low = luid
    digits = "08X" if upper else "08x"
    text = f"pid_{pid}_luid_0x{high & 0xFFFFFFFF:{digits}}_0x{low:{digits}}_phys_{physical}_eng_{engine}_engtype_{kind}"
    assert parse_instance(text) == Engine(pid, f"{high}:{low}", physical, engine, kind)


@pytest.mark.parametrize(
    "text",
    [
        "_Total",
        "",
        "pid_x_luid_0x00000000_0x00005C30_phys_0_eng_0_engtype_3D",
        "pid_7_luid_0x00000000_phys_0_eng_0_engtype_3D",
        "pid_7_luid_0x00000000_0x00005C30_phys_0_eng_0",
        "x_pid_7_luid_0x00000000_0x00005C30_phys_0_eng_0_engtype_3D",
    ],
)
def test_other_names_are_passed_over(text: str) -> None:
    assert parse_instance(text) is None
    assert adapters_of_kind([text], DeviceKind.NPU) == []


# Which adapter is what.


def test_an_npu_is_an_adapter_with_only_compute_and_neural_engines() -> None:
    names = list(dump(OTHER))
    assert adapters_of_kind(names, DeviceKind.NPU) == [NPU]
    assert adapters_of_kind(names, DeviceKind.GPU) == sorted([GPU, BASIC])


def test_engines_of_all_processes_tell_what_an_adapter_is() -> None:
    """An own process may show only the compute engines of a GPU."""
    own = [name(OWN, GPU, 2, "Compute"), name(OWN, NPU, 0, "Compute_0"), name(OWN, NPU, 1, "compute_1")]
    assert adapters_of_kind([*own, name(OTHER, GPU, 0, "3D")], DeviceKind.NPU) == [NPU]


# Counters.


def test_the_npu_is_busy_for_this_processs_running_time_on_it() -> None:
    clock, source = Clock(), Recorded(dump(OWN, npu=100), dump(OTHER, npu=7_000))
    counter = only(found(DeviceKind.NPU, source, clock))
    first = counter.sample()
    source.show(dump(OWN, npu=5_000_100, gpu_compute=33), dump(OTHER, npu=9_000_000))
    clock.now += 2.0
    last = counter.sample()
    assert last.busy - first.busy == 5_000_000
    assert (last.busy - first.busy) / (last.total - first.total) == pytest.approx(0.25)
    assert last.at - first.at == 2.0
    assert not counter.device_wide
    assert NPU in counter.name


def test_a_gpu_is_busy_for_all_of_its_engines() -> None:
    """A Neural engine of a GPU is the GPU's."""
    clock, source = Clock(), Recorded(dump(OWN))
    counter = only(found(DeviceKind.GPU, source, clock))
    first = counter.sample()
    source.show(dump(OWN, gpu_3d=1, gpu_compute=20, gpu_neural=300, npu=4_000, basic=50_000))
    clock.now += 1.0
    assert counter.sample().busy - first.busy == 321


def test_this_process_counts_where_no_other_is_named() -> None:
    source = Recorded(dump(os.getpid(), npu=5), dump(os.getpid() + 1, npu=70))
    counter = only(find_engine_counters(DeviceKind.NPU, clock=Clock(), source=source))
    assert counter.sample().busy == 5


def test_one_adapter_may_be_chosen_and_a_software_one_is_none() -> None:
    second = "0:99999"
    source = Recorded(dump(OWN), {name(OWN, second, 0, "3D"): 8})
    both = found(DeviceKind.GPU, source, Clock())
    assert isinstance(both, list)
    assert len(both) == 2
    assert only(found(DeviceKind.GPU, source, Clock(), second)).sample().busy == 8
    for luid in (BASIC, NPU, "0:1"):
        refused = found(DeviceKind.GPU, source, Clock(), luid)
        assert isinstance(refused, Unavailable)
        assert luid in refused.reason


def test_without_an_npu_the_reason_says_what_one_would_look_like() -> None:
    refused = found(DeviceKind.NPU, Recorded({name(OWN, GPU, 0, "3D"): 1}), Clock())
    assert isinstance(refused, Unavailable)
    assert "only Compute and Neural" in refused.reason
    assert "Task Manager" in refused.remedy


@pytest.mark.parametrize(
    ("error", "reason"), [(NoCounterSet("none"), "counts no GPU engines"), (OSError("0xC0000BC6"), "0xC0000BC6")]
)
def test_unreadable_counters_are_unavailable_with_the_reason(error: OSError, reason: str) -> None:
    class Broken(Recorded):
        def list_instances(self) -> dict[str, int]:
            raise error

    refused = found(DeviceKind.GPU, Broken(), Clock())
    assert isinstance(refused, Unavailable)
    assert reason in refused.reason


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has PDH")
def test_elsewhere_than_on_windows_there_is_no_pdh() -> None:
    with pytest.raises(OSError, match="Windows"):
        load_pdh()
    refused = find_engine_counters(DeviceKind.NPU, clock=Clock())
    assert isinstance(refused, Unavailable)
    assert "PDH" in refused.reason


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has DXGI")
def test_gpus_that_cannot_be_told_from_software_adapters_are_not_counted() -> None:
    source = Recorded(dump(OWN))
    refused = find_engine_counters(DeviceKind.GPU, clock=Clock(), source=source, pid=OWN)
    assert isinstance(refused, Unavailable)
    assert "DXGI" in refused.reason
    assert only(find_engine_counters(DeviceKind.NPU, clock=Clock(), source=source, pid=OWN)), "NPUs need no DXGI"


work = st.integers(0, 10_000_000)  # At most one second's running time, in 100 ns.


@given(st.lists(st.tuples(work, st.sampled_from(["stays", "closed", "opened anew"])), max_size=10))
def test_engines_that_close_and_open_lose_nothing_and_never_go_backwards(steps: list[tuple[int, str]]) -> None:
    """One sample a second of an engine that runs, may be closed in between, or be opened anew from zero."""
    clock, source = Clock(), Recorded(dump(OWN))
    counter = EngineCounter(NPU, source, clock, OWN)
    before = counter.sample().busy
    time, done = 0, 0
    for ran, what in steps:
        clock.now += 1.0
        if what == "closed":
            source.show()
        else:
            # An engine opened anew whose time has overtaken the old one's cannot be told from that one.
            anew = what == "opened anew" and ran < time
            time, done = (ran if anew else time + ran), done + ran
            source.show(dump(OWN, npu=time))
        now = counter.sample().busy
        assert now == done
        assert now >= before
        before = now


def test_a_running_time_that_jumps_to_and_fro_is_not_believed() -> None:
    clock, source = Clock(), Recorded(dump(OWN))
    counter = only(found(DeviceKind.GPU, source, clock))
    source.show(dump(OWN, gpu_neural=28_700_000_000))
    clock.now += 1.0
    counter.sample()
    source.show(dump(OWN, gpu_neural=14_900_000_000))
    clock.now += 1.0
    with pytest.raises(OSError, match=r"counts wrongly.*engtype_Neural"):
        counter.sample()


# PDH.


def test_structures_have_the_sizes_of_the_windows_sdk() -> None:
    assert (ctypes.sizeof(FileTime), ctypes.alignment(FileTime)) == (8, 4)
    assert ctypes.sizeof(RawCounter) == 40
    assert [getattr(RawCounter, field).offset for field in ("time", "first", "second", "count")] == [4, 16, 24, 32]
    if ctypes.sizeof(ctypes.c_void_p) == 8:
        assert (ctypes.sizeof(RawItem), RawItem.value.offset) == (48, 8)


class FakePdh:
    """pdh.dll with one counter; `statuses` are what functions return instead of success."""

    MORE_DATA = 0x800007D2

    def __init__(self, times: dict[str, tuple[int, int]], **statuses: int) -> None:
        self.times = times
        self.statuses = statuses
        self.queries = 0
        self.paths: list[str] = []

    def functions(self) -> Pdh:
        return Pdh(self.open_query, self.add, self.collect, self.raw_array, self.close_query)

    def open_query(self, source: None, _user: int, query: Any) -> int:
        assert source is None, "a live source, not a log file"
        self.queries += 1
        query.contents.value = 0xA0
        return self.statuses.get("open", 0)

    def add(self, query: ctypes.c_void_p, path: str, _user: int, counter: Any) -> int:
        assert query.value == 0xA0
        self.paths.append(path)
        counter.contents.value = 0xC0
        return self.statuses.get("add", 0)

    def collect(self, query: ctypes.c_void_p) -> int:
        assert query.value == 0xA0
        return self.statuses.get("collect", 0)

    def raw_array(self, counter: ctypes.c_void_p, size: Any, count: Any, items: Any) -> int:
        assert counter.value == 0xC0
        needed = sum(ctypes.sizeof(RawItem) + 2 * (len(text) + 1) for text in self.times)
        if "raw" in self.statuses:
            return self.statuses["raw"]
        if items is None or ctypes.sizeof(items) < needed:
            assert size.contents.value == 0 or items is not None
            size.contents.value = needed
            return self.MORE_DATA
        count.contents.value = len(self.times)
        for item, (text, (status, time)) in zip(items, self.times.items(), strict=False):
            item.name = text
            item.value.status, item.value.first, item.value.second = status, time, -1
        return 0

    def close_query(self, query: ctypes.c_void_p) -> int:
        assert query.value == 0xA0
        self.queries -= 1
        return 0


def test_pdh_gives_the_raw_running_time_of_every_valid_instance() -> None:
    pdh = FakePdh({"pid_1": (0, 123), "pid_2": (1, 2**40), "pid_3": (0xC0000BBA, 9), "pid_4": (0, 0)})
    assert PdhEngines(pdh.functions()).list_instances() == {"pid_1": 123, "pid_2": 2**40, "pid_4": 0}
    assert pdh.paths == [r"\GPU Engine(*)\Running Time"]
    assert pdh.queries == 0, "every query is closed"


@pytest.mark.parametrize(
    "statuses", [{"collect": 0x800007D5}, {"raw": 0x800007D5}, {"raw": 0x800007D1}, {"raw": 0}], ids=str
)
def test_no_instance_is_no_error(statuses: dict[str, int]) -> None:
    pdh = FakePdh({}, **statuses)
    assert PdhEngines(pdh.functions()).list_instances() == {}
    assert pdh.queries == 0


@pytest.mark.parametrize("status", [0xC0000BB8, 0xC0000BB9])
def test_a_windows_without_the_counter_set_is_told_apart(status: int) -> None:
    pdh = FakePdh({}, add=status)
    with pytest.raises(NoCounterSet, match=rf"GPU Engine.*0x{status:08X}"):
        PdhEngines(pdh.functions()).list_instances()
    assert pdh.queries == 0


@pytest.mark.parametrize("function", ["open", "add", "collect", "raw"])
def test_other_statuses_of_pdh_are_errors_with_their_number(function: str) -> None:
    pdh = FakePdh({}, **{function: 0xC0000BC6})
    with pytest.raises(OSError, match=r"Pdh\w+ failed with 0xC0000BC6"):
        PdhEngines(pdh.functions()).list_instances()
