from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from harness import __version__
from harness.arithmetic import Arithmetic
from harness.errors import PolicyError
from harness.intervals import intervals
from harness.signoff.candidates import Candidate
from harness.signoff.checks import Status, class_of
from harness.signoff.conclude import Conclusion, Judged, conclude
from harness.signoff.figures import IMPLEMENTATION, ITEM, figures_of
from harness.signoff.report import as_markdown
from harness.target import Precision
from made_signoff import TARGET, Signed, case, items


def conclusion(signed: Signed) -> Conclusion:
    return conclude(signed.plan, signed.records(), signed.policy, signed.suite, signed.answered, __version__)


def judged(signed: Signed, name: str = "coarse") -> Judged:
    return next(one for one in conclusion(signed).candidates if one.name == name)


def failing(signed: Signed, name: str = "coarse") -> set[str]:
    return {check.name for check in judged(signed, name).checks if check.status is Status.FAIL}


def test_candidates_within_the_limits_are_signed_off(signed: Signed) -> None:
    found = conclusion(signed)
    assert found.passed
    assert [one.outcome for one in found.candidates] == ["PASS", "PASS"]
    assert found.sentence == "Signed off: fine and coarse keep to the policy's limits."


def test_the_bound_decides_and_not_the_mean(signed: Signed) -> None:
    signed.cases["coarse"] = signed.good(0.0195)
    found = judged(signed)
    assert found.kl is not None
    assert found.kl.estimate < 0.02 < found.kl.high
    assert found.outcome == "FAIL"
    sentence = next(check.sentence for check in found.checks if check.name == "KL")
    assert "cannot tell" in sentence


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"kl": 0.05}, "KL"),
        ({"kl": 0.01, "nll": 0.05}, "perplexity"),
        ({"kl": 0.01, "agreeing": 0.85}, "top-1"),
    ],
)
def test_each_limit_decides_by_itself(signed: Signed, change: dict[str, Any], name: str) -> None:
    signed.cases["coarse"] = signed.good(**change)
    assert failing(signed) == {name}
    assert not conclusion(signed).passed


def test_a_better_perplexity_is_no_failure(signed: Signed) -> None:
    signed.cases["coarse"] = signed.good(0.01, nll=-0.2)
    assert failing(signed) == set()


def test_below_a_hundred_items_nothing_is_decided(signed: Signed) -> None:
    signed.plan = msgspec.structs.replace(signed.plan, items=99)
    signed.cases = {"fine": signed.good(0.001, count=99), "coarse": signed.good(0.05, count=99)}
    found = conclusion(signed)
    assert [one.outcome for one in found.candidates] == ["REFUSED", "REFUSED"]
    assert not found.passed
    assert "99 items" in found.sentence
    assert all(one.kl is not None for one in found.candidates)


def test_only_those_that_must_pass_decide(signed: Signed) -> None:
    signed.cases["coarse"] = signed.good(0.05)
    signed.plan = msgspec.structs.replace(signed.plan, must_pass=("fine",))
    found = conclusion(signed)
    assert found.passed
    assert found.candidates[1].outcome == "FAIL"


def test_a_missing_one_that_must_pass_is_a_failure(signed: Signed) -> None:
    signed.plan = msgspec.structs.replace(signed.plan, must_pass=("fine", "other"))
    found = conclusion(signed)
    assert not found.passed
    assert found.missing == ("other",)
    assert "other is missing" in found.sentence


def test_a_candidate_without_a_record_fails(signed: Signed) -> None:
    del signed.cases["coarse"]
    assert failing(signed) == {"measured"}
    assert not conclusion(signed).passed


def test_an_item_that_is_missing_fails_the_candidate(signed: Signed) -> None:
    signed.drop("coarse", ITEM, "text-007")
    found = judged(signed)
    assert found.outcome == "FAIL"
    assert "text-007" in found.checks[0].sentence
    assert found.items == 119


def test_an_item_that_raised_fails_the_candidate(signed: Signed) -> None:
    signed.change("coarse", ITEM, "text-007", outcome="ERROR", stage="run", message="it crashed", numbers={})
    assert "it crashed" in judged(signed).checks[0].sentence
    assert failing(signed) == {"measured"}


def test_a_candidate_that_was_never_loaded_fails(signed: Signed) -> None:
    signed.cases["coarse"] = [case("test_session", outcome="ERROR", message="no memory")]
    found = judged(signed)
    assert found.outcome == "FAIL"
    assert "no memory" in found.checks[0].sentence
    assert found.kl is None


def test_a_record_that_was_cut_short_fails(signed: Signed) -> None:
    signed.changes = {"complete": False}
    assert failing(signed) == {"measured"}


@pytest.mark.parametrize(
    ("test", "name"),
    [
        ("test_attestation", "device"),
        ("test_weights", "weight audit"),
        ("test_greedy_form", "greedy form"),
        ("test_greedy_regret", "regret"),
    ],
)
def test_each_verdict_of_the_judge_counts(signed: Signed, test: str, name: str) -> None:
    signed.change("coarse", test, outcome="FAIL", message="so it is")
    assert failing(signed) == {name}


@pytest.mark.parametrize(("test", "name"), [("test_greedy_form", "greedy form"), ("test_greedy_regret", "regret")])
def test_answers_of_which_none_could_be_asked_for_are_no_pass(signed: Signed, test: str, name: str) -> None:
    signed.change("coarse", test, outcome="UNSUPPORTED", message="its continuation is given")
    assert failing(signed) == {name}


def test_an_answer_that_cannot_be_asked_for_is_not_counted(signed: Signed) -> None:
    signed.change("coarse", "test_greedy_form", "bye", outcome="UNSUPPORTED", message="it is too long")
    assert failing(signed) == set()
    assert "1 of 2 prompts" in {check.sentence for check in judged(signed).checks}


def test_a_single_item_is_refused(signed: Signed) -> None:
    signed.plan = msgspec.structs.replace(signed.plan, items=1)
    signed.cases = {name: signed.good(0.001, count=1) for name in ("fine", "coarse")}
    found = conclusion(signed)
    assert [one.outcome for one in found.candidates] == ["REFUSED", "REFUSED"]
    assert as_markdown(found, signed.records(), signed.policy, signed.suite)


def test_logits_that_are_no_language_fail_by_their_perplexity(signed: Signed) -> None:
    signed.cases["coarse"] = signed.good(0.01, nll=2000.0)
    assert failing(signed) == {"perplexity"}


def test_what_cannot_be_audited_is_said_and_does_not_fail(signed: Signed) -> None:
    signed.change("coarse", "test_weights", outcome="UNSUPPORTED", message="it does not read weights")
    assert failing(signed) == set()
    assert {check.name for check in judged(signed).checks if check.status is Status.UNJUDGED} == {"weight audit"}


def test_the_implementation_error_counts(signed: Signed) -> None:
    for number in range(0, 120, 3):
        numbers = next(c.numbers for c in signed.cases["coarse"] if c.case == f"{ITEM}[text-{number:03d}]")
        signed.change("coarse", ITEM, f"text-{number:03d}", numbers={**numbers, "prefill_error": 0.2})
    assert failing(signed) == {"implementation"}
    assert judged(signed).implementation["prefill_mean"] == pytest.approx(5)


def test_an_error_that_is_not_taken_apart_is_held_against_the_suite_limit_of_its_class(signed: Signed) -> None:
    for one in list(signed.cases["coarse"]):
        kept = {name: value for name, value in one.numbers.items() if not name.startswith(("prefill", "quantisation"))}
        signed.change("coarse", one.test, one.case[len(one.test) + 1 : -1], numbers=kept)
    assert failing(signed) == set()
    assert judged(signed).quantisation_kl is None
    text = signed.policy_path.read_text(encoding="utf-8")
    head, _, tail = text.partition("[limits.int4]")
    signed.policy_path.write_text(head + "[limits.int4]" + tail.replace("limit = 0.31", "limit = 1e-4", 1), "utf-8")
    assert failing(signed) == {"implementation"}


def test_a_class_without_limits_is_an_error_of_the_policy(signed: Signed) -> None:
    text = signed.policy_path.read_text(encoding="utf-8").replace("[implementation.fp32]", "[implementation.other]")
    signed.policy_path.write_text(text, encoding="utf-8")
    with pytest.raises(PolicyError, match="fp32"):
        conclusion(signed)


def test_a_prompt_that_must_match_and_does_not_fails(signed: Signed) -> None:
    signed.change("coarse", "test_greedy_match", "hello", numbers={"match": 0.0})
    assert failing(signed) == {"must match"}


def test_a_prompt_that_must_match_and_was_not_answered_fails(signed: Signed) -> None:
    signed.drop("coarse", "test_greedy_match", "hello")
    assert failing(signed) == {"measured", "must match"}


def test_too_few_matches_fail(signed: Signed) -> None:
    signed.policy_path.write_text(
        signed.policy_path.read_text(encoding="utf-8").replace(
            'greedy_match_min = { limit = 0.5, origin = "a test"', 'greedy_match_min = { limit = 0.9, origin = "a test"'
        ),
        encoding="utf-8",
    )
    signed.change("coarse", "test_greedy_match", "bye", numbers={"match": 0.0})
    assert failing(signed) == {"greedy match"}


def test_the_front_holds_what_nothing_beats(signed: Signed) -> None:
    signed.plan = msgspec.structs.replace(signed.plan, candidate=(*signed.plan.candidate, Candidate("worse", TARGET)))
    signed.cases["worse"] = signed.good(0.012)
    signed.sizes["worse"] = 1500
    assert conclusion(signed).front == ("fine", "coarse")


def test_candidates_are_compared_on_the_same_draws(signed: Signed) -> None:
    signed.cases = {"fine": signed.good(0.01), "coarse": signed.good(0.0102)}
    found = conclusion(signed)
    kl = [one.kl for one in found.candidates]
    assert kl[0] is not None
    assert kl[1] is not None
    assert kl[1].low < kl[0].high
    assert found.pairs[0].kl.low > 0
    assert found.pairs[0].kl.detectable < kl[0].detectable / 10


def test_two_that_are_equal_on_every_item_are_said_to_be(signed: Signed) -> None:
    assert not conclusion(signed).pairs[0].identical
    signed.cases["coarse"] = signed.cases["fine"]
    found = conclusion(signed)
    assert found.pairs[0].identical
    report = as_markdown(found, signed.records(), signed.policy, signed.suite)
    assert "the same weights?" in report
    backwards = dict(reversed(signed.records().items()))
    again = conclude(signed.plan, backwards, signed.policy, signed.suite, signed.answered, __version__)
    assert again == found, "the order of the records decides something"


def test_the_report_says_how_each_was_made(signed: Signed) -> None:
    candidates = (
        msgspec.structs.replace(signed.plan.candidate[0], options=("-p", "int4")),
        msgspec.structs.replace(signed.plan.candidate[1], artifact="vendor-int4"),
    )
    signed.plan = msgspec.structs.replace(signed.plan, candidate=candidates)
    assert [one.made for one in conclusion(signed).candidates] == ["-p int4", "ready-made: vendor-int4"]


def test_the_intervals_are_those_of_the_prompts(signed: Signed) -> None:
    figures = figures_of(signed.record("coarse"))
    expected = intervals(figures.kl[:, None], figures.positions)[0]
    found = judged(signed)
    assert found.kl is not None
    assert found.kl.low == pytest.approx(expected.low)
    assert found.kl.high == pytest.approx(expected.high)
    assert conclusion(signed).golden_perplexity == pytest.approx(math.exp(2))
    assert conclusion(signed).perplexities == {"text": pytest.approx(math.exp(2))}
    change, nll = found.perplexity_change, found.nll_change
    assert change is not None
    assert nll is not None
    assert change.high == pytest.approx(math.exp(nll.high) - 1)


def test_the_worst_item_is_named_with_its_token(signed: Signed) -> None:
    numbers = next(c.numbers for c in signed.cases["coarse"] if c.case == f"{ITEM}[text-007]")
    signed.change("coarse", ITEM, "text-007", numbers={**numbers, "kl": 5.0, "kl_worst": 3.0})
    worst = judged(signed).worst
    assert worst is not None
    assert (worst.id, worst.kl_mean, worst.kl_worst, worst.token) == ("text-007", 0.5, 3.0, 2)


@pytest.mark.parametrize("changes", [{"top1": 11.0}, {"positions": 0.0}, {"kl": math.nan}])
def test_impossible_numbers_are_refused(signed: Signed, changes: dict[str, float]) -> None:
    numbers = next(c.numbers for c in signed.cases["coarse"] if c.case == f"{ITEM}[text-007]")
    signed.change("coarse", ITEM, "text-007", numbers={**numbers, **changes})
    with pytest.raises(ValueError, match="text-007"):
        conclusion(signed)


@pytest.mark.parametrize("operators", [Precision.FP32, Precision.FP16, Precision.BF16])
@pytest.mark.parametrize("block", [0, 32])
def test_the_class_of_an_arithmetic_is_read_off_its_words(operators: Precision, block: int) -> None:
    arithmetic = Arithmetic(operators, block)
    assert class_of(str(arithmetic)) == arithmetic.compute_class


def test_makers_make_what_they_say() -> None:
    assert len(items(0.01)) == 120
    assert IMPLEMENTATION.startswith("test_")
