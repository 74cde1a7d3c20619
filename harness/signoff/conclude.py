"""From the records of a sign-off to its conclusions: a pure function, so that whoever has them can conclude again.

Decided is by the bound of a 95 % interval and never by the estimate: a build passes if it is shown to be good enough,
and one that the sample cannot tell fails as one does that is bad.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.intervals import Interval, intervals, share_interval
from harness.policy import Policy
from harness.prompts import PromptSuite
from harness.record import RunRecord, SessionRecord
from harness.signoff.candidates import Candidate, Plan
from harness.signoff.checks import Check, Status, check_candidate
from harness.signoff.figures import Figures, figures_of, implementation_ratios, item_cases, subject
from harness.signoff.suite import MIN_ITEMS, choose, stratum

Floats = NDArray[np.float64]

SCHEMA = 1
PASS, FAIL, REFUSED = "PASS", "FAIL", "REFUSED"
# What lies further off than this, in nat a token, is no language: more would not fit a float.
_MOST_NAT = 50.0


class Worst(msgspec.Struct, frozen=True):
    """The item with the largest mean KL, in nat, and its worst scored token."""

    id: str
    kl_mean: float
    kl_worst: float
    token: int


class Greedy(msgspec.Struct, frozen=True):
    """The answered prompts: how many, the share answered as the golden answers, and the worst regret.

    `regret_worst`: by how much the reference prefers another token than the one chosen, in units of its logits' RMS;
    None where no prompt had any judged.
    """

    prompts: int
    match: float
    regret_worst: float | None


class Judged(msgspec.Struct, frozen=True):
    """A candidate and what was concluded of it. KL in nat; `nll_change` is nat a token, device less golden.

    `made`: by which recipe or options, or of which ready-made folder. `strata`: mean KL by stratum. `implementation`:
    error over yardstick, see `figures.implementation_ratios`.
    """

    name: str
    target: str
    outcome: str
    checks: tuple[Check, ...]
    made: str = ""
    bytes: int | None = None
    artifact_sha256: str = ""
    items: int = 0
    positions: int = 0
    kl: Interval | None = None
    quantisation_kl: Interval | None = None
    nll_change: Interval | None = None
    top1: Interval | None = None
    implementation: dict[str, float] = {}
    arithmetic: str = ""
    greedy: Greedy | None = None
    worst: Worst | None = None
    strata: dict[str, float] = {}

    @property
    def perplexity_change(self) -> Interval | None:
        """The relative change of the perplexity, exp(change of the mean negative log likelihood) - 1."""
        return None if self.nll_change is None else as_perplexity(self.nll_change)


class Pair(msgspec.Struct, frozen=True):
    """Two candidates on the same draws: the second less the first, in mean KL (nat) and in nat a token.

    `identical`: both have the same numbers on every item, so that one is probably the other under another name.
    """

    first: str
    second: str
    kl: Interval
    nll: Interval
    identical: bool


class Conclusion(msgspec.Struct, frozen=True):
    """What a sign-off came to. `front`: the candidates than which none is both smaller and nearer, by size and KL.

    `golden_perplexity`: of the golden on the scored texts, and `perplexities` by stratum; where it is above the size of
    the vocabulary the texts are strange to the checkpoint.
    """

    schema: int
    harness: str
    checkpoint: str
    suite: str
    items: int
    candidates: tuple[Judged, ...]
    pairs: tuple[Pair, ...]
    front: tuple[str, ...]
    must_pass: tuple[str, ...]
    missing: tuple[str, ...]
    passed: bool
    sentence: str
    golden_perplexity: float | None = None
    perplexities: dict[str, float] = {}
    vocabulary: int = 0


def as_perplexity(found: Interval) -> Interval:
    """A change in nat a token as a relative change of the perplexity; the error to first order."""
    scale, low, high = (math.exp(min(nat, _MOST_NAT)) for nat in (found.estimate, found.low, found.high))
    return Interval(scale - 1, low - 1, high - 1, scale * found.error)


def conclude(
    plan: Plan,
    records: Mapping[str, RunRecord],
    policy: Policy,
    suite: PromptSuite,
    answered: PromptSuite,
    harness: str,
) -> Conclusion:
    """Judge every candidate of the plan by its record.

    Raises ValueError where a record's numbers are incomplete or impossible, PolicyError without limits for it.
    """
    asked = tuple(prompt.id for prompt in choose(suite, plan.items))
    names = [candidate.name for candidate in plan.candidate]  # in this order, whatever that of the records is
    figures = {name: figures_of(records[name]) for name in names if name in records}
    whole = [name for name, found in figures.items() if found.ids == asked and len(asked) > 1]
    measured = _intervals({name: figures[name] for name in whole})
    for name, found in figures.items():
        if name not in measured and len(found.ids) > 1:
            measured |= _intervals({name: found})
    candidates = tuple(
        _judge(candidate, records.get(candidate.name), figures.get(candidate.name), measured, policy, asked, answered)
        for candidate in plan.candidate
    )
    known = {candidate.name: candidate for candidate in candidates}
    perplexity, perplexities = _golden(next((figures[name] for name in whole), None))
    missing = tuple(name for name in plan.to_pass() if name not in known)
    failed = [name for name in plan.to_pass() if name not in known or known[name].outcome != PASS]
    return Conclusion(
        schema=SCHEMA,
        harness=harness,
        checkpoint=next((r.checkpoint.name for r in records.values() if r.checkpoint is not None), ""),
        suite=suite.name,
        items=len(asked),
        candidates=candidates,
        pairs=_pairs({name: figures[name] for name in whole}),
        front=_front(candidates),
        must_pass=plan.to_pass(),
        missing=missing,
        passed=not failed,
        sentence=_sentence(failed, known, plan.to_pass(), len(asked)),
        golden_perplexity=perplexity,
        perplexities=perplexities,
        vocabulary=next((s.info.vocabulary for r in records.values() for s in r.sessions), 0),
    )


def _sentence(failed: Sequence[str], known: Mapping[str, Judged], to_pass: Sequence[str], items: int) -> str:
    if not failed:
        return f"Signed off: {_names(to_pass)} {'keeps' if len(to_pass) == 1 else 'keep'} to the policy's limits."
    if items < MIN_ITEMS:
        return f"Not signed off: {items} items were asked, and below {MIN_ITEMS} nothing is decided."
    reasons = [f"{name} is missing" if name not in known else f"{name} fails" for name in failed]
    return f"Not signed off: {', '.join(reasons)}."


def _names(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _columns(found: Figures) -> list[Floats]:
    return [found.kl, found.nll - found.golden_nll, found.top1]


def _intervals(figures: Mapping[str, Figures]) -> dict[str, list[Interval]]:
    """KL, change in nat, top-1 and, where there is one, KL of the quantisation, of candidates asked the same items."""
    columns, names = [], []
    for name, found in figures.items():
        parts = [*_columns(found), *([found.quantisation_kl] if found.quantisation_kl.size else [])]
        columns += parts
        names += [name] * len(parts)
    if not columns:
        return {}
    sizes = next(iter(figures.values())).positions
    made: dict[str, list[Interval]] = {}
    for name, interval in zip(names, intervals(np.column_stack(columns), sizes), strict=True):
        made.setdefault(name, []).append(interval)
    for row in made.values():
        row[2] = share_interval(row[2], sizes.size)
    return made


def _judge(
    candidate: Candidate,
    record: RunRecord | None,
    figures: Figures | None,
    measured: Mapping[str, list[Interval]],
    policy: Policy,
    asked: Sequence[str],
    answered: PromptSuite,
) -> Judged:
    if record is None:
        check = Check("measured", Status.FAIL, "there is no record of it")
        return Judged(candidate.name, candidate.target, FAIL, (check,))
    found = measured.get(candidate.name, [])
    session = next(iter(record.sessions), None)
    greedy = _greedy(record)
    kl, nll, top1 = (found[i] if found else None for i in range(3))
    perplexity = None if nll is None else as_perplexity(nll)
    checks = check_candidate(
        record, policy, asked, answered, kl, perplexity, top1, None if greedy is None else greedy.match
    )
    outcome = PASS if all(check.status is not Status.FAIL for check in checks) else FAIL
    made = Judged(
        name=candidate.name,
        target=candidate.target,
        outcome=REFUSED if len(asked) < MIN_ITEMS else outcome,
        checks=checks,
        made=_how(candidate, session),
        bytes=None if session is None else session.artifact.bytes,
        artifact_sha256="" if session is None else session.artifact.sha256,
        arithmetic="" if session is None else session.arithmetic,
        greedy=greedy,
    )
    return made if figures is None or not found else _with_figures(made, record, figures, found)


def _how(candidate: Candidate, session: SessionRecord | None) -> str:
    if candidate.artifact:
        return f"ready-made: {candidate.artifact}"
    if candidate.options:
        return " ".join(candidate.options)
    return "" if session is None else session.artifact.recipe or session.artifact.origin


def _with_figures(made: Judged, record: RunRecord, figures: Figures, found: list[Interval]) -> Judged:
    kl, nll, top1 = found[:3]
    means = figures.kl / figures.positions
    worst = int(means.argmax())
    token = next(
        int(case.numbers.get("kl_worst_token", 0)) for case in item_cases(record) if subject(case) == figures.ids[worst]
    )
    return msgspec.structs.replace(
        made,
        items=len(figures.ids),
        positions=int(figures.positions.sum()),
        kl=kl,
        nll_change=nll,
        top1=top1,
        quantisation_kl=found[3] if len(found) > 3 else None,
        implementation=implementation_ratios(record),
        worst=Worst(figures.ids[worst], float(means[worst]), float(figures.kl_worst[worst]), token),
        strata=_by_stratum(figures, figures.kl),
    )


def _by_stratum(figures: Figures, sums: Floats) -> dict[str, float]:
    """The mean over positions of what `sums` are the sums of, by stratum."""
    places: dict[str, list[int]] = {}
    for index, item in enumerate(figures.ids):
        places.setdefault(stratum(item), []).append(index)
    return {key: float(sums[at].sum() / figures.positions[at].sum()) for key, at in places.items()}


def _golden(figures: Figures | None) -> tuple[float | None, dict[str, float]]:
    """The golden's perplexity, of all and by stratum."""
    if figures is None:
        return None, {}
    strata = {key: math.exp(nll) for key, nll in _by_stratum(figures, figures.golden_nll).items()}
    return math.exp(float(figures.golden_nll.sum() / figures.positions.sum())), strata


def _greedy(record: RunRecord) -> Greedy | None:
    matches = [case for case in record.cases if case.test == "test_greedy_match" and "match" in case.numbers]
    if not matches:
        return None
    regrets = [case.numbers.get("regret_worst") for case in record.cases if case.test == "test_greedy_regret"]
    known = [regret for regret in regrets if regret is not None and math.isfinite(regret)]
    share = sum(case.numbers["match"] for case in matches) / len(matches)
    return Greedy(len(matches), share, max(known, default=None))


def _pairs(figures: Mapping[str, Figures]) -> tuple[Pair, ...]:
    """Every candidate with the one that is next to it by mean KL."""
    order = sorted(figures, key=lambda name: float(figures[name].kl.sum()))
    neighbours = list(itertools.pairwise(order))
    if not neighbours:
        return ()
    columns = []
    for first, second in neighbours:
        a, b = figures[first], figures[second]
        columns += [b.kl - a.kl, b.nll - a.nll]
    found = intervals(np.column_stack(columns), next(iter(figures.values())).positions)
    return tuple(
        Pair(a, b, found[2 * i], found[2 * i + 1], identical=bool((figures[a].kl == figures[b].kl).all()))
        for i, (a, b) in enumerate(neighbours)
    )


def _front(candidates: Sequence[Judged]) -> tuple[str, ...]:
    """The names of the candidates that no other beats in size or KL without losing in the other."""
    placed = [(c.name, c.bytes, c.kl.estimate) for c in candidates if c.kl is not None and c.bytes is not None]
    return tuple(
        name
        for name, size, kl in placed
        if not any(s <= size and k <= kl and (s, k) != (size, kl) for _, s, k in placed)
    )
