from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from harness import compare
from harness.compare import Outcome, Rows, Verdict
from harness.errors import PolicyError
from harness.metrics import RowErrors
from harness.policy import GreedyLimits, Limit, LogitLimits, Policy, SuiteLimits, compute_class, read_policy
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision

Array = NDArray[np.float64]
_LOGIT_KEYS = ("kl_mean", "kl_worst", "relative_mean", "relative_worst")
_NUMBERS = st.floats(0, 10) | st.sampled_from([float("nan"), float("inf")])


def _logit_limits(**changes: float) -> LogitLimits:
    return LogitLimits(**{key: Limit(changes.get(key, 1e9), f"origin of {key}") for key in _LOGIT_KEYS})


def _greedy_limits(margin: float = 1.0, regret: float = 1.0) -> GreedyLimits:
    return GreedyLimits(Limit(margin, "origin of the margin"), Limit(regret, "origin of the regret"))


def _suite_limits(kl: float = 1e9, top1: float = 0.0, match: float = 0.0) -> SuiteLimits:
    return SuiteLimits(Limit(kl, "a measurement"), Limit(top1, "a decision"), Limit(match, "a wish"))


def _errors(kl: list[float], relative: list[float] | None = None, agrees: list[bool] | None = None) -> RowErrors:
    return RowErrors(
        kl=np.array(kl, dtype=np.float64),
        centred_rms=np.full(len(kl), 0.5),
        centred_relative=np.array([0.0] * len(kl) if relative is None else relative, dtype=np.float64),
        top1_agrees=np.array([True] * len(kl) if agrees is None else agrees),
    )


def _logits(rows: int, width: int = 6) -> Array:
    return np.random.default_rng(rows).normal(size=(rows, width))


# logits


def test_logits_within_all_limits_pass_with_raw_numbers() -> None:
    rows = Rows(_errors([0.1, 0.3], [0.01, 0.02], [True, False]), first=0)
    verdict = compare.judge_logits(rows, _logit_limits(), prompt_length=1)
    assert (verdict.outcome, verdict.message) == (Outcome.PASS, "")
    assert verdict.numbers["positions"] == 2
    assert verdict.numbers["kl_mean"] == pytest.approx(0.2)
    assert verdict.numbers["kl_worst"] == 0.3
    assert verdict.numbers["relative_worst"] == 0.02
    assert verdict.numbers["top1"] == 0.5
    assert verdict.limits == dict.fromkeys(_LOGIT_KEYS, 1e9)


@pytest.mark.parametrize("key", _LOGIT_KEYS)
def test_each_limit_gates_by_itself_and_names_its_origin(key: str) -> None:
    rows = Rows(_errors([0.1, 0.3], [0.1, 0.3]), first=0)
    verdict = compare.judge_logits(rows, _logit_limits(**{key: 0.05}), prompt_length=1)
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.message.splitlines()) == 1
    assert f"origin of {key}" in verdict.message
    assert ("nat" in verdict.message) is key.startswith("kl")


@pytest.mark.parametrize("key", _LOGIT_KEYS)
def test_a_number_at_its_limit_passes_and_just_above_it_fails(key: str) -> None:
    rows = Rows(_errors([0.25, 0.25], [0.25, 0.25]), first=0)
    assert compare.judge_logits(rows, _logit_limits(**{key: 0.25}), 1).outcome is Outcome.PASS
    below = float(np.nextafter(0.25, 0))
    assert compare.judge_logits(rows, _logit_limits(**{key: below}), 1).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("first", "worst", "expected"),
    [
        (0, 0, "at position 0 of 5 (prefill)"),
        (0, 2, "at position 2 of 5 (prefill)"),
        (0, 3, "at position 3 of 5 (decode)"),
        (2, 0, "at position 2 of 7 (prefill)"),
        (2, 1, "at position 3 of 7 (decode)"),
    ],
)
@pytest.mark.parametrize("key", ["kl_worst", "relative_worst"])
def test_the_worst_token_is_placed_in_prefill_or_decode(key: str, first: int, worst: int, expected: str) -> None:
    spike = [0.0] * 5
    spike[worst] = 9.0
    errors = _errors(spike) if key == "kl_worst" else _errors([0.0] * 5, spike)
    verdict = compare.judge_logits(Rows(errors, first), _logit_limits(**{key: 1.0}), prompt_length=3)
    assert expected in verdict.message


@given(st.lists(st.tuples(_NUMBERS, _NUMBERS), min_size=1, max_size=6), st.lists(_NUMBERS, min_size=4, max_size=4))
def test_logits_never_pass_with_a_number_beyond_its_limit(
    pairs: list[tuple[float, float]], bounds: list[float]
) -> None:
    kl, relative = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    limits = _logit_limits(**dict(zip(_LOGIT_KEYS, bounds, strict=True)))
    with np.errstate(all="ignore"):
        verdict = compare.judge_logits(Rows(_errors(kl, relative), 0), limits, 1)
    within = all(verdict.numbers[key] <= bound for key, bound in zip(_LOGIT_KEYS, bounds, strict=True))
    assert (verdict.outcome is Outcome.PASS) is within
    assert bool(verdict.message) is not within


@pytest.mark.parametrize(("whole", "first"), [(True, 0), (False, 3)])
def test_logits_of_the_right_shape_are_compared_from_their_first_position(whole: bool, first: int) -> None:
    reference = _logits(6)
    rows = compare.compare_logits(reference, reference[first:].copy(), 4, whole_prompt=whole)
    assert isinstance(rows, Rows)
    assert rows.first == first
    assert rows.errors.kl.tolist() == [0.0] * (6 - first)


def _without_comparing(device: Array, *, whole_prompt: bool = True) -> Verdict:
    found = compare.compare_logits(_logits(6), device, 4, whole_prompt=whole_prompt)
    assert isinstance(found, Verdict)
    assert found.outcome is Outcome.FAIL
    assert found.message
    return found


def test_logits_of_the_last_prompt_token_only_fail_and_say_so() -> None:
    assert "last token only" in _without_comparing(_logits(6)[3:]).message


@pytest.mark.parametrize(
    "device",
    [
        np.empty((0, 6)),
        _logits(5),
        _logits(7),
        _logits(6, width=5),
        _logits(6, width=7),
        _logits(6)[None],
        _logits(6)[0],
        np.array(1.0),
        _logits(6).T.copy()[:, :1],
    ],
    ids=lambda device: "x".join(map(str, device.shape)) or "scalar",
)
def test_logits_of_another_shape_fail_and_never_compare(device: Array) -> None:
    assert str(device.shape) in _without_comparing(device).message
    assert "(6, 6)" in _without_comparing(device).message


def test_whole_prompt_logits_do_not_stand_in_for_last_token_ones() -> None:
    assert "(3, 6)" in _without_comparing(_logits(6), whole_prompt=False).message


@pytest.mark.parametrize(("bad", "name"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
@pytest.mark.parametrize("whole", [True, False])
def test_nan_and_inf_fail_at_the_position_where_they_are(bad: float, name: str, whole: bool) -> None:
    device = _logits(6)
    device[5, 2] = bad
    verdict = _without_comparing(device if whole else device[3:], whole_prompt=whole)
    assert verdict.message.startswith(f"{name} among the logits")
    assert "position 5, vocabulary entry 2" in verdict.message


def test_garbage_logits_far_from_the_reference_fail_rather_than_crash() -> None:
    device = _logits(6)
    device[:, 0] += 1000.0
    rows = compare.compare_logits(_logits(6), device, 4, whole_prompt=True)
    assert isinstance(rows, Rows)
    assert compare.judge_logits(rows, _logit_limits(kl_mean=1.0), 4).outcome is Outcome.FAIL


# form


@pytest.mark.parametrize(
    ("tokens", "outcome", "named"),
    [
        ([5, 6, 7], Outcome.PASS, ""),
        ([5, 2], Outcome.PASS, ""),
        ([2], Outcome.PASS, ""),
        ([5, 6, 3], Outcome.PASS, ""),
        ([], Outcome.FAIL, "no tokens"),
        ([5, 6], Outcome.FAIL, "early stop"),
        ([5, 6, 7, 8], Outcome.FAIL, "overrun"),
        ([5, 6, 7, 2], Outcome.FAIL, "overrun"),
        ([5, 2, 7], Outcome.FAIL, "1 tokens follow the end token at 1"),
        ([2, 2], Outcome.FAIL, "follow the end token at 0"),
    ],
)
def test_an_answer_ends_where_it_may(tokens: list[int], outcome: Outcome, named: str) -> None:
    verdict = compare.judge_form(tokens, 3, end_tokens=[2, 3])
    assert verdict.outcome is outcome
    assert named in verdict.message
    assert verdict.numbers["new_tokens"] == len(tokens)


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(1, 5))
def test_an_answer_passes_only_if_it_is_full_or_ends_with_its_only_end_token(tokens: list[int], most: int) -> None:
    well_formed = 0 < len(tokens) <= most and 2 not in tokens[:-1] and (len(tokens) == most or tokens[-1] == 2)
    assert (compare.judge_form(tokens, most, [2]).outcome is Outcome.PASS) is well_formed


_EIGHT = list(range(10, 18))


@pytest.mark.parametrize(
    ("prompt", "tokens", "golden", "expected"),
    [
        (_EIGHT, _EIGHT, [1] * 8, True),
        (_EIGHT, [*_EIGHT, 5], [1] * 9, True),
        ([*_EIGHT, 5], _EIGHT, [1] * 8, True),
        (_EIGHT, _EIGHT, _EIGHT, False),
        (_EIGHT[:7], _EIGHT[:7], [1] * 7, False),
        (_EIGHT, [*_EIGHT[:7], 0], [1] * 8, False),
        (_EIGHT, [], [1] * 8, False),
    ],
)
def test_an_echo_repeats_eight_tokens_of_a_prompt_that_the_golden_does_not(
    prompt: list[int], tokens: list[int], golden: list[int], expected: bool
) -> None:
    assert compare.is_echo(prompt, tokens, golden) is expected


# greedy tokens


# centred RMS 1, so margins are in its units
_UNIT = np.array([[1.0, -1.0, 1.0, -1.0]])


def test_equal_tokens_match() -> None:
    verdict = compare.judge_match([0, 2], [0, 2], np.vstack([_UNIT, _UNIT]), _greedy_limits(0.0))
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers == {"match": 1.0, "matched_tokens": 2.0}


def test_a_divergence_where_the_golden_hardly_prefers_its_own_passes_and_is_counted() -> None:
    verdict = compare.judge_match([0, 0], [0, 2], np.vstack([_UNIT, _UNIT]), _greedy_limits(0.0))
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["match"] == 0.0
    assert verdict.numbers["matched_tokens"] == 1.0
    assert "token 1 of 2" in verdict.message


@pytest.mark.parametrize(
    ("limit", "outcome"), [(2.0, Outcome.PASS), (1.99, Outcome.FAIL), (float("nan"), Outcome.FAIL)]
)
def test_a_divergence_is_judged_by_how_far_the_golden_prefers_its_own(limit: float, outcome: Outcome) -> None:
    verdict = compare.judge_match([0, 0], [0, 1], np.vstack([_UNIT, _UNIT]), _greedy_limits(limit))
    assert verdict.outcome is outcome
    assert verdict.numbers["divergence_margin"] == pytest.approx(2.0)
    if outcome is Outcome.FAIL:
        assert verdict.numbers["token"] == 1.0
        assert "origin of the margin" in verdict.message


def test_only_the_first_divergence_is_held_against_the_golden() -> None:
    reference = np.vstack([_UNIT, _UNIT * 100])
    verdict = compare.judge_match([0, 0], [2, 1], reference, _greedy_limits(0.5))
    assert verdict.outcome is Outcome.PASS


@pytest.mark.parametrize("tokens", [[0], [], [0, 0, 0]])
def test_a_prefix_is_no_match_whatever_the_limit(tokens: list[int]) -> None:
    verdict = compare.judge_match([0, 0], tokens, np.vstack([_UNIT, _UNIT]), _greedy_limits(1e9))
    assert verdict.outcome is Outcome.FAIL
    assert f"{len(tokens)} new tokens" in verdict.message
    assert verdict.numbers["match"] == 0.0


def test_nothing_against_nothing_is_no_match() -> None:
    verdict = compare.judge_match([], [], np.empty((0, 4)), _greedy_limits(1e9))
    assert verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize("token", [-1, 4, 10**6])
def test_a_token_outside_the_vocabulary_fails_whatever_the_limit(token: int) -> None:
    for verdict in (
        compare.judge_match([0], [token], _UNIT, _greedy_limits(1e9)),
        compare.judge_regret(_UNIT, [token], _greedy_limits(1e9, 1e9)),
    ):
        assert verdict.outcome is Outcome.FAIL
        assert f"token id {token} is outside the vocabulary" in verdict.message


def test_the_best_tokens_have_no_regret() -> None:
    verdict = compare.judge_regret(np.vstack([_UNIT, _UNIT]), [0, 2], _greedy_limits(regret=0.0))
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["regret_worst"] == 0.0


@pytest.mark.parametrize(
    ("limit", "outcome"), [(2.0, Outcome.PASS), (1.99, Outcome.FAIL), (float("nan"), Outcome.FAIL)]
)
def test_the_worst_regret_is_judged_in_units_of_the_references_logits(limit: float, outcome: Outcome) -> None:
    reference = np.vstack([_UNIT, _UNIT * 50, _UNIT])
    verdict = compare.judge_regret(reference, [0, 1, 2], _greedy_limits(regret=limit))
    assert verdict.outcome is outcome
    assert verdict.numbers["regret_worst"] == pytest.approx(2.0)
    assert verdict.numbers["regret_worst_logits"] == pytest.approx(100.0)
    assert verdict.numbers["token"] == 1.0
    if outcome is Outcome.FAIL:
        assert "token 1 of 3" in verdict.message
        assert "origin of the regret" in verdict.message
        assert (verdict.numbers["chosen"], verdict.numbers["preferred"]) == (1.0, 0.0)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.floats(0, 3))
def test_tokens_never_pass_with_a_regret_beyond_the_limit(tokens: list[int], limit: float) -> None:
    reference = np.random.default_rng(len(tokens)).normal(size=(len(tokens), 4))
    verdict = compare.judge_regret(reference, tokens, _greedy_limits(regret=limit))
    chosen = reference[np.arange(len(tokens)), tokens]
    worst = ((reference.max(axis=1) - chosen) / reference.std(axis=1)).max()
    assert verdict.numbers["regret_worst"] == pytest.approx(worst)
    assert (verdict.outcome is Outcome.PASS) is (verdict.numbers["regret_worst"] <= limit)


# suites


def test_a_suite_weighs_positions_not_prompts() -> None:
    errors = [_errors([0.0, 0.0, 0.0], agrees=[True] * 3), _errors([4.0], agrees=[False])]
    verdict = compare.judge_suite(errors, _suite_limits(kl=1.0, top1=0.75))
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers["kl_mean"] == pytest.approx(1.0)
    assert verdict.numbers["top1"] == pytest.approx(0.75)
    assert (verdict.numbers["prompts"], verdict.numbers["positions"]) == (2, 4)


@pytest.mark.parametrize(
    ("limits", "named"),
    [(_suite_limits(kl=0.9), "a measurement"), (_suite_limits(top1=0.95), "a decision")],
)
def test_each_bound_of_a_suite_gates_by_itself(limits: SuiteLimits, named: str) -> None:
    verdict = compare.judge_suite([_errors([1.0, 1.0], agrees=[True, False])], limits)
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.message.splitlines()) == 1
    assert named in verdict.message


@pytest.mark.parametrize("errors", [[], [_errors([])]])
def test_a_suite_of_nothing_fails(errors: list[RowErrors]) -> None:
    verdict = compare.judge_suite(errors, _suite_limits())
    assert verdict.outcome is Outcome.FAIL
    assert "zero positions" in verdict.message


def test_a_suite_with_nan_fails_whatever_the_limits() -> None:
    verdict = compare.judge_suite([_errors([0.0, float("nan")])], _suite_limits())
    assert verdict.outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("matches", "limit", "outcome"),
    [
        ([True, True], 1.0, Outcome.PASS),
        ([True, False], 0.5, Outcome.PASS),
        ([True, False], 0.51, Outcome.FAIL),
        ([False], 0.0, Outcome.PASS),
        ([], 0.0, Outcome.FAIL),
        ([True], float("nan"), Outcome.FAIL),
    ],
)
def test_the_share_of_matching_prompts_is_held_against_its_bound(
    matches: list[bool], limit: float, outcome: Outcome
) -> None:
    verdict = compare.judge_agreement(matches, _suite_limits(match=limit))
    assert verdict.outcome is outcome
    assert bool(verdict.message) is (outcome is Outcome.FAIL)


# evidence and compute class


@pytest.fixture(scope="module")
def policy(tree: Path) -> Policy:
    return read_policy(tree / "conformance" / "policy.toml")


def _evidence(level: EvidenceLevel, *kinds: DeviceKind) -> Evidence:
    return Evidence(level, kinds, tuple(kind.value.upper() for kind in kinds), "EXECUTION_DEVICES")


@pytest.mark.parametrize("kind", list(DeviceKind))
def test_measured_evidence_of_the_kind_asked_for_suffices(policy: Policy, kind: DeviceKind) -> None:
    verdict = compare.judge_evidence(_evidence(EvidenceLevel.MEASURED, kind), kind, policy)
    assert (verdict.outcome, verdict.message) == (Outcome.PASS, "")


@pytest.mark.parametrize(
    "kinds",
    [(), (DeviceKind.CPU,), (DeviceKind.CPU, DeviceKind.NPU), (DeviceKind.NPU, DeviceKind.CPU), (DeviceKind.GPU,)],
)
def test_another_kind_or_a_mixture_is_unattested_and_named(policy: Policy, kinds: tuple[DeviceKind, ...]) -> None:
    verdict = compare.judge_evidence(_evidence(EvidenceLevel.MEASURED, *kinds), DeviceKind.NPU, policy)
    assert verdict.outcome is Outcome.UNATTESTED
    assert "npu was asked for" in verdict.message
    assert "EXECUTION_DEVICES" in verdict.message
    assert all(kind.value.upper() in verdict.message for kind in kinds)


@pytest.mark.parametrize(
    ("kind", "level", "outcome"),
    [
        (DeviceKind.NPU, EvidenceLevel.MEASURED, Outcome.PASS),
        (DeviceKind.NPU, EvidenceLevel.BY_CONSTRUCTION, Outcome.UNATTESTED),
        (DeviceKind.NPU, EvidenceLevel.NONE, Outcome.UNATTESTED),
        (DeviceKind.CPU, EvidenceLevel.BY_CONSTRUCTION, Outcome.PASS),
        (DeviceKind.CPU, EvidenceLevel.NONE, Outcome.UNATTESTED),
    ],
)
def test_evidence_must_reach_the_level_of_the_policy(
    policy: Policy, kind: DeviceKind, level: EvidenceLevel, outcome: Outcome
) -> None:
    levels = {
        DeviceKind.CPU: EvidenceLevel.BY_CONSTRUCTION,
        DeviceKind.GPU: EvidenceLevel.BY_CONSTRUCTION,
        DeviceKind.NPU: EvidenceLevel.MEASURED,
    }
    strict = msgspec.structs.replace(policy, attestation=levels)
    verdict = compare.judge_evidence(_evidence(level, kind), kind, strict)
    assert verdict.outcome is outcome
    if outcome is Outcome.UNATTESTED:
        assert f"the policy asks for {levels[kind].value}" in verdict.message


@pytest.mark.parametrize(
    ("weights", "arithmetic", "expected"),
    [
        (Precision.FP32, None, Precision.FP32),
        (Precision.INT4, None, Precision.INT4),
        (Precision.FP32, Precision.BF16, Precision.BF16),
        (Precision.FP16, Precision.FP32, Precision.FP16),
        (Precision.FP16, Precision.BF16, Precision.BF16),
        (Precision.BF16, Precision.FP16, Precision.BF16),
        (Precision.INT8, Precision.FP16, Precision.INT8),
        (Precision.INT4, Precision.INT8, Precision.INT4),
        (Precision.FP16, Precision.INT8, Precision.INT8),
    ],
)
def test_the_coarser_of_weights_and_arithmetic_decides_the_class(
    weights: Precision, arithmetic: Precision | None, expected: Precision
) -> None:
    assert compute_class(weights, arithmetic) is expected


# policy


def test_the_policy_of_the_project_has_limits_for_every_class_and_a_level_for_every_kind(
    policy: Policy,
) -> None:
    assert all(policy.limits_of(precision) for precision in Precision)
    assert set(policy.attestation) == set(DeviceKind)


def test_a_class_without_limits_is_named(policy: Policy) -> None:
    bare = msgspec.structs.replace(policy, limits={})
    with pytest.raises(PolicyError, match="int4") as caught:
        bare.limits_of(Precision.INT4)
    assert "[limits.int4]" in caught.value.remedy


@given(st.sampled_from(Outcome), st.dictionaries(st.text(max_size=5), st.floats(allow_nan=False)), st.text())
def test_a_verdict_survives_the_wire(outcome: Outcome, numbers: dict[str, float], message: str) -> None:
    verdict = Verdict(outcome, numbers, {"limit": 1.0}, message)
    convert: Callable[..., Any] = msgspec.convert
    assert convert(msgspec.to_builtins(verdict), Verdict) == verdict


def test_two_wrong_positions_of_55_do_not_prove_less_than_98_per_cent_but_of_1000_fifty_do() -> None:
    few = _errors([0.0] * 55, agrees=[False] * 2 + [True] * 53)
    many = _errors([0.0] * 1000, agrees=[False] * 50 + [True] * 950)
    assert compare.judge_suite([few], _suite_limits(top1=0.98)).outcome is Outcome.PASS
    assert compare.judge_suite([many], _suite_limits(top1=0.98)).outcome is Outcome.FAIL
