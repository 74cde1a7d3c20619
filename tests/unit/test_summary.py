from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest

from harness.record import CaseRecord, RunRecord, SessionRecord, Speed
from harness.report.terminal import summarise
from harness.target import Placement, Precision

MakeRecord = Callable[..., RunRecord]
MakeCase = Callable[..., CaseRecord]
MakeSession = Callable[..., SessionRecord]
_NUMBERS = {"positions": 30.0, "kl_mean": 6e-4, "kl_worst": 5e-2, "top1": 0.9}


def _row(text: str, target: str) -> str:
    """The line of the table that begins with the target."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"{target} ")]
    return line


def test_outcomes_are_counted_in_a_fixed_order(make_record: MakeRecord, make_case: MakeCase) -> None:
    outcomes = ["WAIVED", "FAIL", "PASS", "NOT_RUN", "PASS", "UNATTESTED", "ERROR"]
    record = make_record(cases=[make_case(outcome=outcome) for outcome in outcomes])
    text = summarise(record, 160, "utf-8")
    names = ["PASS", "FAIL", "ERROR", "UNATTESTED", "NOT_RUN", "WAIVED"]
    assert text.splitlines()[0].split()[1:7] == names
    assert _row(text, "openvino:cpu:int4").split()[1:7] == ["2", "1", "1", "1", "1", "1"]


def test_figures_weigh_positions_and_show_the_worst(make_record: MakeRecord, make_case: MakeCase) -> None:
    record = make_record(cases=[make_case(), make_case(outcome="FAIL", numbers=_NUMBERS)])
    row = _row(summarise(record, 120, "utf-8"), "openvino:cpu:int4")
    assert "5.0e-04" in row  # (10 x 2e-4 + 30 x 6e-4) / 40
    assert "5.0e-02" in row
    assert "92.50 %" in row


def test_greedy_matches_are_counted(make_record: MakeRecord, make_case: MakeCase) -> None:
    cases = [make_case(test="test_greedy_match", numbers={"match": float(match)}) for match in (1, 0, 1)]
    assert " 2/3 " in _row(summarise(make_record(cases=cases), 120, "utf-8"), "openvino:cpu:int4")


def test_a_target_without_figures_shows_dashes_and_no_nan(make_record: MakeRecord, make_case: MakeCase) -> None:
    record = make_record(cases=[make_case(outcome="ERROR", stage="load", numbers={}, message="crashed")], sessions=[])
    text = summarise(record, 120, "utf-8")
    assert _row(text, "openvino:cpu:int4").split() == ["openvino:cpu:int4", "1", *"--------"]
    assert "nan" not in text.lower()


@pytest.mark.parametrize(("arithmetic", "expected"), [(Precision.BF16, "bf16"), (None, "not stated")])
def test_the_arithmetic_and_the_evidence_are_shown(
    make_record: MakeRecord, make_session: MakeSession, arithmetic: Precision | None, expected: str
) -> None:
    text = summarise(make_record(sessions=[make_session(arithmetic)]), 120, "utf-8")
    row = _row(text, "openvino:cpu:int4")
    assert f" {expected} " in row
    assert row.endswith("measured")


def test_a_target_whose_error_was_not_taken_apart_is_named(make_record: MakeRecord, make_session: MakeSession) -> None:
    assert "total error" not in summarise(make_record(), 120, "utf-8")
    blind = msgspec.structs.replace(make_session(), undecomposed="nobody reads its weights")
    text = summarise(make_record(sessions=[blind]), 120, "utf-8")
    assert f"Only the total error of {blind.target} is judged: nobody reads its weights." in text


def test_the_errors_are_shown_apart(make_record: MakeRecord, make_case: MakeCase) -> None:
    apart = {**_NUMBERS, "quantisation_kl_mean": 3e-4, "ratio_prefill_mean": 1.25, "ratio_decode_mean": 0.5}
    row = _row(summarise(make_record(cases=[make_case(numbers=apart)]), 120, "utf-8"), "openvino:cpu:int4")
    assert "3.0e-04" in row
    assert "1.2 x" in row


def test_the_arithmetic_that_was_found_is_stated(make_record: MakeRecord, make_session: MakeSession) -> None:
    found = msgspec.structs.replace(make_session(), arithmetic="fp32 operators, u8 cache")
    text = summarise(make_record(sessions=[found]), 120, "utf-8")
    assert f"Found to compute: {found.target} with fp32 operators, u8 cache." in text


def test_targets_judged_by_their_arithmetic_are_named(
    make_record: MakeRecord, make_case: MakeCase, make_session: MakeSession
) -> None:
    session = make_session(Precision.BF16, target="openvino:cpu:fp32", compute_class=Precision.BF16)
    text = summarise(make_record(sessions=[session], cases=[make_case(target="openvino:cpu:fp32")]), 120, "utf-8")
    assert any("Judged by the arithmetic" in line and "openvino:cpu:fp32" in line for line in text.splitlines())
    assert "Judged by the arithmetic" not in summarise(make_record(), 120, "utf-8")


def test_skips_are_grouped_by_reason_with_the_remedy_on_a_line_of_its_own(
    make_record: MakeRecord, make_case: MakeCase
) -> None:
    def skip(target: str, message: str) -> CaseRecord:
        return make_case(target=target, outcome="UNSUPPORTED", numbers={}, message=message)

    cases = [
        skip("openvino:npu:int4", "no NPU; install the driver; then reboot"),
        skip("openvino:npu:int4", "no NPU; install the driver; then reboot"),
        skip("ort-genai:dml:int4", "not Windows; use Windows"),
        skip("openvino:npu:int8", "no NPU; install the driver; then reboot"),
    ]
    text = summarise(make_record(cases=cases, sessions=[]), 120, "utf-8")
    assert text.splitlines() == [
        "not run here:",
        "  openvino:npu:int4, openvino:npu:int8",
        "      no NPU",
        "      install the driver; then reboot",
        "  ort-genai:dml:int4",
        "      not Windows",
        "      use Windows",
    ]


def test_a_skipped_case_of_a_target_that_was_judged_is_not_lost(make_record: MakeRecord, make_case: MakeCase) -> None:
    cases = [make_case(), make_case(outcome="UNSUPPORTED", numbers={}, message="no room; use a shorter prompt")]
    text = summarise(make_record(cases=cases), 160, "utf-8")
    assert text.splitlines()[0].split()[1:3] == ["PASS", "UNSUPPORTED"]
    assert _row(text, "openvino:cpu:int4").split()[1:3] == ["1", "1"]


@pytest.mark.parametrize("width", [20, 80, 100, 200])
def test_a_target_is_never_cut_off(make_record: MakeRecord, make_case: MakeCase, width: int) -> None:
    target = "npu-library:gpu.1:fp16:lab-machine-7"
    cases = [make_case(target=target, outcome=outcome) for outcome in ("PASS", "FAIL", "ERROR", "UNATTESTED")]
    cases.append(make_case(target=target, test="test_greedy_match", numbers={"match": 1.0}))
    text = summarise(make_record(cases=cases), width, "utf-8")
    assert target in text
    assert "2.0e-04" in text
    assert "100.00 %" in text


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "utf-8"])
def test_the_summary_can_be_written_in_the_encoding_of_the_console(
    make_record: MakeRecord, make_case: MakeCase, encoding: str
) -> None:
    skipped = make_case(target="openvino:npu:int4", outcome="UNSUPPORTED", message="無い ドライバ → — ü; mend it")
    text = summarise(make_record(cases=[make_case(), skipped]), 120, encoding)
    assert text.encode(encoding).decode(encoding) == text
    assert "openvino:npu:int4" in text
    assert "mend it" in text
    assert ("無い" in text) is (encoding == "utf-8")
    assert ("?" in text) is (encoding != "utf-8")
    assert _row(text, "openvino:cpu:int4").isascii()


def test_a_run_of_no_cases_has_nothing_to_say(make_record: MakeRecord) -> None:
    assert summarise(make_record(cases=[], sessions=[]), 120, "utf-8") == ""


def test_waived_cases_are_named_by_their_waiver(make_record: MakeRecord, make_case: MakeCase) -> None:
    cases = [make_case(outcome="WAIVED", waiver="known-defect"), make_case(outcome="WAIVED", waiver="known-defect")]
    assert "run and waived: known-defect (2 cases)" in summarise(make_record(cases=cases), 120, "utf-8")
    assert "waived" not in summarise(make_record(), 120, "utf-8")


def test_diagnostic_sessions_and_ignored_options_are_named(make_record: MakeRecord, make_session: MakeSession) -> None:
    plain = make_session()
    options = {"INFERENCE_PRECISION_HINT": "f16", "NPUW_LLM_MAX_PROMPT_LEN": "100"}
    back = {"INFERENCE_PRECISION_HINT": "bf16", "NPUW_LLM_MAX_PROMPT_LEN": "128"}
    info = msgspec.structs.replace(plain.info, load_options=options, properties=back)
    text = summarise(make_record(sessions=[make_session(info=info)]), 160, "utf-8")
    assert "openvino:cpu:int4 was loaded with INFERENCE_PRECISION_HINT=f16" in text
    assert "INFERENCE_PRECISION_HINT was ignored: it reads back as bf16" in text
    assert "NPUW_LLM_MAX_PROMPT_LEN was ignored" not in text  # lengths are rounded up
    assert "Diagnostic" not in summarise(make_record(sessions=[plain]), 160, "utf-8")


def test_a_suite_that_was_judged_on_a_part_of_its_prompts_says_so(make_record: MakeRecord, make_case: MakeCase) -> None:
    case = make_case(test="test_logits_of_suite", case="test_logits_of_suite[long]", numbers={"prompts_left_out": 2.0})
    text = summarise(make_record(cases=[case]), 160, "utf-8")
    assert "openvino:cpu:int4: 2 prompts of long are longer than the session was made for" in text


def test_what_each_execution_provider_ran_is_shown(make_record: MakeRecord, make_session: MakeSession) -> None:
    plain = make_session()
    assert plain.evidence is not None
    placed = (Placement("DmlExecutionProvider", 90, 40, 300), Placement("CPUExecutionProvider", 10, 0, 100))
    evidence = msgspec.structs.replace(plain.evidence, placements=placed)
    text = summarise(make_record(sessions=[make_session(evidence=evidence)]), 160, "utf-8")
    assert "CPUExecutionProvider ran 10 of 100 nodes, 0 of 40 products and attentions, 25 % of the time" in text


def test_speed_is_shown_at_the_longest_length_that_most_sessions_have(
    make_record: MakeRecord, make_case: MakeCase, make_session: MakeSession
) -> None:
    assert "tokens/s" not in summarise(make_record(), 160, "utf-8")

    def timed(target: str, *lengths: int) -> SessionRecord:
        speeds = tuple(Speed(n, 17, (n + 1.0, n + 9.0, n + 2.0), (4.0, 5.0, 50.0)) for n in lengths)
        return make_session(target=target, speed=speeds)

    targets = ("openvino:cpu:int4", "openvino:cpu:int8", "pytorch:cpu:fp32", "pytorch:cpu:bf16")
    sessions = [timed(targets[0], 16, 64, 256), timed(targets[1], 16, 64), timed(targets[2], 16, 64), timed(targets[3])]
    text = summarise(
        make_record(sessions=sessions, cases=[make_case(target=target) for target in targets]), 160, "utf-8"
    )
    assert _row(text, targets[0]).split()[-4:-1] == ["66", "ms", "200"]
    assert _row(text, targets[3]).split()[-3:-1] == ["-", "-"]
    assert "first token: after a prompt of 64 tokens" in text


def test_a_target_that_was_timed_while_others_computed_is_named(
    make_record: MakeRecord, make_session: MakeSession
) -> None:
    def text(*others: float) -> str:
        speeds = tuple(Speed(64 * (n + 1), 17, (1234.5,), (5.0,), share) for n, share in enumerate(others))
        return summarise(make_record(sessions=[make_session(speed=speeds)]), 160, "utf-8")

    assert "1234 ms" in text(0.0)
    assert "other processes" not in text(0.05, 0.1)
    assert "other processes used up to 40 % of the processors, and slower for it: openvino:cpu:int4." in text(0.05, 0.4)
