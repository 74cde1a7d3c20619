"""What differs between the machines, the software and the files of two runs, and what that leaves as the cause.

Causes are what somebody changed: a driver, a version, a setting. What a runtime then made of it, such as the
precision that it computes in, is kept apart: it is an effect, and does not refute that only the driver changed.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

import msgspec

from harness.accelerators import Accelerator
from harness.backend import DeviceReport
from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.record import RunRecord, SessionRecord

# What a device or a session reports that is another one after each boot, in each process or on each load.
_FLEETING = {"LOADED_FROM_CACHE", "DEVICE_LUID", "luid", "pid", "parent"}
# The least share by which memory must differ: firmware and kernel keep back a little more or less at each boot.
_MEMORY_SHARE = 0.02


class Area(str, enum.Enum):
    """What kind of thing differs, in the order in which it is listed."""

    MACHINE = "machine"
    POWER = "power mode"
    DRIVER = "driver"
    FIRMWARE = "firmware"
    KERNEL = "kernel"
    RUNTIME = "runtime"
    PYTHON = "Python"
    ENVIRONMENT = "environment"
    OPTIONS = "load options"
    ARTIFACT = "artifact"
    PROMPTS = "prompts"
    GOLDEN = "golden"
    POLICY = "policy"
    WAIVERS = "waivers"
    HARNESS = "harness"
    REPORTED = "reported"
    """What a runtime says of itself or was found to do: an effect, not a cause."""


class Differs(msgspec.Struct, frozen=True, order=True):
    """One thing that differs: the empty text where a side has none of it. `targets` are those concerned, if not all."""

    area: Area
    what: str
    before: str
    after: str
    targets: tuple[str, ...] = ()


class Surroundings(msgspec.Struct, frozen=True):
    """Everything that differs around the cases of two runs.

    `unrecorded` names what at least one of the records cannot tell, so that nothing is claimed of it.
    """

    causes: tuple[Differs, ...]
    effects: tuple[Differs, ...]
    unrecorded: tuple[str, ...]

    @property
    def areas(self) -> tuple[Area, ...]:
        """The kinds of cause, each once."""
        found = {cause.area for cause in self.causes}
        return tuple(area for area in Area if area in found)

    @property
    def sentence(self) -> str:
        """`Only the driver changed`, where that is so; otherwise all that did, or that nothing did."""
        names = [area.value for area in self.areas]
        qualified = "Of what is recorded, o" if self.unrecorded else "O"
        if not names:
            return "Nothing that is recorded differs between the runs but their results."
        if len(names) == 1:
            return f"{qualified}nly the {names[0]} changed."
        return f"{', '.join(names[:-1])} and {names[-1]} changed: no single one of them can be blamed."


def compare_surroundings(before: RunRecord, after: RunRecord) -> Surroundings:
    """Compare two records in everything but their cases. Only targets and runtimes that both have are compared."""
    causes = [
        *_machines("", before.machine, after.machine),
        *_named(Area.ENVIRONMENT, before.environment, after.environment),
        *_hashes(Area.PROMPTS, before.suites, after.suites),
        *_hashes(Area.GOLDEN, before.goldens, after.goldens),
        *_goldens(before, after),
        *_one(Area.POLICY, "policy.toml, sha256", before.policy_sha256[:16], after.policy_sha256[:16]),
        *_one(Area.WAIVERS, "waivers.toml, sha256", before.waivers_sha256[:16], after.waivers_sha256[:16]),
        *_one(Area.HARNESS, "phi3-conformance", before.harness, after.harness),
        *_runtimes(before.runtimes, after.runtimes),
    ]
    for host in before.hosts.keys() & after.hosts.keys():
        causes += _machines(f"{host}: ", before.hosts[host], after.hosts[host])
    pairs = _sessions(before, after)
    causes += _grouped(_session_causes, pairs, known=causes)
    effects = _grouped(_session_effects, pairs)
    return Surroundings(tuple(sorted(causes)), tuple(sorted(effects)), tuple(_unrecorded(before, after)))


def _machines(prefix: str, before: Machine, after: Machine) -> Iterator[Differs]:
    for name in ("system", "architecture", "processor", "cores"):
        yield from _one(Area.MACHINE, prefix + name, str(getattr(before, name)), str(getattr(after, name)))
    if abs(before.memory_bytes - after.memory_bytes) > _MEMORY_SHARE * max(before.memory_bytes, after.memory_bytes):
        one, other = (f"{machine.memory_bytes / 2**30:.1f} GiB" for machine in (before, after))
        yield Differs(Area.MACHINE, f"{prefix}memory", one, other)
    yield from _one(Area.KERNEL, f"{prefix}{before.system} release", before.release, after.release)
    yield from _one(Area.PYTHON, f"{prefix}Python of the controller", before.python, after.python)
    if before.power and after.power:
        yield from _one(Area.POWER, f"{prefix}power", before.power, after.power)
    yield from _accelerators(prefix, before.accelerators, after.accelerators)


def _accelerators(prefix: str, before: Sequence[Accelerator], after: Sequence[Accelerator]) -> Iterator[Differs]:
    """Paired by kind, name and number: two cards of one name are the first and the second."""
    old, new = _numbered(before), _numbered(after)
    for name in sorted(old.keys() | new.keys()):
        one, other = old.get(name), new.get(name)
        if one is None or other is None:
            yield Differs(Area.MACHINE, f"{prefix}{name}", one.name if one else "", other.name if other else "")
            continue
        versions = [f"{found.driver} {found.driver_version}".strip() for found in (one, other)]
        yield from _one(Area.DRIVER, f"{prefix}driver of {name}", *versions)
        if one.firmware and other.firmware:  # readable for root only
            yield from _one(Area.FIRMWARE, f"{prefix}firmware of {name}", one.firmware, other.firmware)


def _numbered(found: Sequence[Accelerator]) -> dict[str, Accelerator]:
    seen: Counter[str] = Counter()
    named = {}
    for one in found:
        name = f"{one.kind.value} {one.name}"
        seen[name] += 1
        named[name if seen[name] == 1 else f"{name}, number {seen[name]}"] = one
    return named


def _runtimes(before: Sequence[RuntimeReport], after: Sequence[RuntimeReport]) -> Iterator[Differs]:
    """Versions and devices of the runtimes that both runs asked."""
    old, new = _by_backend(before), _by_backend(after)
    for name in sorted(old.keys() & new.keys()):
        for distribution in sorted(old[name].keys() & new[name].keys()):
            area = _area_of(distribution)
            yield from _one(area, f"{name}: {distribution}", old[name][distribution], new[name][distribution])


def _by_backend(reports: Sequence[RuntimeReport]) -> dict[str, dict[str, str]]:
    """By backend and host every version and property; where several interpreters differ, all of them."""
    gathered: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for report in reports:
        known = gathered[report.backend if report.host is None else f"{report.backend} on {report.host}"]
        if report.python:
            known["Python"].add(report.python)
        for distribution, version in report.versions.items():
            known[distribution].add(version)
        for device, found in report.devices.items():
            if isinstance(found, DeviceReport):
                for key, value in found.properties.items():
                    if not _fleeting(key):
                        known[f"{device} {key}"].add(value)
    return {name: {key: ", ".join(sorted(values)) for key, values in of.items()} for name, of in gathered.items()}


def _area_of(name: str) -> Area:
    """Where a runtime's version or a property of its device belongs: most devices tell their driver, in capitals."""
    if name == "Python":
        return Area.PYTHON
    _, space, key = name.partition(" ")
    if not space:
        return Area.RUNTIME
    if "DRIVER" in key.upper() or "COMPILER_VERSION" in key.upper():  # an NPU's compiler comes with its driver
        return Area.DRIVER
    if "FIRMWARE" in key.upper():
        return Area.FIRMWARE
    return Area.RUNTIME if "plugin" in key or key == "build" else Area.MACHINE


def _fleeting(key: str) -> bool:
    return key in _FLEETING or "MEMORY_STATISTICS" in key or "ALLOC_MEM" in key


Pairs = Mapping[str, tuple[SessionRecord, SessionRecord]]


def _sessions(before: RunRecord, after: RunRecord) -> Pairs:
    new = {session.target: session for session in after.sessions}
    return {old.target: (old, new[old.target]) for old in before.sessions if old.target in new}


def _session_causes(old: SessionRecord, new: SessionRecord) -> Iterator[Differs]:
    for name in sorted(old.info.versions.keys() & new.info.versions.keys()):
        yield from _one(Area.RUNTIME, name, old.info.versions[name], new.info.versions[name])
    yield from _named(Area.OPTIONS, old.info.load_options, new.info.load_options)
    recipes = [session.artifact.recipe or session.artifact.origin for session in (old, new)]
    yield from _one(Area.ARTIFACT, "recipe", *recipes)
    yield from _one(Area.ARTIFACT, "sha256", old.artifact.sha256[:16], new.artifact.sha256[:16])


def _session_effects(old: SessionRecord, new: SessionRecord) -> Iterator[Differs]:
    area = Area.REPORTED
    precisions = [session.info.arithmetic.value if session.info.arithmetic else "" for session in (old, new)]
    yield from _one(area, "computes in, as it reports", *precisions)
    if old.arithmetic and new.arithmetic:
        yield from _one(area, "computes with, as inferred", old.arithmetic, new.arithmetic)
    yield from _one(area, "judged as", old.compute_class.value, new.compute_class.value)
    if old.evidence and new.evidence:
        yield from _one(area, "evidence", old.evidence.level.value, new.evidence.level.value)
        yield from _one(area, "devices", ", ".join(old.evidence.devices), ", ".join(new.evidence.devices))
    properties = [
        {key: value for key, value in session.info.properties.items() if not _fleeting(key)} for session in (old, new)
    ]
    yield from _named(area, *properties)


def _grouped(
    compare: Callable[[SessionRecord, SessionRecord], Iterator[Differs]], pairs: Pairs, known: Sequence[Differs] = ()
) -> list[Differs]:
    """Each difference of sessions once, with the targets that have it; those of a whole runtime are `known`."""
    told = {(differs.area, differs.what.rpartition(": ")[2], differs.before, differs.after) for differs in known}
    targets: dict[Differs, list[str]] = defaultdict(list)
    for target, (old, new) in pairs.items():
        for differs in compare(old, new):
            if (differs.area, differs.what, differs.before, differs.after) not in told:
                targets[differs].append(target)
    return [msgspec.structs.replace(differs, targets=tuple(found)) for differs, found in targets.items()]


def _one(area: Area, what: str, before: str, after: str) -> Iterator[Differs]:
    if before != after:
        yield Differs(area, what, before, after)


def _named(area: Area, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Differs]:
    for name in sorted(before.keys() | after.keys()):
        yield from _one(area, name, before.get(name, ""), after.get(name, ""))


def _hashes(area: Area, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Differs]:
    """Hashes of files that both runs read, shortened."""
    for name in sorted(before.keys() & after.keys()):
        yield from _one(area, f"{name}, sha256", before[name][:16], after[name][:16])


def _goldens(before: RunRecord, after: RunRecord) -> Iterator[Differs]:
    """Goldens of the same prompts that were recorded apart: their answers or margins are not the same."""
    old = {(prompt.suite, prompt.id): (prompt.tokens, prompt.margins) for prompt in before.prompts}
    new = {(prompt.suite, prompt.id): (prompt.tokens, prompt.margins) for prompt in after.prompts}
    others = Counter(key[0] for key in old.keys() & new.keys() if old[key] != new[key])
    for suite, count in sorted(others.items()):
        yield Differs(Area.GOLDEN, f"{suite}: answers or margins of {count} prompts", "one golden", "another")


def _unrecorded(before: RunRecord, after: RunRecord) -> Iterator[str]:
    records = (before, after)
    if any(record.schema < 2 for record in records):
        yield "environment variables"
    if any(not record.machine.power for record in records):
        yield "power mode"
    if any(record.machine.unread for record in records):
        yield "accelerators and their drivers"
    accelerators = [found for record in records for found in record.machine.accelerators]
    if any(not found.driver_version for found in accelerators):
        yield "the version of a driver"
    if any(not found.firmware for found in accelerators):
        yield "firmware"
