r"""Windows' busy counters: what Task Manager shows, `\GPU Engine(*)\Running Time`, through PDH. Not yet run on Windows.

Every process has an instance per engine of every adapter it has opened, named
`pid_P_luid_0xH_0xL_phys_0_eng_N_engtype_T`, whose Running Time counts 100 ns. NPUs are among the adapters: an NPU
is one all of whose engines are Compute or Neural engines. A GPU may have a Neural engine too (Intel's since Lunar
Lake), next to 3D and others.

Only the instances of this very process count. A venv's launcher is another process, with another pid.

From an Arc 130V a Neural engine has been reported whose Running Time jumps to and fro, so a value that falls is not
taken on trust: see EngineCounter.
"""

from __future__ import annotations

import ctypes
import os
import re
import sys
from collections.abc import Callable, Collection
from typing import Any, NamedTuple, Protocol

from harness.busy_counter import Counter, Sample
from harness.dxgi import list_adapters
from harness.target import DeviceKind, Unavailable

_PER_SECOND = 1e7
_INSTANCE = re.compile(
    r"pid_(?P<pid>\d+)_luid_0x(?P<high>[0-9a-f]{1,8})_0x(?P<low>[0-9a-f]{1,8})"
    r"_phys_(?P<physical>\d+)_eng_(?P<engine>\d+)_engtype_(?P<type>.*)",
    re.IGNORECASE,
)


class Engine(NamedTuple):
    """An engine of an adapter as one process uses it; `luid` is `high:low` in decimal, as in `harness.dxgi`."""

    pid: int
    luid: str
    physical: int
    number: int
    type: str


def parse_instance(name: str) -> Engine | None:
    """Read an instance name of the counter set GPU Engine; None where it has another form."""
    match = _INSTANCE.fullmatch(name)
    if match is None:
        return None
    high = int(match["high"], 16)
    # A LUID's high part is signed, its low part is not.
    signed = high - (1 << 32) if high >= 1 << 31 else high
    luid = f"{signed}:{int(match['low'], 16)}"
    return Engine(int(match["pid"]), luid, int(match["physical"]), int(match["engine"]), match["type"])


class EngineSource(Protocol):
    """Where running times are read from."""

    def list_instances(self) -> dict[str, int]:
        """Running time in 100 ns by instance name, of all processes. Raises OSError when it cannot be read."""
        ...


class EngineCounter:
    """What this process keeps one adapter busy with, in 100 ns: the sum over its engines.

    An engine that is gone stays in the sum. One whose time falls was opened anew, if what it then shows can
    have been run since the last sample; if not, the driver counts wrongly and `sample` raises OSError.
    """

    device_wide = False

    def __init__(self, luid: str, source: EngineSource, clock: Callable[[], float], pid: int) -> None:
        self.name = rf"\GPU Engine\Running Time of adapter {luid}"
        self._luid = luid
        self._source = source
        self._clock = clock
        self._pid = pid
        self._times: dict[str, int] = {}
        self._busy = 0
        self._at: float | None = None

    def sample(self) -> Sample:
        """100 ns busy. Raises OSError when PDH cannot be read, or an engine's time fell and cannot be right."""
        at = self._clock()
        since = 0.0 if self._at is None else (at - self._at) * _PER_SECOND
        for name, time in self._source.list_instances().items():
            engine = parse_instance(name)
            if engine is None or (engine.pid, engine.luid) != (self._pid, self._luid):
                continue
            before = self._times.get(name, 0)
            if before <= time:
                self._busy += time - before
            elif time <= since:
                self._busy += time
            else:
                raise OSError(f"the driver counts wrongly: {name} went from {before} to {time}")
            self._times[name] = time
        self._at = at
        return Sample(float(self._busy), at * _PER_SECOND, at)


def adapters_of_kind(names: Collection[str], kind: DeviceKind) -> list[str]:
    """The LUIDs, among the adapters of all instances, of the NPUs, or of the adapters that are none."""
    types: dict[str, set[str]] = {}
    for engine in map(parse_instance, names):
        if engine is not None:
            types.setdefault(engine.luid, set()).add(engine.type.lower())
    computing = ("compute", "neural")
    return sorted(
        luid
        for luid, found in types.items()
        if all(name.startswith(computing) for name in found) is (kind is DeviceKind.NPU)
    )


def find_engine_counters(
    kind: DeviceKind,
    *,
    clock: Callable[[], float],
    adapter: str | None = None,
    source: EngineSource | None = None,
    software: Collection[str] | None = None,
    pid: int | None = None,
) -> list[Counter] | Unavailable:
    """The counters of the NPUs or GPUs that are in use, or of the one of a LUID; Unavailable says why there are none.

    `source` is PDH where none is given, `software` the LUIDs of the software adapters that DXGI lists, and `pid`
    this process.
    """
    try:
        source = PdhEngines(load_pdh()) if source is None else source
        names = source.list_instances()
    except NoCounterSet as error:
        return Unavailable(
            f"Windows counts no GPU engines: {error}",
            "use Windows 10 1709 or later with a WDDM 2.0 driver; lodctr /R restores damaged counters",
        )
    except OSError as error:
        return Unavailable(f"Windows' performance counters cannot be read: {error}", "try lodctr /R as administrator")
    luids = [luid for luid in adapters_of_kind(names, kind) if adapter in (None, luid)]
    if luids and kind is DeviceKind.GPU:
        # Running time on Microsoft's Basic Render Driver would pass for a GPU's, though the processor computes.
        try:
            software = [a.luid for a in list_adapters() if a.software] if software is None else software
        except OSError as error:
            return Unavailable(f"GPUs cannot be told from software adapters: {error}", "mend the graphics driver")
        luids = [luid for luid in luids if luid not in software]
    if not luids:
        where = "" if adapter is None else f" of LUID {adapter}"
        form = "with only Compute and Neural engines" if kind is DeviceKind.NPU else "with graphics engines"
        return Unavailable(
            f"no adapter{where} {form} is in use by any process",
            f"load the model on the {kind.value.upper()} first; check in Task Manager that Windows knows the device",
        )
    own = os.getpid() if pid is None else pid
    return [EngineCounter(luid, source, clock, own) for luid in luids]


# PDH: pdh.h and pdhmsg.h of the Windows SDK. Fixed-width types, so that sizes can be tested everywhere.
_PATH = r"\GPU Engine(*)\Running Time"
_MORE_DATA = 0x800007D2
_NO_OBJECT, _NO_COUNTER = 0xC0000BB8, 0xC0000BB9
# PDH_NO_DATA and PDH_CSTATUS_NO_INSTANCE: there is no instance, since no process uses any adapter.
_NOTHING = (0x800007D5, 0x800007D1)
# PDH_CSTATUS_VALID_DATA and PDH_CSTATUS_NEW_DATA.
_VALID = (0, 1)


class FileTime(ctypes.Structure):
    """FILETIME: two halves, so that it is aligned to 4 bytes and not to 8."""

    _fields_ = (("low", ctypes.c_uint32), ("high", ctypes.c_uint32))


class RawCounter(ctypes.Structure):
    """PDH_RAW_COUNTER."""

    _fields_ = (
        ("status", ctypes.c_uint32),
        ("time", FileTime),
        ("first", ctypes.c_int64),
        ("second", ctypes.c_int64),
        ("count", ctypes.c_uint32),
    )


class RawItem(ctypes.Structure):
    """PDH_RAW_COUNTER_ITEM_W."""

    _fields_ = (("name", ctypes.c_wchar_p), ("value", RawCounter))


class NoCounterSet(OSError):
    """Windows has no counter set GPU Engine, or not this counter in it."""


class Pdh(NamedTuple):
    """The functions of pdh.dll that are called; each returns a PDH_STATUS."""

    open_query: Callable[..., int]
    add_english_counter: Callable[..., int]
    collect: Callable[..., int]
    raw_array: Callable[..., int]
    close_query: Callable[..., int]


def load_pdh() -> Pdh:
    """Load pdh.dll. Raises OSError where it cannot be, as on every other system than Windows."""
    if sys.platform != "win32":
        raise OSError("PDH is a part of Windows")
    dll = ctypes.WinDLL("pdh")
    handle, pointer = ctypes.c_void_p, ctypes.POINTER
    number = pointer(ctypes.c_uint32)
    return Pdh(
        # DWORD_PTR, the user's data, is as wide as a pointer.
        _declare(dll.PdhOpenQueryW, ctypes.c_wchar_p, ctypes.c_size_t, pointer(handle)),
        # English: the names of counters are translated, and PdhAddCounterW takes the translation only.
        _declare(dll.PdhAddEnglishCounterW, handle, ctypes.c_wchar_p, ctypes.c_size_t, pointer(handle)),
        _declare(dll.PdhCollectQueryData, handle),
        _declare(dll.PdhGetRawCounterArrayW, handle, number, number, pointer(RawItem)),
        _declare(dll.PdhCloseQuery, handle),
    )


def _declare(function: Any, *arguments: Any) -> Callable[..., int]:
    function.argtypes = arguments
    function.restype = ctypes.c_uint32  # PDH_STATUS is a LONG; unsigned, it compares with the SDK's constants.
    declared: Callable[..., int] = function
    return declared


class PdhEngines:
    """Running times as PDH gives them: raw, since formatted values would be rates between two collections.

    A query is made for every list: then nothing hangs on whether a wildcard sees instances that come later.
    """

    def __init__(self, pdh: Pdh) -> None:
        self._pdh = pdh

    def list_instances(self) -> dict[str, int]:
        """Running time in 100 ns by instance name. Raises NoCounterSet, or OSError with the status of PDH."""
        query, counter = ctypes.c_void_p(), ctypes.c_void_p()
        _check("PdhOpenQueryW", self._pdh.open_query(None, 0, ctypes.pointer(query)))
        try:
            added = self._pdh.add_english_counter(query, _PATH, 0, ctypes.pointer(counter))
            _check("PdhAddEnglishCounterW", added)
            status = self._pdh.collect(query)
            if status in _NOTHING:
                return {}
            _check("PdhCollectQueryData", status)
            return self._read(counter)
        finally:
            self._pdh.close_query(query)

    def _read(self, counter: ctypes.c_void_p) -> dict[str, int]:
        size, count = ctypes.c_uint32(0), ctypes.c_uint32(0)
        sizes = (ctypes.pointer(size), ctypes.pointer(count))
        status = self._pdh.raw_array(counter, *sizes, None)
        if status in _NOTHING:
            return {}
        if status != _MORE_DATA:
            _check("PdhGetRawCounterArrayW", status)
            return {}
        # The names follow the items in the same memory, so that this is more than `count` of them.
        items = (RawItem * (size.value // ctypes.sizeof(RawItem) + 1))()
        _check("PdhGetRawCounterArrayW", self._pdh.raw_array(counter, *sizes, items))
        return {item.name or "": item.value.first for item in items[: count.value] if item.value.status in _VALID}


def _check(what: str, status: int) -> None:
    if status in (_NO_OBJECT, _NO_COUNTER):
        raise NoCounterSet(f"{what} finds no {_PATH} (0x{status:08X})")
    if status != 0:
        raise OSError(f"{what} failed with 0x{status:08X}")
