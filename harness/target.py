"""What is judged: targets, the devices and precisions they name, and how we know where they ran."""

from __future__ import annotations

import enum
import fnmatch
import re

import msgspec

from harness.errors import UsageError


class DeviceKind(str, enum.Enum):
    """The kind of processor behind a device name: `dml` and `cuda` are both of kind gpu."""

    CPU = "cpu"
    GPU = "gpu"
    NPU = "npu"


class Precision(str, enum.Enum):
    """The precision of an artifact's weights, from finest to coarsest."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    INT4 = "int4"


_PART = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


class Target(msgspec.Struct, frozen=True, order=True):
    """One way of running Phi-3, printed and parsed as `backend:device:precision[:host]`.

    `device` may carry an index (`gpu.1`); `base_device` is the name without it.
    """

    backend: str
    device: str
    precision: Precision
    host: str | None = None

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `backend:device:precision[:host]`.

        Raises UsageError with the expected form when `text` has another.
        """
        parts = text.split(":")
        if len(parts) not in (3, 4) or not all(_PART.fullmatch(part) for part in parts):
            raise UsageError(f"{text!r} is not a target", "write backend:device:precision, e.g. openvino:npu:int4")
        _, dot, index = parts[1].partition(".")
        if dot and not index.isdigit():
            raise UsageError(f"{text!r} has the device {parts[1]!r}, whose index is no number", "write e.g. gpu.1")
        try:
            precision = Precision(parts[2])
        except ValueError:
            known = ", ".join(p.value for p in Precision)
            raise UsageError(f"{text!r} has the unknown precision {parts[2]!r}", f"use one of {known}") from None
        return cls(parts[0], parts[1], precision, parts[3] if len(parts) == 4 else None)

    @property
    def base_device(self) -> str:
        """The device's name without its index: `gpu` for `gpu.1`."""
        return self.device.split(".")[0]

    @property
    def index(self) -> int | None:
        """The device's index: 1 for `gpu.1`, None where there is none."""
        _, _, index = self.device.partition(".")
        return int(index) if index.isdigit() else None

    def __str__(self) -> str:
        parts = [self.backend, self.device, self.precision.value]
        return ":".join(parts if self.host is None else [*parts, self.host])


def matches(target: Target, pattern: str) -> bool:
    """Whether a target matches a glob such as `openvino:*:int4`; case counts, on every system."""
    return fnmatch.fnmatchcase(str(target), pattern)


class Unavailable(msgspec.Struct, frozen=True, tag="unavailable"):
    """Why a device or backend cannot be used here, and what would change that."""

    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.reason}; {self.remedy}"


class EvidenceLevel(str, enum.Enum):
    """How we know which device computed.

    `measured`: a counter, profile or node assignment says so. `by-construction`: the device was named
    explicitly and the runtime has no way to fall back. `none`: neither.
    """

    MEASURED = "measured"
    BY_CONSTRUCTION = "by-construction"
    NONE = "none"


class Placement(msgspec.Struct, frozen=True):
    """What one execution provider ran of a graph: runs of nodes, those that are products or attention, and µs."""

    provider: str
    nodes: int
    heavy_nodes: int
    microseconds: int


class Reading(msgspec.Struct, frozen=True):
    """What one busy counter did during one window of work: raw numbers, judged by `harness.attest`.

    `idle_share`: the share of its time that the device was busy before this session computed anything, from
    0 to 1, or above 1 where a counter adds several engines up. `busy_seconds`: how long it was busy during the
    window; above `elapsed_seconds` where several engines ran at once. `elapsed_seconds`: from the first to
    the last reading of the window, pauses between calls included. `work_seconds`: wall time spent in calls.
    """

    counter: str
    device_wide: bool
    idle_share: float
    busy_seconds: float
    elapsed_seconds: float
    work_seconds: float


class Evidence(msgspec.Struct, frozen=True):
    """What was found out about where a session ran.

    `devices` is what the runtime names, in its own words; `kinds` the device kinds these amount to; `source`
    the property or profile that was read; `level` what that is worth by itself. `placements` are the counts
    behind a profile. `readings` are those of the operating system's busy counters, gathered by the worker
    for whatever backend; `unread` says why there are none.
    """

    level: EvidenceLevel
    kinds: tuple[DeviceKind, ...]
    devices: tuple[str, ...]
    source: str
    placements: tuple[Placement, ...] = ()
    readings: tuple[Reading, ...] = ()
    unread: str = ""
