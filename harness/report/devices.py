"""What this machine is and what runs on it, as a page of text: `phi3-conformance devices`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import msgspec

from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.target import DeviceKind


class TargetReport(msgspec.Struct, frozen=True):
    """Whether a target runs: the device with what was read of it, or the reason why not and the remedy."""

    target: str
    kind: DeviceKind
    runs: bool
    device: str = ""
    properties: dict[str, str] = {}
    reason: str = ""
    remedy: str = ""


class DevicesReport(msgspec.Struct, frozen=True):
    """The fingerprint of a machine and of the hosts of a lab, with every target of every backend."""

    schema: int
    harness: str
    machine: Machine
    hosts: dict[str, Machine]
    runtimes: list[RuntimeReport]
    targets: list[TargetReport]


def describe_devices(report: DevicesReport) -> str:
    """The report as text, in plain ASCII."""
    parts = [_machine("this machine", report.machine)]
    parts += [_machine(f"host {name}", machine) for name, machine in report.hosts.items()]
    parts.append(_runtimes(report.runtimes))
    parts.append(_running(report.targets))
    parts.append(_idle(report.targets))
    return "\n\n".join(part for part in parts if part)


def _machine(title: str, machine: Machine) -> str:
    lines = [
        f"{title}: {machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB",
        f"  {machine.system} {machine.release} on {machine.architecture}, Python {machine.python}",
    ]
    for found in machine.accelerators:
        firmware = f", firmware {found.firmware}" if found.firmware else ""
        lines.append(f"  {found.kind.value}: {found.name}, driver {found.driver} {found.driver_version}{firmware}")
    if machine.unread:
        lines.append(f"  accelerators unknown: {machine.unread}")
    elif not machine.accelerators:
        lines.append("  the operating system knows no GPU and no NPU")
    return "\n".join(lines)


def _runtimes(runtimes: Sequence[RuntimeReport]) -> str:
    lines = ["runtimes:"]
    names = [r.backend if r.host is None else f"{r.backend} on {r.host}" for r in runtimes]
    width = max(map(len, names), default=0)
    for name, runtime in zip(names, runtimes, strict=True):
        versions = ", ".join(f"{package} {version}" for package, version in sorted(runtime.versions.items()))
        lines.append(f"  {name:{width}} Python {runtime.python or '?'}: {versions or 'none of its packages'}")
        lines.extend(f"      {line}" for line in runtime.error.splitlines())
    return "\n".join(lines)


def _running(targets: Sequence[TargetReport]) -> str:
    by_device: dict[tuple[str, str], list[TargetReport]] = defaultdict(list)
    for target in targets:
        if target.runs:
            by_device[_without_precision(target.target), target.device].append(target)
    if not by_device:
        return "no target runs here"
    lines = ["runs here:"]
    width = max(len(name) for name, _ in by_device)
    for (name, device), found in by_device.items():
        precisions = " ".join(target.target.split(":")[2] for target in found)
        lines.append(f"  {name:{width}} {precisions:24} {device}{_shown(found[0].properties, device)}")
    return "\n".join(lines)


def _shown(properties: Mapping[str, str], device: str) -> str:
    shown = [f"{key} {value}" for key, value in properties.items() if value != device]
    return f"  ({', '.join(shown)})" if shown else ""


def _idle(targets: Sequence[TargetReport]) -> str:
    reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
    for target in targets:
        if not target.runs:
            reasons[target.reason, target.remedy].append(target.target)
    if not reasons:
        return ""
    lines = ["does not run here:"]
    for (reason, remedy), names in reasons.items():
        lines.append(f"  {', '.join(names)}")
        lines.extend(f"      {line}" for part in (reason, remedy) for line in part.splitlines())
    return "\n".join(lines)


def _without_precision(target: str) -> str:
    parts = target.split(":")
    return ":".join([*parts[:2], *parts[3:]])
