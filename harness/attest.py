"""Was it the device that was asked for? What the runtime says, weighed against what the system counted.

A runtime's own word is a claim: some name the NPU while the CPU computes. A busy counter of the operating
system is a measurement, and settles the matter both ways: one that moved with the session's work proves the
device, one that could be read and did not move disproves it, whatever the runtime says. A counter that cannot
be read says nothing. Which level of evidence suffices for which kind of device, and what counts as moved, are
the policy's.
"""

from __future__ import annotations

import enum

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
    said = [(reading, *weigh(reading, policy.busy)) for reading in evidence.readings]
    level = _level(evidence, [weight for _, weight, _ in said])
    if _RANK[level] >= _RANK[policy.attestation[kind]]:
        return Attestation(level, True)
    lines = [f"  {_figures(reading)}: {why}" for reading, _, why in said]
    if any(weight is Weight.STILL for _, weight, _ in said):
        head = f"{evidence.source} names {found}, but no busy counter moved:"
        return Attestation(level, False, "\n".join([head, *lines]), contradicted=True)
    head = (
        f"nothing proves that a device of kind {kind.value} computed: the evidence is {level.value} "
        f"({evidence.source}: {found}); the policy asks for {policy.attestation[kind].value}"
    )
    return Attestation(level, False, "\n".join(filter(None, [head, *lines, evidence.unread])))


class Weight(enum.Enum):
    """What one counter is worth as evidence: it proves the device, disproves it, or neither."""

    MOVED = "moved"
    STILL = "still"
    NOTHING = "nothing"


def weigh(reading: Reading, limits: BusyLimits) -> tuple[Weight, str]:
    """What a counter tells of whether the device worked for us, and why: others' load is taken off first."""
    expected = limits.idle_factor.limit * reading.idle_share * reading.elapsed_seconds
    surplus = reading.busy_seconds - expected
    wanted = limits.share_min.limit * reading.work_seconds
    if reading.work_seconds < limits.seconds_min.limit:
        return Weight.NOTHING, f"too little work to tell; {limits.seconds_min.limit:g} s are asked for"
    if reading.busy_seconds > limits.engines_max.limit * reading.elapsed_seconds:
        return Weight.NOTHING, "more than all of its engines can have been, so it has jumped"
    if surplus >= wanted:
        return Weight.MOVED, "it moved"
    if expected + wanted > reading.elapsed_seconds:
        return Weight.NOTHING, "others keep the device too busy to tell; run again on an idle machine"
    if surplus <= limits.still_max.limit * reading.work_seconds:
        return Weight.STILL, "it did not move"
    return Weight.NOTHING, "it moved, but hardly more than it does by itself"


def _figures(reading: Reading) -> str:
    whose = "all processes" if reading.device_wide else "this process"
    return (
        f"{reading.counter} ({whose}): busy {reading.busy_seconds:.3g} s of {reading.elapsed_seconds:.3g} s, of which "
        f"{reading.work_seconds:.3g} s of work; {100 * reading.idle_share:.2g} % without it"
    )


def _level(evidence: Evidence, weights: list[Weight]) -> EvidenceLevel:
    if Weight.MOVED in weights:
        return EvidenceLevel.MEASURED
    return EvidenceLevel.NONE if Weight.STILL in weights else evidence.level
