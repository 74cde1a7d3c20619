"""Records of runs, a case or two long, for tests of what is done with records."""

from __future__ import annotations

from typing import Any

from harness.accelerators import Accelerator
from harness.backend import SessionInfo
from harness.checkpoint import Fingerprint
from harness.devices import Machine
from harness.record import SCHEMA, ArtifactRecord, CaseRecord, CheckpointRecord, RunRecord, SessionRecord
from harness.target import DeviceKind, Precision

TARGET = "openvino:npu:int4"
NPU = Accelerator(DeviceKind.NPU, "Intel NPU 4000 (Lunar Lake)", "intel_vpu", "1.16.0", "fw 7")
MACHINE = Machine("Linux", "6.11", "x86_64", "Core Ultra", 8, 32 << 30, "3.12.1", (NPU,), power="governor powersave")
NUMBERS = {
    "positions": 40.0,
    "kl_mean": 1e-3,
    "kl_worst": 1e-2,
    "relative_mean": 0.02,
    "relative_worst": 0.05,
    "centred_rms_mean": 0.05,
    "centred_rms_worst": 0.1,
    "top1": 1.0,
    "quantisation_kl_mean": 9e-4,
    "implementation_decode_mean": 0.02,
    "yardstick_decode_mean": 0.02,
    "ratio_decode_mean": 1.0,
}
LIMITS = {"quantisation_kl_mean": 0.2, "ratio_mean": 3.0, "ratio_worst": 4.0}


def case(name: str = "test_logits[hello]", outcome: str = "PASS", **fields: Any) -> CaseRecord:
    """A case; `numbers` change those of an ordinary one, and None leaves it without any."""
    changed = fields.pop("numbers", {})
    numbers = {} if changed is None else {**NUMBERS, **changed}
    outcome, _, stage = outcome.partition("(")
    target = fields.pop("target", TARGET)
    given = {"message": f"{target}  prompt\n  it fails" if outcome == "FAIL" else "", "waiver": None, **fields}
    test = name.partition("[")[0]
    place = f"conformance/{test}.py::{name}"
    return CaseRecord(
        id=place,
        test=test,
        target=target,
        case=name,
        outcome=outcome,
        stage=stage.rstrip(")") or None,
        numbers=numbers,
        limits=LIMITS,
        **{"seconds": 1.0, **given},
    )


def session(target: str = TARGET, **fields: Any) -> SessionRecord:
    info = SessionInfo(2048, Precision.FP16, {"HINT": "f16"}, {"openvino": fields.pop("version", "2026.4.1")})
    artifact = ArtifactRecord("exported", "int4", fields.pop("sha256", "a" * 64), 1000, {}, [])
    return SessionRecord(target, DeviceKind.NPU, Precision.INT4, info, artifact, None, **fields)


def record(*cases: CaseRecord, **fields: Any) -> RunRecord:
    given: dict[str, Any] = {
        "machine": MACHINE,
        "complete": True,
        "checkpoint": CheckpointRecord("tiny", Fingerprint("w", "t", "c")),
        "suites": {"core": "s" * 64},
        "policy_sha256": "p" * 64,
        "waivers_sha256": "v" * 64,
        "sessions": [session()],
        **fields,
    }
    ran: dict[str, Any] = {"started": "2026-11-25T12:00:00+00:00", "finished": "2026-11-25T12:10:00+00:00"}
    return RunRecord(
        schema=SCHEMA, harness="0.1.0", exit_status=0, command=["pytest"], cases=list(cases), **ran, **given
    )
