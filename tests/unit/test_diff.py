"""Comparing two runs: the class of every case, noise, what differs around them, and the exit status."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from rich.console import Console

from harness.checkpoint import Fingerprint
from harness.cli_diff import diff as diff_command
from harness.diff.cases import Change, Sameness
from harness.diff.noise import TargetNoise
from harness.diff.runs import Demands, Diff, Verdict, compare_runs, of_host
from harness.diff.speed import TOKEN
from harness.diff.surroundings import Area
from harness.errors import HarnessError, RecordError
from harness.options import POLICY
from harness.record import (
    CaseRecord,
    CheckpointRecord,
    Detail,
    PromptRecord,
    Repeat,
    RunRecord,
    SessionRecord,
    Speed,
    Tops,
    write_record,
)
from harness.report.diff import as_json, as_markdown, print_diff
from harness.report.diff_sections import reason
from run_records import MACHINE, NPU, TARGET, case, record, session


def compare(before: RunRecord, after: RunRecord, repeats: Sequence[RunRecord] = ()) -> Diff:
    return compare_runs(before, after, ("A.json", "B.json"), [(f"A{i}.json", r) for i, r in enumerate(repeats, 2)])


def only(found: Diff) -> Any:
    (change,) = found.cases
    return change


PASSES = case()
FAILS = case("test_logits[hello]", "FAIL")
WAIVED = case("test_logits[hello]", "WAIVED", waiver="known", judged="FAIL", message=FAILS.message)
DIES = case("test_logits[hello]", "ERROR(run)", numbers=None, message="died of SIGSEGV")
ABSENT = case("test_logits[hello]", "UNSUPPORTED", numbers=None, message="no NPU; plug one in")
EXPIRED = case("test_logits[hello]", "FAIL", waiver="known", judged="FAIL")
NOW_PASSING = case("test_logits[hello]", "FAIL", waiver="known", judged="PASS")
OTHERWISE = case("test_logits[hello]", "FAIL", numbers={"kl_mean": 5.0}, message="another defect")
UNATTESTED = case("test_logits[hello]", "UNATTESTED")
OTHER = case("test_logits[other]")


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        (PASSES, PASSES, Change.SAME),
        (PASSES, case(numbers={"kl_mean": 2e-3}), Change.DIFFERENCE),
        (PASSES, FAILS, Change.REGRESSION),
        (PASSES, DIES, Change.REGRESSION),
        (PASSES, UNATTESTED, Change.REGRESSION),
        (PASSES, case("test_logits[hello]", "NOT_RUN", numbers=None), Change.REGRESSION),
        (PASSES, WAIVED, Change.REGRESSION),
        (PASSES, EXPIRED, Change.REGRESSION),
        (PASSES, NOW_PASSING, Change.SAME),
        (PASSES, ABSENT, Change.MISSING),
        (PASSES, None, Change.MISSING),
        (WAIVED, PASSES, Change.FIX),
        (WAIVED, NOW_PASSING, Change.FIX),
        (WAIVED, WAIVED, Change.SAME),
        (WAIVED, EXPIRED, Change.SAME),
        (WAIVED, FAILS, Change.CHANGED),
        (WAIVED, OTHERWISE, Change.REGRESSION),
        (WAIVED, DIES, Change.REGRESSION),
        (WAIVED, None, Change.MISSING),
        (FAILS, PASSES, Change.FIX),
        (FAILS, FAILS, Change.SAME),
        (FAILS, WAIVED, Change.CHANGED),
        (FAILS, OTHERWISE, Change.CHANGED),
        (FAILS, DIES, Change.CHANGED),
        (DIES, DIES, Change.SAME),
        (UNATTESTED, FAILS, Change.CHANGED),
        (FAILS, ABSENT, Change.MISSING),
        (ABSENT, PASSES, Change.NEW),
        (ABSENT, FAILS, Change.NEW),
        (None, PASSES, Change.NEW),
        (None, DIES, Change.NEW),
    ],
)
def test_every_pair_of_outcomes_has_its_class(old: CaseRecord | None, new: CaseRecord | None, change: Change) -> None:
    before, after = ([found] if found is not None else [] for found in (old, new))
    found = compare(record(OTHER, *before), record(OTHER, *after))
    changes = {one.case: one.change for one in found.cases}
    assert changes == {"test_logits[other]": Change.SAME, "test_logits[hello]": change}


def test_what_neither_run_judged_is_not_told() -> None:
    found = compare(record(OTHER, ABSENT), record(OTHER))
    assert [one.case for one in found.cases] == ["test_logits[other]"]


@pytest.mark.parametrize(
    ("after", "demands", "status"),
    [
        (PASSES, Demands(), 0),
        (FAILS, Demands(), 1),
        (FAILS, Demands(missing=False), 1),
        (None, Demands(), 1),
        (None, Demands(missing=False), 0),
        (case(numbers={"kl_mean": 2e-3}), Demands(), 0),
        (case(numbers={"kl_mean": 2e-3}), Demands(strict=True), 1),
    ],
)
def test_the_exit_status_is_that_of_what_is_demanded(after: CaseRecord | None, demands: Demands, status: int) -> None:
    found = compare(record(OTHER, PASSES), record(OTHER, *([after] if after else [])))
    assert found.exit_status(demands) == status


def test_new_failures_fail_where_it_is_strict() -> None:
    found = compare(record(OTHER), record(OTHER, FAILS))
    assert [found.exit_status(Demands(strict=strict)) for strict in (False, True)] == [0, 1]


def test_runs_that_share_no_case_are_not_called_good_whatever_is_allowed() -> None:
    found = compare(record(PASSES), record(OTHER))
    assert found.verdict(Demands(missing=False)) is Verdict.MISSING


def test_a_first_run_that_judged_nothing_is_refused() -> None:
    with pytest.raises(RecordError, match=r"no case was judged in A\.json"):
        compare(record(ABSENT), record(PASSES))


def test_missing_cases_of_a_run_that_was_cut_short_are_said_to_be() -> None:
    found = compare(record(OTHER, PASSES), record(OTHER, complete=False))
    (missing,) = found.of(Change.MISSING)
    assert missing.why == "the second run was cut short"
    assert any("cut short" in warning for warning in found.warnings)
    assert found.exit_status(Demands()) == 1


def test_equal_hashes_are_bit_identical_logits_even_where_the_reference_has_moved() -> None:
    moved = {"yardstick_decode_mean": 0.03, "kl_mean": 1.01e-3}
    one, other = (case(detail=Detail(logits_sha256="f" * 64), numbers=numbers) for numbers in ({}, moved))
    assert only(compare(record(one), record(other))).same is Sameness.LOGITS
    third = case(detail=Detail(logits_sha256="e" * 64), numbers=moved)
    assert only(compare(record(one), record(third))).change is Change.DIFFERENCE


def test_equal_tokens_of_one_greedy_test_hold_for_all_of_its_prompt() -> None:
    form = case("test_greedy_form[hello]", detail=Detail(tokens=[1, 2]))
    one, other = (case("test_greedy_regret[hello]", numbers={"regret_worst": value}) for value in (0.1, 0.2))
    found = {change.case: change.same for change in compare(record(form, one), record(form, other)).cases}
    assert set(found.values()) == {Sameness.TOKENS}


def test_a_yardstick_and_a_ratio_to_it_tell_nothing_of_the_device() -> None:
    moved = case(numbers={"yardstick_decode_mean": 0.04, "ratio_decode_mean": 0.5, "quantisation_kl_mean": 9.1e-4})
    assert only(compare(record(PASSES), record(moved))).same is Sameness.NUMBERS


def test_quantisation_counts_where_the_artifact_is_another() -> None:
    moved = case(numbers={"quantisation_kl_mean": 2e-3})
    found = compare(record(PASSES), record(moved, sessions=[session(sha256="b" * 64)]))
    assert [move.name for move in only(found).moves] == ["quantisation_kl_mean"]


def test_rounding_of_a_float_is_no_difference_and_the_missing_noise_is_told() -> None:
    near, far = (case(numbers={"centred_rms_mean": 0.05 + by}) for by in (1e-8, 1e-5))
    assert only(compare(record(PASSES), record(near))).same is Sameness.ROUNDING
    found = compare(record(PASSES), record(far))
    assert only(found).change is Change.DIFFERENCE
    assert any("was not measured" in warning for warning in found.warnings)


def repeated(rms: float, kl: float = 0.0) -> list[SessionRecord]:
    return [session(repeats=(Repeat("hello", rms == 0, rms, 2 * rms, kl),))]


def test_noise_within_sessions_bounds_errors_by_the_triangle_and_kl_by_its_root() -> None:
    noisy = {"sessions": repeated(1e-3, 1e-7)}
    near = case(numbers={"centred_rms_mean": 0.0539, "kl_mean": 1.05e-3})
    assert only(compare(record(PASSES, **noisy), record(near, **noisy))).same is Sameness.NOISE
    far = case(numbers={"centred_rms_mean": 0.0541, "kl_mean": 1.1e-3})
    found = compare(record(PASSES, **noisy), record(far, **noisy))
    assert {move.name for move in only(found).moves} == {"centred_rms_mean", "kl_mean"}
    assert not found.warnings


def test_a_session_that_repeats_itself_to_the_bit_has_no_noise() -> None:
    still = {"sessions": repeated(0.0)}
    near = record(case(numbers={"kl_mean": 1e-3 * (1 + 1e-12)}), **still)
    assert only(compare(record(PASSES, **still), near)).same is Sameness.ROUNDING
    found = compare(record(PASSES, **still), record(case(numbers={"kl_mean": 1.001e-3}), **still))
    assert only(found).change is Change.DIFFERENCE
    assert not found.warnings


def test_runs_of_the_same_machine_measure_the_noise_of_each_number() -> None:
    repeat = record(case(numbers={"kl_mean": 1.1e-3}))
    near, far = (record(case(numbers={"kl_mean": value})) for value in (0.85e-3, 0.7e-3))
    assert only(compare(record(PASSES), near, [repeat])).same is Sameness.NOISE
    assert only(compare(record(PASSES), far, [repeat])).change is Change.DIFFERENCE
    other = record(case(numbers={"kl_worst": 1.1e-2}))
    assert only(compare(record(PASSES), other, [repeat])).change is Change.DIFFERENCE


def test_the_noise_of_one_prompt_holds_for_others_of_its_target_as_a_quotient() -> None:
    before = record(PASSES, case("test_logits[other]", numbers={"kl_mean": 1e-6}))
    repeat = record(case(numbers={"kl_mean": 1.1e-3}), case("test_logits[other]", numbers={"kl_mean": 1e-6}))
    after = record(PASSES, case("test_logits[other]", numbers={"kl_mean": 1.5e-6}))
    assert [one.case for one in compare(before, after, [repeat]).of(Change.DIFFERENCE)] == ["test_logits[other]"]


def test_a_number_that_was_zero_once_does_not_hide_others() -> None:
    noise = TargetNoise(TARGET, runs=2, ratios={}, spans={"regret_worst": 0.02})
    assert noise.allowed("c", "regret_worst", 0.0, 0.5, {}) == pytest.approx(0.04)


def test_a_repeat_of_another_machine_is_refused_by_what_differs() -> None:
    other = record(PASSES, machine=msgspec.structs.replace(MACHINE, release="6.12"))
    with pytest.raises(RecordError, match=r"A2\.json is no repeat of either run.*kernel"):
        compare(record(PASSES), record(PASSES), [other])


def test_a_repeat_of_the_second_machine_measures_that_one() -> None:
    newer = msgspec.structs.replace(MACHINE, release="6.12")
    repeat = record(case(numbers={"kl_mean": 1.1e-3}), machine=newer)
    found = compare(record(PASSES), record(PASSES, machine=newer), [repeat])
    assert found.targets[0].noise.runs == 2


def test_not_a_number_is_a_move_and_equal_to_itself() -> None:
    wild = case("test_logits[hello]", "FAIL", numbers={"kl_mean": math.nan})
    assert only(compare(record(wild), record(wild))).change is Change.SAME
    found = only(compare(record(FAILS), record(wild)))
    assert found.change is Change.CHANGED
    assert found.moves[0].worse


@pytest.mark.parametrize(
    ("fields", "areas", "sentence"),
    [
        ({}, (), "Nothing that is recorded differs"),
        (
            {
                "machine": msgspec.structs.replace(
                    MACHINE, accelerators=(msgspec.structs.replace(NPU, driver_version="2"),)
                )
            },
            (Area.DRIVER,),
            "Only the driver changed.",
        ),
        ({"sessions": [session(version="2026.5.0")]}, (Area.RUNTIME,), "Only the runtime changed."),
        (
            {"machine": msgspec.structs.replace(MACHINE, power="governor performance")},
            (Area.POWER,),
            "Only the power mode",
        ),
        ({"environment": {"OMP_NUM_THREADS": "1"}}, (Area.ENVIRONMENT,), "Only the environment changed."),
        (
            {"machine": msgspec.structs.replace(MACHINE, release="6.12", processor="Core 9")},
            (Area.MACHINE, Area.KERNEL),
            "machine and kernel changed: no single one of them can be blamed.",
        ),
    ],
)
def test_what_differs_is_told_and_a_single_cause_named(fields: Any, areas: Any, sentence: str) -> None:
    found = compare(record(PASSES), record(PASSES, **fields)).surroundings
    assert found.areas == areas
    assert found.sentence.startswith(sentence)


def test_what_a_runtime_makes_of_a_driver_is_an_effect() -> None:
    driver = msgspec.structs.replace(NPU, driver_version="2")
    changed = session(arithmetic="bf16 operators")
    info = msgspec.structs.replace(changed.info, properties={"HINT": "bf16", "LOADED_FROM_CACHE": "True"})
    after = record(
        PASSES,
        machine=msgspec.structs.replace(MACHINE, accelerators=(driver,)),
        sessions=[msgspec.structs.replace(changed, info=info)],
    )
    found = compare(record(PASSES), after).surroundings
    assert found.sentence == "Only the driver changed."
    assert [(one.what, one.after) for one in found.effects] == [("HINT", "bf16")]


def test_nothing_is_claimed_of_what_was_not_recorded() -> None:
    before = record(PASSES, machine=msgspec.structs.replace(MACHINE, power=""))
    found = compare(before, record(PASSES, environment={"OMP_NUM_THREADS": "1"})).surroundings
    assert found.unrecorded == ("power mode",)
    assert found.sentence == "Of what is recorded, only the environment changed."


def prompt(name: str, *tokens: int) -> PromptRecord:
    rows = len(tokens)
    return PromptRecord("core", name, "", list(tokens), 1, Tops([[1]] * rows, [[1.0]] * rows), [1.0] * rows)


def test_another_golden_of_the_same_prompts_is_a_cause() -> None:
    one = prompt("hello", 1, 2)
    other = msgspec.structs.replace(one, margins=[1.0, 1.5])
    found = compare(record(PASSES, prompts=[one]), record(PASSES, prompts=[other]))
    assert found.surroundings.sentence == "Only the golden changed."


def test_another_golden_is_told_by_its_hash() -> None:
    found = compare(record(PASSES, goldens={"core": "a" * 64}), record(PASSES, goldens={"core": "b" * 64}))
    assert found.surroundings.sentence == "Only the golden changed."


@pytest.mark.parametrize("part", ["weights", "tokenizer", "config"])
def test_runs_of_different_checkpoints_are_refused(part: str) -> None:
    other = CheckpointRecord("tiny", msgspec.structs.replace(Fingerprint("w", "t", "c"), **{part: "x"}))
    with pytest.raises(RecordError, match=f"different checkpoints.*{part}"):
        compare(record(PASSES), record(PASSES, checkpoint=other))


def test_prompts_that_were_edited_are_not_compared_and_the_others_are() -> None:
    before = record(PASSES, OTHER, prompts=[prompt("hello", 1, 2, 3), prompt("other", 5)])
    after = record(PASSES, OTHER, prompts=[prompt("hello", 1, 2, 4), prompt("other", 5)], suites={"core": "z" * 64})
    found = compare(before, after)
    assert {one.case: one.change for one in found.cases} == {
        "test_logits[hello]": Change.MISSING,
        "test_logits[other]": Change.SAME,
    }


def test_a_suite_whose_words_about_its_prompts_were_edited_is_the_same_suite() -> None:
    suite = case("test_logits_of_suite[core]")
    before = record(suite, prompts=[prompt("hello", 1, 2)])
    after = record(suite, prompts=[prompt("hello", 1, 2)], suites={"core": "z" * 64})
    assert only(compare(before, after)).change is Change.SAME
    longer = record(suite, prompts=[prompt("hello", 1, 2), prompt("bye", 3)], suites={"core": "z" * 64})
    assert only(compare(before, longer)).why == "the second run has other prompts under this name"


def test_edited_suites_are_refused_where_the_records_do_not_hold_the_prompts() -> None:
    with pytest.raises(RecordError, match="prompts of core are not the same"):
        compare(record(PASSES), record(PASSES, suites={"core": "z" * 64}))


def test_a_record_with_a_case_twice_is_refused() -> None:
    with pytest.raises(RecordError, match="2 times"):
        compare(record(PASSES, PASSES), record(PASSES))


def test_two_hosts_of_one_lab_run_are_compared_as_two_machines() -> None:
    cases = [case(target=f"{TARGET}:lab1"), case("test_logits[hello]", "FAIL", target=f"{TARGET}:lab2")]
    newer = msgspec.structs.replace(MACHINE, accelerators=(msgspec.structs.replace(NPU, driver_version="2"),))
    sessions = [session(f"{TARGET}:lab1"), session(f"{TARGET}:lab2")]
    lab = record(*cases, hosts={"lab1": MACHINE, "lab2": newer}, sessions=sessions)
    found = compare(of_host(lab, "lab1"), of_host(lab, "lab2"))
    assert only(found).change is Change.REGRESSION
    assert found.surroundings.sentence == "Only the driver changed."
    with pytest.raises(RecordError, match="no host 'lab3'"):
        of_host(lab, "lab3")


def timed(*token_ms: float) -> list[SessionRecord]:
    return [session(speed=(Speed(64, 16, (50.0, 51.0, 52.0), token_ms),))]


def test_speed_is_a_ratio_beside_its_noise_and_fails_only_where_demanded() -> None:
    found = compare(record(PASSES, sessions=timed(10, 10.1, 10.2)), record(PASSES, sessions=timed(15, 15.1, 15.2)))
    (change,) = [one for one in found.speed if one.what == TOKEN]
    assert change.ratio == pytest.approx(1.495, abs=0.001)
    assert change.beyond
    assert found.exit_status(Demands(strict=True)) == 0
    assert found.exit_status(Demands(slower=1.2)) == 1
    assert found.exit_status(Demands(slower=1.6)) == 0


def test_a_slower_run_within_the_noise_does_not_fail() -> None:
    scattered = timed(8, 10, 16)
    found = compare(record(PASSES, sessions=scattered), record(PASSES, sessions=timed(9, 12, 14)))
    assert found.exit_status(Demands(slower=1.05)) == 0


def text_of(found: Diff, demands: Demands = Demands(), **options: Any) -> str:  # noqa: B008 - frozen
    stream = io.StringIO()
    print_diff(found, demands, Console(file=stream, width=160), **options)
    return stream.getvalue()


def test_the_verdict_comes_first_and_the_first_bad_sublayer_with_the_regression() -> None:
    bad = [session(first_bad="first bad: model.layers.3.mlp, in decode only, position 7")]
    text = text_of(compare(record(PASSES), record(FAILS, sessions=bad)))
    assert text.startswith(f"REGRESSED: 1 case on {TARGET}")
    assert "first bad: model.layers.3.mlp, in decode only, position 7" in text
    assert "it fails" in text


def test_the_origin_of_a_limit_is_left_to_the_message() -> None:
    said = "mean 0.1 logits, is 8.4 x the yardstick; allowed: 3 x (1.7 x worst measured (a:b:c); chaotic) at position 4"
    assert reason(f"{TARGET}  prompt\n  {said}").endswith("the yardstick; allowed: 3 x at position 4")


def test_long_lists_are_cut_with_the_number_left_and_listed_where_asked() -> None:
    names = [f"test_logits[p{number}]" for number in range(30)]
    found = compare(record(*map(case, names)), record(*(case(name, "FAIL") for name in names)))
    assert "and 18 more (--all)" in text_of(found)
    everything = text_of(found, everything=True)
    assert "--all" not in everything
    assert all(name in everything for name in names)


def test_what_a_record_says_cannot_move_the_cursor_or_end_a_table() -> None:
    hostile = case("test_logits[hello]", "FAIL", message=f"{TARGET}\n  \x1b[2J[red]boo|`<script>\u202e")
    found = compare(record(PASSES), record(hostile))
    text, markdown = text_of(found), as_markdown(found, Demands())
    for printed in (text, markdown):
        assert not {"\x1b", "\u202e"} & set(printed)
    assert "[red]boo" in text
    assert "\\|\\`\\<script>" in markdown


def test_the_json_has_raw_numbers_and_null_for_what_is_not_finite() -> None:
    found = compare(record(PASSES), record(case("test_logits[hello]", "FAIL", numbers={"kl_mean": math.inf})))
    plain = json.loads(as_json(found, Demands()))
    assert (plain["schema"], plain["verdict"], plain["exit_status"]) == (1, "REGRESSED", 1)
    (move,) = plain["cases"][0]["moves"]
    assert (move["name"], move["before"], move["after"]) == ("kl_mean", 1e-3, None)


def test_the_command_writes_its_files_and_ends_with_the_status(tmp_path: Path) -> None:
    write_record(tmp_path / "A.json", record(PASSES))
    write_record(tmp_path / "B.json", record(FAILS))
    files = [f"--json={tmp_path / 'd' / 'diff.json'}", f"--markdown={tmp_path / 'diff.md'}"]
    ended = CliRunner().invoke(diff_command, [str(tmp_path / "A.json"), str(tmp_path / "B.json"), *files])
    assert ended.exit_code == 1
    assert json.loads((tmp_path / "d" / "diff.json").read_text(encoding="utf-8"))["exit_status"] == 1
    assert (tmp_path / "diff.md").read_text(encoding="utf-8").startswith("## REGRESSED: ")
    again = CliRunner().invoke(diff_command, [str(tmp_path / "A.json"), str(tmp_path / "A.json")])
    assert again.exit_code == 0


def test_the_policy_may_say_how_much_slower_is_too_slow(tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    limit = '[comparison]\nslower_max = { limit = 1.2, origin = "a decision" }\n'
    policy.write_text(POLICY.read_text(encoding="utf-8") + limit, encoding="utf-8")
    for name, times in (("A.json", (10, 10.1, 10.2)), ("B.json", (15, 15.1, 15.2))):
        write_record(tmp_path / name, record(PASSES, sessions=timed(*times)))
    files = [str(tmp_path / name) for name in ("A.json", "B.json")]
    given: list[list[str]] = [[], [f"--policy={policy}"], [f"--policy={policy}", "--slower-max=1.6"]]
    assert [CliRunner().invoke(diff_command, [*files, *more]).exit_code for more in given] == [0, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--targets=ort-genai:*"], "matches no target"),
        (["--slower-max=0.5"], "no factor for a latency to grow by"),
        (["--before-host=lab1"], "no host 'lab1'"),
        (["--repeat=nowhere.json"], "is no run record"),
    ],
)
def test_bad_arguments_are_errors_with_a_remedy(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_record(tmp_path / "A.json", record(PASSES))
    ended = CliRunner().invoke(diff_command, [str(tmp_path / "A.json"), str(tmp_path / "A.json"), *arguments])
    assert isinstance(ended.exception, HarnessError)
    assert message in ended.exception.problem
    assert ended.exception.remedy
