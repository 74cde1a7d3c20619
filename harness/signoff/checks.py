"""What a candidate is held against, one check after another, each with the sentence that says how it came out."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence

import msgspec

from harness.intervals import Interval
from harness.policy import Limit, Policy
from harness.prompts import PromptSuite
from harness.record import CaseRecord, RunRecord
from harness.signoff.figures import IMPLEMENTATION, ITEM, implementation_ratios, subject

# Prompts or findings that a sentence names.
_NAMED = 4


class Status(str, enum.Enum):
    """How a check came out; what could not be looked at does not fail, and is said."""

    PASS = "PASS"
    FAIL = "FAIL"
    UNJUDGED = "UNJUDGED"


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """One check: its name, how it came out, and why. `value` was held against `limit`, both in the figure's unit."""

    name: str
    status: Status
    sentence: str
    value: float | None = None
    limit: float | None = None


def check_candidate(
    record: RunRecord,
    policy: Policy,
    asked: Sequence[str],
    answered: PromptSuite,
    kl: Interval | None,
    perplexity: Interval | None,
    top1: Interval | None,
    match: float | None,
) -> tuple[Check, ...]:
    """Every check of a candidate by its record; `asked` are the ids of the items. Raises PolicyError."""
    limits = policy.limits_of_signoff()
    found = [*_whole(record, asked, answered), _outcome(record, "test_attestation", "device")]
    found += [_outcome(record, "test_weights", "weight audit"), _implementation(record, policy, kl)]
    if kl is not None and perplexity is not None and top1 is not None:
        found.append(_bound("KL", kl.estimate, kl.high, limits.kl_mean, "nat"))
        found.append(_bound("perplexity", perplexity.estimate, perplexity.high, limits.perplexity_change, "%"))
        found.append(_bound("top-1", top1.estimate, top1.low, limits.top1_min, "", least=True))
    if match is not None:
        found.append(_bound("greedy match", match, match, limits.greedy_match_min, "", least=True))
    found += [_answers(record, "test_greedy_form", "greedy form"), _answers(record, "test_greedy_regret", "regret")]
    return (*found, *_speed(record), *_must_match(record, limits.must_match))


def _whole(record: RunRecord, asked: Sequence[str], answered: PromptSuite) -> Iterator[Check]:
    """Whether the record is whole: loaded, nothing cut short, every item compared and every prompt answered."""
    session = _case(record, "test_session")
    if session is None or session.outcome != "PASS":
        said = "it was never loaded" if session is None else f"{_label(session)}: {_first_line(session)}"
        yield Check("measured", Status.FAIL, said)
        return
    items = {subject(case): case for case in record.cases if case.test == ITEM}
    bad = [item for item in asked if item not in items or items[item].outcome != "PASS"]
    answers = {subject(case) for case in record.cases if case.test == "test_greedy_match"}
    unanswered = [prompt.id for prompt in answered.prompts if prompt.id not in answers]
    if bad:
        first = items.get(bad[0])
        why = "not asked" if first is None else f"{_label(first)}: {_first_line(first)}"
        yield Check("measured", Status.FAIL, f"{len(bad)} of {len(asked)} items are missing, {bad[0]} first ({why})")
    elif not record.complete or unanswered:
        said = "it was cut short" if not unanswered else f"{len(unanswered)} prompts were not answered: {unanswered[0]}"
        yield Check("measured", Status.FAIL, said)
    else:
        yield Check("measured", Status.PASS, f"all {len(asked)} items and {len(answers)} prompts")


def _outcome(record: RunRecord, test: str, name: str) -> Check:
    case = _case(record, test)
    if case is None:
        return Check(name, Status.FAIL, "not looked at")
    said = _first_line(case)
    if case.outcome == "UNSUPPORTED" and test == "test_weights":
        return Check(name, Status.UNJUDGED, said)
    if case.outcome == "PASS":
        return Check(name, Status.PASS, said or "clean")
    return Check(name, Status.FAIL, f"{_label(case)}: {said}")


def _implementation(record: RunRecord, policy: Policy, kl: Interval | None) -> Check:
    """Implementation error over yardstick, by the limits of the arithmetic's compute class.

    Where the error was not taken apart, the total one by the suite limits of the session's class, as in a run: the
    product's own limits would let a defect of a fine precision pass.
    """
    name = "implementation"
    case, session = _case(record, IMPLEMENTATION), next(iter(record.sessions), None)
    ratios = implementation_ratios(record)
    if case is None or session is None:
        return Check(name, Status.FAIL, "not looked at")
    if not ratios:
        return _total(name, kl, policy.limits_of(session.compute_class).suite.kl_mean)
    limits = policy.implementation_of(class_of(session.arithmetic))
    beyond = []
    for key, ratio in ratios.items():
        bound = limits.suite_mean if key.endswith("mean") else limits.worst
        if not ratio <= bound.limit:
            words = key.replace("_", ", ")
            beyond.append(f"{words}: {ratio:.3g} x the yardstick; allowed: {bound.limit:.3g} x ({bound.origin})")
    worst = max(ratios.values())
    if beyond:
        return Check(name, Status.FAIL, "; ".join(beyond), worst)
    return Check(name, Status.PASS, f"at most {worst:.3g} x the yardstick", worst)


def _total(name: str, kl: Interval | None, limit: Limit) -> Check:
    if kl is None:
        return Check(name, Status.FAIL, "not looked at")
    found = f"not taken apart: total KL {kl.estimate:.3g} nat; allowed for its class: {limit.limit:.3g} nat"
    good = kl.estimate <= limit.limit
    said = found if good else f"{found} ({limit.origin})"
    return Check(name, Status.PASS if good else Status.FAIL, said, kl.estimate, limit.limit)


def class_of(arithmetic: str) -> str:
    """The compute class of an arithmetic as a record writes it: see `harness.arithmetic.Arithmetic`."""
    return arithmetic.split(" ")[0] + ("+a8" if "int8 activations" in arithmetic else "")


def _bound(name: str, estimate: float, bound: float, limit: Limit, unit: str, *, least: bool = False) -> Check:
    good = bound >= limit.limit if least else bound <= limit.limit
    near = estimate >= limit.limit if least else estimate <= limit.limit
    shown, allowed = _figure(bound, unit), _figure(limit.limit, unit)
    side = "lower" if least else "upper"
    if good:
        return Check(name, Status.PASS, f"{side} bound {shown}; allowed: {allowed}", bound, limit.limit)
    said = f"{side} bound {shown}; allowed: {allowed} ({limit.origin})"
    if near and estimate != bound:
        said += "; its estimate is within, so that this sample cannot tell"
    return Check(name, Status.FAIL, said, bound, limit.limit)


def _figure(value: float, unit: str) -> str:
    return f"{value:+.3%}" if unit == "%" else f"{value:.4g} {unit}".strip()


def _answers(record: RunRecord, test: str, name: str) -> Check:
    cases = [case for case in record.cases if case.test == test]
    bad = [case for case in cases if case.outcome not in ("PASS", "UNSUPPORTED")]
    asked = [case for case in cases if case.outcome != "UNSUPPORTED"]
    if not asked:
        why = f": {_first_line(cases[0])}" if cases else ""
        return Check(name, Status.FAIL, f"not looked at{why}")
    if bad:
        names = ", ".join(subject(case) for case in bad[:_NAMED])
        return Check(name, Status.FAIL, f"{len(bad)} of {len(cases)} prompts: {names}; {_first_line(bad[0])}")
    return Check(
        name, Status.PASS, f"{len(asked)} prompts" if asked == cases else f"{len(asked)} of {len(cases)} prompts"
    )


def _must_match(record: RunRecord, names: Sequence[str]) -> Iterator[Check]:
    """The prompts whose answer must be the golden's, one that has none among those that fail."""
    answers = {subject(case): case for case in record.cases if case.test == "test_greedy_match"}
    wrong = [name for name in names if name not in answers or answers[name].numbers.get("match") != 1.0]
    if not names:
        return
    if wrong:
        words = [f"{name} ({'other words' if name in answers else 'no answer'})" for name in wrong]
        yield Check("must match", Status.FAIL, f"not answered as the golden answers: {', '.join(words)}")
    else:
        yield Check("must match", Status.PASS, f"{len(names)} prompts answered as the golden answers")


def _speed(record: RunRecord) -> Iterator[Check]:
    """Where the policy limits the speed of the target; nothing is said of it elsewhere."""
    case = _case(record, "test_speed")
    if case is not None and case.limits:
        yield _outcome(record, "test_speed", "speed")


def _case(record: RunRecord, test: str) -> CaseRecord | None:
    return next((case for case in record.cases if case.test == test), None)


def _first_line(case: CaseRecord) -> str:
    return case.message.partition("\n")[0]


def _label(case: CaseRecord) -> str:
    return f"{case.outcome}({case.stage})" if case.stage else case.outcome
