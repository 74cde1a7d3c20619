"""What the record says of sessions and waivers: of the objects of a run, the part that is passed on."""

from __future__ import annotations

from harness.record import ArtifactRecord, SessionRecord, WaiverRecord
from harness.sessions import TargetSession
from harness.waivers import Waiver


def session_record(session: TargetSession) -> SessionRecord | None:
    """What the record says of a session, None before it was loaded."""
    if session.info is None or session.artifact is None:
        return None
    artifact, inference = session.artifact, session.inference
    made = ArtifactRecord(
        artifact.origin, artifact.recipe, artifact.sha256, artifact.bytes, artifact.versions, artifact.command
    )
    return SessionRecord(
        target=str(session.target),
        kind=session.kind,
        compute_class=session.compute_class,
        info=session.info,
        artifact=made,
        evidence=session.known_evidence,
        arithmetic=str(inference.arithmetic) if inference else "",
        distances=inference.distances if inference else {},
        undecomposed=session.undecomposed,
        first_bad=session.first_bad or "",
        localisation=session.localisation,
        timings=session.timings,
        speed=session.speed,
        peak_memory_bytes=session.process.peak_memory,
        repeats=session.repeats,
    )


def waiver_record(waiver: Waiver) -> WaiverRecord:
    """What the record says of a waiver."""
    return WaiverRecord(waiver.id, waiver.reason, waiver.url, waiver.owner, waiver.expires.isoformat())
