"""A comparison of two runs as sections of plain text cells, which the terminal and Markdown lay out."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import msgspec

from harness.diff.cases import CaseChange, Change, Move
from harness.diff.runs import Demands, Diff, RunFacts, Verdict
from harness.diff.speed import SpeedChange
from harness.diff.surroundings import Differs

SHOWN = 12
_REASON = 160
# A ratio nearer to 1 is not worth a row unless it is beyond its noise.
_LEAST = 0.02
_GIB, _MIB = 2**30, 2**20

# Where a limit comes from is in the message itself; a table has no room for it.
_ORIGIN = re.compile(r"(allowed: [^()]*?) \((?:[^()]|\([^()]*\))*\)")


class Section(msgspec.Struct, frozen=True):
    """A table with a title and a note, either of which may be empty. `left` rows are not shown."""

    title: str
    note: str = ""
    header: tuple[str, ...] = ()
    rows: Sequence[tuple[str, ...]] = ()
    left: int = 0


def headline(diff: Diff, demands: Demands) -> str:
    """The verdict in one sentence."""
    counts = {change: len(diff.of(change)) for change in Change}
    match diff.verdict(demands):
        case Verdict.REGRESSED if counts[Change.REGRESSION]:
            targets = list(dict.fromkeys(case.target for case in diff.of(Change.REGRESSION)))
            return f"{_cases(counts[Change.REGRESSION])} on {_targets(targets)}, right before and wrong after"
        case Verdict.REGRESSED:
            return (
                f"{_count(len(diff.too_slow(demands)), 'latency', 'latencies')} grew by more than x {demands.slower:g}"
            )
        case Verdict.MISSING:
            return f"{_cases(counts[Change.MISSING])} of the first run were not judged in the second"
        case Verdict.DIFFERS:
            moved = counts[Change.DIFFERENCE] + counts[Change.CHANGED]
            return f"{_cases(moved)} moved beyond the noise, or fail anew"
        case _:
            fixed = f", {counts[Change.FIX]} of them mended" if counts[Change.FIX] else ""
            return f"{_cases(diff.in_common)} judged in both runs{fixed}"


def facts(run: RunFacts) -> str:
    """A run in a line."""
    ended = f"exit status {run.exit_status}" if run.complete else "INCOMPLETE: cut short"
    return f"{run.name}: {run.started}, {_cases(run.judged)} judged, {ended}"


def tally(diff: Diff) -> str:
    """How many cases there are of each class, and what the same ones rest on."""
    counts = [f"{len(diff.of(change))} {change.value}" for change in Change if diff.of(change)]
    same = Counter(case.same.value for case in diff.of(Change.SAME) if case.same)
    rests = ", ".join(f"{count} {name}" for name, count in same.most_common())
    return ", ".join(counts) + (f" ({rests})" if rests else "")


def sections(diff: Diff, demands: Demands, *, everything: bool = False) -> Iterator[Section]:
    """What there is to tell, in the order of its weight; `everything` leaves no row out."""
    limit = None if everything else SHOWN
    yield Section(
        "What differs around the cases",
        _surroundings(diff),
        ("area", "what", "before", "after"),
        [_differs(found) for found in (*diff.surroundings.causes, *diff.surroundings.effects)],
    )
    yield from _regressions(diff, limit)
    for change in (Change.MISSING, Change.NEW):
        yield _groups(diff, change, limit)
    yield _listed(diff, Change.CHANGED, "fails in both runs, not in the same way", limit)
    yield _listed(diff, Change.DIFFERENCE, "passes in both runs; numbers moved beyond the noise", limit)
    yield _listed(diff, Change.FIX, "passes in the second run only", limit)
    yield _noise(diff)
    yield _speed(diff, demands, limit)


def _surroundings(diff: Diff) -> str:
    found = diff.surroundings
    unrecorded = f" Not recorded in both: {', '.join(found.unrecorded)}." if found.unrecorded else ""
    return found.sentence + unrecorded


def _differs(found: Differs) -> tuple[str, ...]:
    where = f" ({_targets(found.targets)})" if found.targets else ""
    return found.area.value, found.what + where, found.before or "-", found.after or "-"


def _regressions(diff: Diff, limit: int | None) -> Iterator[Section]:
    """A section for each target that regressed: where it breaks, then its cases, weightiest first."""
    for target in diff.targets:
        cases = [case for case in diff.of(Change.REGRESSION) if case.target == target.target]
        if cases:
            local = target.first_bad or f"not localised; try: phi3-conformance localise {target.target}"
            cases.sort(key=weight, reverse=True)
            rows = [(case.case, f"{case.before} -> {case.after}", _what(case)) for case in cases[:limit]]
            title = f"REGRESSION of {target.target} ({len(cases)})"
            yield Section(title, local, ("case", "outcome", "what"), rows, len(cases) - len(rows))


def _groups(diff: Diff, change: Change, limit: int | None) -> Section:
    """Missing and new cases by target and reason, since they come by the hundred; all of them by name where asked."""
    cases = diff.of(change)
    if limit is None:
        listed = [(case.target, case.case, f"{case.before or '-'} -> {case.after or '-'}", case.why) for case in cases]
        return Section(f"{change.value} ({len(cases)})", "", ("target", "case", "outcome", "why"), listed)
    groups: dict[tuple[str, str, str], list[CaseChange]] = defaultdict(list)
    for case in cases:
        groups[case.target, case.after if change is Change.NEW else case.before, case.why].append(case)
    rows = [(target, _names(found), outcome, why) for (target, outcome, why), found in groups.items()]
    title = f"{change.value} ({len(cases)})" if cases else ""
    header = ("target", "cases", "is" if change is Change.NEW else "was", "why")
    return Section(title, "", header, rows[:limit], len(rows) - len(rows[:limit]))


def _listed(diff: Diff, change: Change, note: str, limit: int | None) -> Section:
    cases = sorted(diff.of(change), key=weight, reverse=True)
    rows = [(case.target, case.case, f"{case.before} -> {case.after}", _what(case)) for case in cases[:limit]]
    title = f"{change.value} ({len(cases)})" if cases else ""
    return Section(title, note, ("target", "case", "outcome", "what"), rows, len(cases) - len(rows))


def weight(case: CaseChange) -> float:
    """What to sort cases by: how much the number that moved most says."""
    return case.moves[0].weight if case.moves else 0.0


def _what(case: CaseChange) -> str:
    """Why, what moved most, and for a failure what its message says first."""
    parts = [case.why] if case.why else []
    if case.change is Change.REGRESSION:
        parts.append(reason(case.message))
    elif case.moves:
        first, *others = case.moves
        parts.append(_move(first) + (f"; {_count(len(others), 'more number')}" if others else ""))
    elif case.change is Change.FIX:
        parts.append(f"was: {reason(case.message)}")
    return "; ".join(filter(None, parts))


def _move(move: Move) -> str:
    direction = "worse" if move.worse else "better"
    limit = f", limit {move.limit:.3g}" if move.limit is not None else ""
    return f"{move.name} {move.before:.3g} -> {move.after:.3g} ({direction}; noise {move.allowed:.2g}{limit})"


def reason(message: str) -> str:
    """The first line of a message that says what is wrong: the one before it names target and prompt."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if (
        len(lines) > 1
        and message.startswith(lines[0])
        and lines[0].count(":") >= 2
        and message.partition("\n")[2][:1] == " "
    ):
        lines = lines[1:]
    text = _ORIGIN.sub(r"\1", lines[0]) if lines else ""
    return text if len(text) <= _REASON else text[: _REASON - 3] + "..."


def _noise(diff: Diff) -> Section:
    """What was measured of each target's noise, those alike together."""
    groups: dict[str, list[str]] = defaultdict(list)
    for target in diff.targets:
        noise = target.noise
        parts = []
        if noise.repeats:
            parts.append(
                f"in a session, {noise.identical} of {noise.repeats} repeated answers bit-identical"
                + (f", the others within {noise.within.rms_worst:.2g} logits" if noise.within.rms_worst else "")
            )
        if noise.runs:
            parts.append(f"between {noise.runs} runs with nothing changed")
        groups["; ".join(parts) or "not measured"].append(target.target)
    return Section("Noise", "", ("measured", "targets"), [(how, _targets(found)) for how, found in groups.items()])


def _speed(diff: Diff, demands: Demands, limit: int | None) -> Section:
    judged = f"; judged: more than x {demands.slower:g} slower" if demands.slower is not None else "; not judged"
    order = sorted_speed(diff, demands)
    rows = [_speed_row(change) for change in order[:limit]]
    note = "after over before, medians; less is better" + judged
    header = ("target", "what", "before", "after", "ratio", "noise", "")
    return Section("Speed and size" if order else "", note, header, rows, len(order) - len(rows))


def sorted_speed(diff: Diff, demands: Demands) -> list[SpeedChange]:
    """The quantities that moved, those first that are too slow, then those beyond their noise."""
    slow = diff.too_slow(demands)
    order = sorted(diff.speed, key=lambda change: (change not in slow, not change.beyond, -abs(change.ratio - 1)))
    return [change for change in order if change.beyond or abs(change.ratio - 1) > _LEAST]


def _speed_row(change: SpeedChange) -> tuple[str, ...]:
    prompt = f" ({change.prompt_tokens} tokens)" if change.prompt_tokens else ""
    noise = "not measured" if change.noise is None else f"x {change.noise:.3g}"
    found = ("slower" if change.is_time else "more") if change.ratio > 1 else ("faster" if change.is_time else "less")
    values = [_quantity(value, change.unit) for value in (change.before, change.after)]
    return change.target, change.what + prompt, *values, f"x {change.ratio:.3g}", noise, found if change.beyond else ""


def _quantity(value: float, unit: str) -> str:
    if unit != "bytes":
        return f"{value:.3g} {unit}"
    return f"{value / _GIB:.2f} GiB" if value >= _GIB else f"{value / _MIB:.1f} MiB"


def _names(cases: Sequence[CaseChange]) -> str:
    return cases[0].case if len(cases) == 1 else str(len(cases))


def _targets(targets: Sequence[str]) -> str:
    return ", ".join(targets) if len(targets) <= 3 else f"{', '.join(targets[:2])} and {len(targets) - 2} more"


def _cases(count: int) -> str:
    return _count(count, "case")


def _count(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"
