"""Was it the device that was asked for? What the runtime says, weighed against what the system counted.

A runtime's own word is a claim: some name the NPU while the CPU computes. A busy counter of the operating
system is a measurement, and settles the matter both ways: one that moved with the session's work proves the
device, one that could be read and did not move disproves it, whatever the runtime says. A counter that cannot
be read says nothing. Which level of evidence suffices for which kind of device, and what counts as moved, are
the policy's.
"""

from __future__ import annotations

import msgspec

from harness.policy import BusyLimits, Policy
from harness.target import DeviceKind, Evidence, EvidenceLevel, Reading

_RANK = {EvidenceLevel.NONE: 0, EvidenceLevel.BY_CONSTRUCTION: 1, EvidenceLevel.MEASURED: 2}


class Attestation(msgspec.Struct, frozen=True):
    """The level of evidence that a session reached, whether it suffices, and why it does not.

    `contradicted`: not merely unproven, but shown to have run elsewhere, or on several kinds of device.
    """

    level: EvidenceLevel
    sufficient: bool
    reason: str = ""
    contradicted: bool = False

    @property
    def rank(self) -> float:
        """The level as a number for records: none 0, by construction 1, measured 2."""
        return float(_RANK[self.level])


def required_rank(policy: Policy, kind: DeviceKind) -> float:
    """The rank of the level that the policy asks for."""
    return float(_RANK[policy.attestation[kind]])


def attest(evidence: Evidence, kind: DeviceKind, policy: Policy, index: int | None = None) -> Attestation:
    """Whether it is shown that a device of the kind asked for computed, and the one of that index if one was named."""
    found = ", ".join(evidence.devices) or "nothing"
    if evidence.kinds != (kind,):
        reason = f"{kind.value} was asked for; {evidence.source} names {found}"
        return Attestation(EvidenceLevel.NONE, False, reason, contradicted=bool(evidence.kinds))
    if index is not None and not all(device.endswith((f".{index}", f":{index}")) for device in evidence.devices):
        reason = f"the device of index {index} was asked for; {evidence.source} names {found}"
        return Attestation(EvidenceLevel.NONE, False, reason, contradicted=True)
    level = _level(evidence, policy.busy)
    if _RANK[level] >= _RANK[policy.attestation[kind]]:
        return Attestation(level, True)
    if level is EvidenceLevel.NONE and _conclusive(evidence, policy.busy):
        return Attestation(level, False, _still(evidence, policy.busy), contradicted=True)
    reason = (
        f"nothing proves that a device of kind {kind.value} computed: the evidence is {level.value} "
        f"({evidence.source}: {found}); the policy asks for {policy.attestation[kind].value}"
    )
    return Attestation(level, False, f"{reason}\n{evidence.unread}" if evidence.unread else reason)


def moved(reading: Reading, limits: BusyLimits) -> bool:
    """Whether a counter was busy during the work beyond what it is without, others' load included."""
    surplus = reading.busy_seconds - _expected(reading, limits)
    return _possible(reading, limits) and surplus >= limits.share_min.limit * reading.work_seconds


def tells(reading: Reading, limits: BusyLimits) -> bool:
    """Whether a counter can tell anything: enough work, a figure that can be, and room beside others' load.

    A counter far busier than time passed has jumped, or accounts in batches of minutes: several engines at once
    make a few times the elapsed time, not more. A device that others keep busy all the time cannot be seen to
    do more for us.
    """
    enough = reading.work_seconds >= limits.seconds_min.limit
    room = _expected(reading, limits) + limits.share_min.limit * reading.work_seconds <= reading.elapsed_seconds
    return enough and _possible(reading, limits) and (room or moved(reading, limits))


def _possible(reading: Reading, limits: BusyLimits) -> bool:
    return reading.busy_seconds <= limits.engines_max.limit * reading.elapsed_seconds


def _expected(reading: Reading, limits: BusyLimits) -> float:
    """Seconds that the device would be busy without us."""
    return limits.idle_factor.limit * reading.idle_share * reading.elapsed_seconds


def _conclusive(evidence: Evidence, limits: BusyLimits) -> list[Reading]:
    return [reading for reading in evidence.readings if tells(reading, limits)]


def _level(evidence: Evidence, limits: BusyLimits) -> EvidenceLevel:
    readings = _conclusive(evidence, limits)
    if not readings:
        return evidence.level
    return EvidenceLevel.MEASURED if any(moved(reading, limits) for reading in readings) else EvidenceLevel.NONE


def _still(evidence: Evidence, limits: BusyLimits) -> str:
    lines = [f"{evidence.source} names {', '.join(evidence.devices) or 'nothing'}, but no busy counter moved:"]
    for reading in _conclusive(evidence, limits):
        lines.append(
            f"  {reading.counter}: busy {reading.busy_seconds:.3g} s of {reading.elapsed_seconds:.3g} s, of which "
            f"{reading.work_seconds:.3g} s of work; {100 * reading.idle_share:.2g} % before it"
        )
    return "\n".join(lines)
