"""Particulars of targets, sessions, machines and runs as pairs of a name and a value, for reading."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import msgspec

from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.record import RunRecord, SessionRecord, Timings
from harness.report.figures import duration, number, size
from harness.report.overview import HARMLESS, TargetRow, took
from harness.target import Evidence, Unavailable

Facts = list[tuple[str, str]]

_MESSAGES = 12
_LETTERS = 6000
_NAMES = 4


class Noise(msgspec.Struct, frozen=True):
    """The repeats of one session: how many, how many were bit-identical, and the greatest of each figure."""

    target: str
    repeats: int
    identical: int
    mean: float
    worst: float
    kl: float


def noise(sessions: Iterable[SessionRecord]) -> list[Noise]:
    """Of every session that was asked something twice."""
    return [
        Noise(
            session.target,
            len(session.repeats),
            sum(one.identical for one in session.repeats),
            max(one.centred_rms_mean for one in session.repeats),
            max(one.centred_rms_worst for one in session.repeats),
            max(one.kl_mean for one in session.repeats),
        )
        for session in sessions
        if session.repeats
    ]


def session_facts(row: TargetRow) -> Facts:
    """What is known of a target's session; pairs without a value are to be left out."""
    session = row.session
    if session is None:
        return [("Session", "none was loaded")]
    info, artifact = session.info, session.artifact
    arithmetic = info.arithmetic.value if info.arithmetic else "not stated"
    return [
        (
            "Loaded with",
            f"{_pairs(info.load_options)} (diagnostic, not the runtime's defaults)" if info.load_options else "",
        ),
        ("Ignored by the runtime", _pairs(info.ignored)),
        ("Evidence", _evidence(session.evidence)),
        (
            "Computes in",
            f"{session.arithmetic} (inferred)" if session.arithmetic else f"{arithmetic}, by its own account",
        ),
        ("Judged as", session.compute_class.value),
        ("Distances, logits", ", ".join(f"{name} {number(value)}" for name, value in session.distances.items())),
        ("Total error only", session.undecomposed),
        ("Localised", session.first_bad),
        ("Artifact", _artifact(session)),
        ("Exported with", _pairs(artifact.versions)),
        ("Export command", " ".join(artifact.command)),
        ("Versions", _pairs(info.versions)),
        ("Read back", _pairs(info.properties)),
        ("Time", _time(session.timings)),
        ("Peak memory", size(session.peak_memory_bytes) if session.peak_memory_bytes else ""),
    ]


def _time(found: Timings | None) -> str:
    if found is None:
        return ""
    made = f"export {duration(found.prepare)}" if found.prepare else "exported before"
    return f"{made}, load and compile {duration(found.load)}"


def _artifact(session: SessionRecord) -> str:
    artifact = session.artifact
    recipe = f", recipe {artifact.recipe}" if artifact.recipe else ""
    return f"{artifact.origin}{recipe}, {size(artifact.bytes)}, sha256 {artifact.sha256[:16]}"


def _evidence(found: Evidence | None) -> str:
    if found is None:
        return "none was taken"
    where = ", ".join(found.devices) or "no device"
    parts = [f"{found.level.value}: {where}, by {found.source}"]
    for reading in found.readings:
        parts.append(
            f"{reading.counter}: busy {duration(reading.busy_seconds)} of {duration(reading.work_seconds)} of work"
            f"{', whole device' if reading.device_wide else ''}"
        )
    for one in found.placements:
        parts.append(f"{one.provider} ran {one.nodes:,} nodes, {one.heavy_nodes:,} of them products or attention")
    if found.unread:
        parts.append(f"no counters: {found.unread}")
    return "; ".join(parts)


def messages(row: TargetRow) -> list[tuple[str, list[str], int]]:
    """Failing messages of a target, each once: its text, the first cases that have it, and how many more do."""
    found: dict[str, list[str]] = {}
    for case in row.cases:
        if case.outcome not in HARMLESS or case.outcome == "WAIVED":
            lines = case.message.splitlines()
            if len(lines) > 1 and lines[0].startswith(case.target):
                lines = [line.removeprefix("  ") for line in lines[1:]]
            text = "\n".join(lines) or "(it says nothing)"
            what = case.outcome if case.stage is None else f"{case.outcome}({case.stage})"
            found.setdefault(f"{what}: {text}"[:_LETTERS], []).append(case.case)
    several = [(text, names[:_NAMES], max(0, len(names) - _NAMES)) for text, names in found.items()]
    left = several[_MESSAGES:]
    if left:
        names = [name for _, own, _ in left for name in own]
        several[_MESSAGES:] = [("…: the record has their messages", names[:_NAMES], max(0, len(names) - _NAMES))]
    return several


def machines(record: RunRecord) -> list[tuple[str, Facts]]:
    """This machine and every host."""
    return [("Machine", _machine(record.machine))] + [
        (f"Host {name}", _machine(machine)) for name, machine in record.hosts.items()
    ]


def _machine(machine: Machine) -> Facts:
    facts = [
        ("Processor", f"{machine.processor}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB"),
        ("System", f"{machine.system} {machine.release}, {machine.architecture}"),
        ("Python", machine.python),
    ]
    for found in machine.accelerators:
        firmware = f", firmware {found.firmware}" if found.firmware else ""
        facts.append(
            (found.kind.value.upper(), f"{found.name}, driver {found.driver} {found.driver_version}{firmware}")
        )
    if machine.unread:
        facts.append(("Accelerators", f"unknown: {machine.unread}"))
    elif not machine.accelerators:
        facts.append(("Accelerators", "the operating system knows none"))
    return facts


def run_facts(record: RunRecord) -> Facts:
    """Where the figures come from: commands, times, hashes."""
    checkpoint = record.checkpoint
    seconds = [case.seconds for case in record.cases if math.isfinite(case.seconds)]
    return [
        ("Command", " ".join(record.command)),
        ("Started", record.started),
        ("Took", f"{took(record)}, {duration(sum(seconds))} of it in cases"),
        ("Exit status", str(record.exit_status)),
        (
            "Checkpoint",
            f"{checkpoint.name}, weights sha256 {checkpoint.fingerprint.weights[:16]}" if checkpoint else "",
        ),
        ("Prompt suites", ", ".join(f"{name} {digest[:16]}" for name, digest in record.suites.items())),
        ("Policy", record.policy_sha256[:16]),
        ("Waivers", record.waivers_sha256[:16]),
        ("Environment", _pairs(record.environment)),
        ("Harness", f"phi3-conformance {record.harness}"),
    ]


def devices(runtime: RuntimeReport) -> str:
    """What a runtime found, and what not."""
    here = [f"{name}: {found.name}" for name, found in runtime.devices.items() if not isinstance(found, Unavailable)]
    absent = [name for name, found in runtime.devices.items() if isinstance(found, Unavailable)]
    return "; ".join([*here, f"not here: {', '.join(absent)}"] if absent else here) or "–"


def _pairs(found: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in found.items())
