"""Two made-up runs with another driver between them: `python -m report.demo_pair A.json B.json` in `tests/`.

The newer driver breaks the window of one target, mends a case, loses some, and is slower to the first token.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from harness.record import CaseRecord, RunRecord, SessionRecord, Speed, write_record
from report.demo import demo_record
from report.demo_cases import Story

BROKEN, MENDED, LOST = "openvino:npu:int4", "openvino:npu:int8", "openvino:gpu:fp16"
_GOOD = ("pytorch:cpu:fp32", "openvino:cpu:fp16", "openvino:cpu:int4", LOST, MENDED, BROKEN)


def demo_pair() -> tuple[RunRecord, RunRecord]:
    """The runs before and after."""
    before = demo_record({target: Story() for target in _GOOD})
    after = demo_record({target: Story(fault="window" if target == BROKEN else "") for target in _GOOD})
    npu = after.machine.accelerators[1]
    machine = msgspec.structs.replace(
        after.machine,
        accelerators=(after.machine.accelerators[0], msgspec.structs.replace(npu, driver_version="32.0.100.4119")),
    )
    failed = {"outcome": "FAIL", "message": "mean KL 0.4 nat; allowed: 0.2 nat"}
    return (
        msgspec.structs.replace(
            before,
            cases=[
                msgspec.structs.replace(case, **failed)
                if (case.target, case.case) == (MENDED, "test_logits[code]")
                else case
                for case in before.cases
                if (case.target, case.test) != ("pytorch:cpu:fp32", "test_weights")
            ],
        ),
        msgspec.structs.replace(
            after,
            started="2026-11-26T09:12:00+00:00",
            finished="2026-11-26T09:24:10+00:00",
            machine=machine,
            sessions=[_slower(session) if ":npu:" in session.target else session for session in after.sessions],
            cases=[_other_logits(c) for c in after.cases if c.target != LOST or not c.test.startswith("test_greedy")],
        ),
    )


def _slower(session: SessionRecord) -> SessionRecord:
    def changed(speed: Speed) -> Speed:
        first, token = (
            [time * by for time in times] for times, by in ((speed.first_token_ms, 1.3), (speed.token_ms, 0.8))
        )
        return msgspec.structs.replace(speed, first_token_ms=tuple(first), token_ms=tuple(token))

    return msgspec.structs.replace(session, speed=tuple(map(changed, session.speed)))


def _other_logits(case: CaseRecord) -> CaseRecord:
    """Another hash of the logits, as a driver that computes something else would give."""
    if case.detail is None or case.target != BROKEN or not case.detail.logits_sha256:
        return case
    return msgspec.structs.replace(case, detail=msgspec.structs.replace(case.detail, logits_sha256="f" * 64))


if __name__ == "__main__":
    for path, record in zip(sys.argv[1:3], demo_pair(), strict=True):
        write_record(Path(path), record)
