"""What a run reports of a backend that is right, and of one that is wrong in every way we know."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

WAIVER = """
schema = 1
[[waiver]]
id = "known-nan"
targets = "planted:cpu:*"
cases = ["test_logits[[]first]"]
outcomes = ["FAIL"]
message = "nan among the logits"
checkpoints = ["tiny"]
versions = { phi3-planted = "==1.0" }
reason = "a planted fault"
url = "https://example.org/1"
owner = "the tests"
expires = 2099-01-01
"""
CASES = 2 + 2 + 4 * 3  # attestation and speed, two of the suite, four tests of three prompts
AUDIT = 1  # of the weights, which no device has a part in
BLIND = 1  # known faults: the planted backend does not say how it computes


def test_third_party_backend_is_judged_without_touching_this_tree(conform: Any) -> None:
    result = conform()
    assert result.status == 0, result.text
    assert result.outcomes() == Counter(PASS=CASES + AUDIT, UNSUPPORTED=BLIND)
    session = result.record.sessions[0]
    assert session.target == "planted:cpu:fp32"
    assert session.info.versions == {"phi3-planted": "1.0"}
    assert "planted:cpu:fp32" in result.text


def test_a_constant_added_to_the_logits_is_no_fault(conform: Any) -> None:
    assert conform(fault="constant-added").status == 0


@pytest.mark.parametrize(
    ("fault", "test", "words"),
    [
        ("last-token-only", "test_logits[", "last token only"),
        ("drops-row", "test_logits[", "logits of shape"),
        ("narrow", "test_logits[", "logits of shape"),
        ("nan", "test_logits[", "nan among the logits: position"),
        ("inf", "test_logits[", "inf among the logits: position"),
        ("one-position", "test_logits[", "(decode)"),
        ("scaled", "test_logits[", "centred relative error"),
        ("empty", "test_greedy_form", "no tokens and no error"),
        ("early-stop", "test_greedy_form", "early stop"),
        ("overrun", "test_greedy_form", "overrun"),
        ("echo", "test_greedy_form[", "the prompt over again"),
        ("wrong-word", "test_greedy_regret", "on the device's own text, prefers another"),
        ("wrong-word", "test_greedy_match", "first divergence at token 3"),
        ("outside-vocabulary", "test_greedy_regret", "token ids outside"),
    ],
)
def test_wrong_numbers_fail_in_words(conform: Any, fault: str, test: str, words: str) -> None:
    result = conform(fault=fault)
    assert result.status == 1
    failed = [case for case in result.cases if case.test == test.rstrip("[") and case.outcome == "FAIL"]
    assert failed, result.text
    assert any(words in case.message for case in failed), failed[0].message
    assert "reproduce: pytest" in result.text
    assert "Traceback" not in result.text


def test_a_failure_names_target_prompt_position_figures_and_limits(conform: Any) -> None:
    result = conform(fault="scaled")
    case = next(c for c in result.cases if c.test == "test_logits" and c.outcome == "FAIL")
    for words in ("planted:cpu:fp32", "'first'", "at position", "allowed:"):
        assert words in case.message
    assert case.numbers["relative_worst"] > case.limits["relative_worst"]


@pytest.mark.parametrize("fault", ["no-evidence", "silent-fallback"])
def test_right_numbers_without_evidence_are_unattested_in_every_suite(conform: Any, fault: str) -> None:
    result = conform(targets="planted:pretender:fp32", fault=fault)
    assert result.status == 1
    assert result.outcomes() == Counter(UNATTESTED=CASES, PASS=AUDIT, UNSUPPORTED=BLIND)


def test_a_counter_is_read_after_something_was_computed(conform: Any) -> None:
    counts = conform(targets="planted:pretender:fp32", fault="counter").outcomes()
    assert counts == Counter(PASS=CASES + AUDIT, UNSUPPORTED=BLIND)


def test_a_session_that_was_started_again_is_attested_again(conform: Any) -> None:
    fault = "killed-once,counter,falls-back-after-restart"
    counts = conform(targets="planted:pretender:fp32", fault=fault).outcomes()
    assert counts["ERROR(run)"] == 2  # the case itself, and the suite that it belongs to
    assert counts["UNATTESTED"] > 0
    assert counts["PASS"] <= 11 + AUDIT  # what the first process answered before it was killed


def test_another_device_of_the_same_kind_is_not_the_one_asked_for(conform: Any) -> None:
    counts = conform(targets="planted:cpu.1:fp32", fault="other-index").outcomes()
    assert counts == Counter(UNATTESTED=CASES, PASS=AUDIT, UNSUPPORTED=BLIND)


def test_a_backend_cannot_loosen_its_limits_by_claiming_integer_arithmetic(conform: Any) -> None:
    result = conform(fault="claims-int4,scaled")
    assert result.outcomes() == Counter({"ERROR(load)": CASES + AUDIT + BLIND})
    assert "arithmetic is a float precision" in result.text


def test_a_devices_own_word_does_not_prove_an_npu(conform: Any) -> None:
    result = conform(targets="planted:pretender:fp32")
    assert result.outcomes() == Counter(UNATTESTED=CASES, PASS=AUDIT, UNSUPPORTED=BLIND)
    assert "nothing proves that a device of kind npu computed" in result.text


@pytest.mark.parametrize(
    ("fault", "how"),
    [("abort", "signal SIGABRT"), ("exit-silently", "exit status 0"), ("segfault-in-load", "signal SIGSEGV")],
)
def test_a_dead_worker_is_an_error_with_its_last_words(conform: Any, fault: str, how: str) -> None:
    result = conform(fault=fault)
    assert result.status == 1
    dead = [case for case in result.cases if how in case.message]
    assert dead
    assert {case.outcome for case in dead} <= {"ERROR", "NOT_RUN"}
    if fault == "abort":
        assert "driver: assertion failed" in dead[0].message


def test_a_killed_worker_costs_its_case_and_no_other(conform: Any) -> None:
    result = conform(fault="killed-once")
    counts = result.outcomes()
    assert counts["ERROR(run)"] >= 1
    assert counts["PASS"] == CASES + AUDIT - counts["ERROR(run)"]
    hit = {case.case for case in result.cases if case.outcome == "ERROR"}
    assert hit == {"test_logits[first]", "test_logits_of_suite[few]"}
    assert any("signal SIGKILL" in case.message for case in result.cases)


def test_a_target_that_keeps_dying_is_given_up(conform: Any) -> None:
    counts = conform(fault="abort").outcomes()
    assert counts["NOT_RUN"] + counts["ERROR(run)"] > 0
    assert counts["PASS"] + counts["NOT_RUN"] + counts["ERROR(run)"] == CASES + AUDIT


def test_a_hang_is_timed_out(conform: Any) -> None:
    result = conform("--stage-timeout=run=3", "-k", "test_logits and first", fault="hang")
    assert result.outcomes() == Counter({"ERROR(run)": 1})
    assert "did not answer to teacher_force within 3 s" in result.text
    assert "--stage-timeout run=SECONDS" in result.text


def test_what_the_runtime_raises_is_an_error_in_its_own_words(conform: Any) -> None:
    result = conform("-k", "test_logits and first", fault="raises")
    assert result.outcomes() == Counter({"ERROR(run)": 1})
    assert "CL_OUT_OF_RESOURCES" in result.cases[0].message


def test_native_output_disturbs_nothing(conform: Any) -> None:
    assert conform(fault="noisy").outcomes() == Counter(PASS=CASES + AUDIT, UNSUPPORTED=BLIND)


def test_absent_hardware_skips_once_with_reason_and_remedy(conform: Any) -> None:
    result = conform(targets="planted:absent:fp32")
    assert result.status == 0
    assert result.outcomes() == Counter(UNSUPPORTED=CASES + AUDIT + BLIND)
    assert result.text.count("no absent device was found") == 1
    assert "plug one in" in result.text


def test_not_installed_skips_with_the_install_command(conform: Any) -> None:
    result = conform(fault="not-installed")
    assert result.status == 0
    assert "no-such-distribution not installed" in result.text
    assert "python -m pip install numpy" in result.text


def test_installed_but_broken_is_an_error_and_no_skip(conform: Any) -> None:
    result = conform(fault="broken-installation")
    assert result.status == 1
    assert result.outcomes() == Counter({"ERROR(discover)": CASES + AUDIT + BLIND})
    assert "libdriver.so" in result.text


def test_a_failing_exporter_is_an_error_of_stage_prepare(
    conform: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path))
    result = conform(fault="exporter-fails")
    assert result.outcomes() == Counter({"ERROR(prepare)": CASES + AUDIT + BLIND})
    assert "the exporter does not like this checkpoint" in result.text


def test_an_artifact_of_another_checkpoint_is_refused(conform: Any) -> None:
    result = conform(fault="other-vocabulary")
    assert result.outcomes() == Counter({"ERROR(load)": CASES + AUDIT + BLIND})
    assert "vocabulary of 65" in result.text


def test_last_token_logits_are_judged_where_a_session_declares_them(conform: Any) -> None:
    result = conform("-k", "test_logits", fault="declares-last-token,last-token-only")
    assert result.status == 0, result.text
    assert all(case.numbers["positions"] < 12 for case in result.cases if case.test == "test_logits")


def test_a_test_that_judges_nothing_fails_and_a_defect_of_a_test_keeps_its_traceback(
    conform: Any, tmp_path: Path
) -> None:
    path = tmp_path / "test_mine.py"
    path.write_text(
        "def test_idle(session):\n    pass\n\n\ndef test_broken(session):\n    session.no_such_thing()\n",
        encoding="utf-8",
    )
    result = conform(str(path), "-k", "test_idle or test_broken")
    assert result.outcomes() == Counter({"FAIL": 1, "ERROR(compare)": 1})
    assert "the test ended without judging anything" in result.text
    assert "AttributeError" in result.text
    assert "session.no_such_thing()" in result.text


def test_a_waived_case_is_run_and_fails_on_the_day_it_passes(conform: Any, tmp_path: Path) -> None:
    path = tmp_path / "waivers.toml"
    path.write_text(WAIVER, encoding="utf-8")
    waived = conform(f"--waivers={path}", "-k", "test_logits and first", fault="nan")
    assert waived.outcomes() == Counter(WAIVED=1)
    assert waived.status == 0
    assert "known-nan (1 case)" in waived.text
    passing = conform(f"--waivers={path}", "-k", "test_logits and first")
    assert passing.outcomes() == Counter(FAIL=1)
    assert "delete or narrow the waiver" in passing.text


@pytest.mark.parametrize(
    ("old", "new", "fault", "words"),
    [
        ("2099-01-01", "2020-01-01", "nan", "expired on 2020-01-01"),
        ('["FAIL"]', '["ERROR(run)"]', "nan", "nan among the logits"),
        ('"==1.0"', '"==2.0"', "nan", "nan among the logits"),
        ('["tiny"]', '["another"]', "nan", "nan among the logits"),
        ("nan among", "inf among", "nan", "nan among the logits"),
    ],
)
def test_a_waiver_covers_only_what_it_states(
    conform: Any, tmp_path: Path, old: str, new: str, fault: str, words: str
) -> None:
    path = tmp_path / "waivers.toml"
    assert old in WAIVER
    path.write_text(WAIVER.replace(old, new), encoding="utf-8")
    result = conform(f"--waivers={path}", "-k", "test_logits and first", fault=fault)
    assert result.outcomes() == Counter(FAIL=1)
    assert words in result.text


def test_a_waiver_that_matches_no_case_fails_a_whole_run(conform: Any, tmp_path: Path) -> None:
    path = tmp_path / "waivers.toml"
    path.write_text(WAIVER.replace("planted:cpu:*", "planted:moon:*"), encoding="utf-8")
    # A selection by -m or -k still collects everything, so the run is whole; the absent device keeps it short.
    result = conform(f"--waivers={path}", "-m", "npu-library and npu", "-p", "no:xdist", targets="", options=[])
    assert result.status == 1
    assert "waiver 'known-nan' matches no case" in result.text
