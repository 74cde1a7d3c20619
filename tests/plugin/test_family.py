"""The family suite in a run: a member takes the device from the checkpoint's session and gives it back."""

from __future__ import annotations

from typing import Any

NPU = "planted:pretender:fp32"
ALONE = "one-at-a-time,counter"
MEMBER = "phi-3-5-mini-before"
SUITES = ("test_attestation", "test_family", "test_logits")
FEW = ("-k", f"{MEMBER} or first or test_attestation")


def test_a_device_that_one_session_may_use_goes_to_the_member_and_back(conform: Any) -> None:
    result = conform(*FEW, "--device-wait=5", targets=NPU, fault=ALONE, suites=SUITES)
    assert not conform.mark.with_suffix(".taken-twice").exists()
    assert result.outcomes() == {"PASS": 4}, result.text
    cases = {case.case: case for case in result.cases}
    assert {f"test_family_logits[{MEMBER}]", f"test_family_answers[{MEMBER}]"} < set(cases)
    assert cases[f"test_family_logits[{MEMBER}]"].numbers["prompts"] == 2.0
    assert [prompt.id for prompt in result.record.prompts] == ["first"]  # none of the member's is taken for one of them
    order = [case.test for case in result.cases]
    assert order.index("test_attestation") < order.index("test_family_logits") < order.index("test_logits")


def test_a_member_that_is_computed_wrong_fails_by_its_prompts(conform: Any) -> None:
    result = conform(*FEW, fault="scaled", suites=SUITES)
    failed = next(case for case in result.cases if case.test == "test_family_logits")
    assert failed.outcome == "FAIL"
    assert "prompt 'before-chat' of family" in failed.message
    assert "prompt 'before-up-to' of family" in failed.message


def test_a_ready_made_artifact_has_no_members(conform: Any, tiny: Any) -> None:
    result = conform(*FEW, f"--artifact=planted:cpu:*={tiny.checkpoint}", suites=SUITES)
    assert result.outcomes("test_family") == {"UNSUPPORTED": 2}
    assert result.outcomes("test_logits") == {"PASS": 1}
    assert "ready-made artifact" in result.cases[1].message
