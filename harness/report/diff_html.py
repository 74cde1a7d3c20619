"""A comparison of two runs as one HTML file."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import msgspec

from harness.diff.cases import CaseChange, Change, Sameness
from harness.diff.runs import Demands, Diff, TargetDiff, Verdict
from harness.diff.speed import SpeedChange
from harness.record import RunRecord
from harness.report.canvas import Plot
from harness.report.diff_plots import plot_both, plot_ratios
from harness.report.diff_positions import worst_regression
from harness.report.diff_sections import headline, reason, sorted_speed, weight
from harness.report.figures import count, number, size
from harness.report.html import when
from harness.report.page import render
from harness.report.panels import plot_layers
from harness.report.particulars import Facts, machines, run_facts

PARTS = (
    ("around", "What differs"),
    ("regressions", "Regressions"),
    ("positions", "Positions"),
    ("missing", "Missing"),
    ("changed", "Changed"),
    ("difference", "Differences"),
    ("fix", "Mended"),
    ("new", "New"),
    ("same", "Same"),
    ("speed", "Speed"),
    ("noise", "Noise"),
    ("runs", "The runs"),
)
_TONES = {
    Verdict.REGRESSED: "fail",
    Verdict.MISSING: "fail",
    Verdict.DIFFERS: "waived",
    Verdict.NOTHING_REGRESSED: "pass",
}
_CHANGES = {
    Change.REGRESSION: ("regressed", "fail"),
    Change.MISSING: ("missing", "fail"),
    Change.CHANGED: ("changed", "waived"),
    Change.DIFFERENCE: ("different", "waived"),
    Change.FIX: ("mended", "pass"),
    Change.NEW: ("new", "ink"),
    Change.SAME: ("the same", "ink"),
}
_CLASSES = {
    "missing": Change.MISSING,
    "changed": Change.CHANGED,
    "difference": Change.DIFFERENCE,
    "fix": Change.FIX,
    "new": Change.NEW,
}
_SPELT = {"kl": "KL", "top1": "top-1", "rms": "RMS"}
# A page is for reading: the weightiest rows, and what is left out is counted.
_ROWS = 60
_NUMBERS = 300
_NAMES = 200


class Regressed(msgspec.Struct, frozen=True):
    """A target that regressed: its cases, weightiest first, and where it breaks in the second run."""

    target: TargetDiff
    cases: list[CaseChange]
    layers: Plot | None

    @property
    def numbers(self) -> list[tuple[CaseChange, list[object]]]:
        """The numbers of its cases that moved, as many as a page has room for."""
        left, found = _NUMBERS, []
        for case in self.cases:
            if case.moves and left > 0:
                found.append((case, list[object](case.moves[:left])))
                left -= len(case.moves)
        return found


class Group(msgspec.Struct, frozen=True):
    """Cases of one target, outcome and reason: missing and new ones come by the hundred."""

    target: str
    outcome: str
    why: str
    cases: list[str]


def to_html(diff: Diff, demands: Demands, before: RunRecord, after: RunRecord) -> str:
    """The comparison: text that is a page by itself. `before` and `after` are the records that it is of.

    Whatever text the records hold is escaped.
    """
    verdict = diff.verdict(demands)
    name = after.checkpoint.name if after.checkpoint is not None else "no checkpoint"
    both, slow = worst_regression(diff, before, after), diff.too_slow(demands)
    return render(
        "diff.html",
        title=f"{verdict.value}: {name}, Phi-3 conformance",
        parts=[(name, text) for name, text in PARTS if name not in _CLASSES or diff.of(_CLASSES[name])],
        diff=diff,
        before=before,
        after=after,
        word=verdict.value,
        tone=_TONES[verdict],
        headline=headline(diff, demands),
        eyebrow=" · ".join(("Phi-3 conformance", "two runs compared", name)),
        lead=_lead(diff),
        alert=". ".join(_sentence(warning) for warning in diff.warnings),
        tallies=_tallies(diff),
        regressed=_regressed(diff),
        both=both,
        both_plot=None if both is None else plot_both(both),
        missing=_groups(diff, Change.MISSING),
        new=_groups(diff, Change.NEW),
        listed={change.value: _listed(diff, change) for change in (Change.CHANGED, Change.DIFFERENCE, Change.FIX)},
        counts={change.value: len(diff.of(change)) for change in Change},
        same=_same(diff),
        none_of=[_CHANGES[change][0] for change in _CLASSES.values() if not diff.of(change)],
        sameness=[same.value for same in Sameness if any(case.same is same for case in diff.of(Change.SAME))],
        speed=sorted_speed(diff, demands),
        slow=slow,
        judged=demands.slower,
        speed_plots=[
            p for first in (True, False) if (p := plot_ratios(diff.speed, slow, first_token=first)) is not None
        ],
        runs=_runs(diff, before, after),
        rows=_ROWS,
        names=_NAMES,
        reason=reason,
        moved=moved,
        named=named,
        times=times,
        quantity=quantity,
        prompt=lambda change: f", {count(change.prompt_tokens, 'token')}" if change.prompt_tokens else "",
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _lead(diff: Diff) -> str:
    """What changed around the cases: with its values where it is one thing alone."""
    found = diff.surroundings
    if len(found.causes) != 1:
        return found.sentence
    cause = found.causes[0]
    return f"{found.sentence} {_sentence(cause.what)}: {cause.before or 'none'} → {cause.after or 'none'}."


def _tallies(diff: Diff) -> list[tuple[str, str, str]]:
    shown = []
    for change, (words, tone) in _CHANGES.items():
        found = len(diff.of(change))
        shown.append((words, f"{found:,}", tone if found else "ink"))
    return shown


def _regressed(diff: Diff) -> list[Regressed]:
    rows = []
    for at, target in enumerate(diff.targets):
        cases = [case for case in diff.of(Change.REGRESSION) if case.target == target.target]
        if cases:
            local = target.localisation
            plot = plot_layers(local, f"layers-{at}") if local is not None and local.sublayers else None
            rows.append(Regressed(target, sorted(cases, key=weight, reverse=True), plot))
    return rows


def _groups(diff: Diff, change: Change) -> list[Group]:
    found: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for case in diff.of(change):
        outcome = case.after if change is Change.NEW else case.before
        found[case.target, outcome, case.why].append(case.case)
    return [Group(*key, cases) for key, cases in found.items()]


def _listed(diff: Diff, change: Change) -> list[CaseChange]:
    return sorted(diff.of(change), key=weight, reverse=True)


def _same(diff: Diff) -> list[tuple[str, Counter[str]]]:
    """How many cases of each target are the same, by what that rests on."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for case in diff.of(Change.SAME):
        found[case.target][case.same.value if case.same else ""] += 1
    return list(found.items())


def _runs(diff: Diff, before: RunRecord, after: RunRecord) -> list[tuple[str, str, str]]:
    """The particulars of both runs, a row for each that either has."""
    sides = []
    for facts, record in ((diff.before, before), (diff.after, after)):
        own: Facts = [("Record", facts.name), ("Started", when(record.started))]
        own += [("Ended", "as it should" if facts.complete else "INCOMPLETE: it was cut short")]
        own += machines(record)[0][1]
        own += [fact for fact in run_facts(record) if fact[0] != "Started"]
        sides.append(dict(own))
    return [(name, sides[0].get(name, ""), sides[1].get(name, "")) for name in {**sides[0], **sides[1]}]


def moved(value: float) -> str:
    """A number of a case, with one digit more than others have: it is held against another."""
    if math.isfinite(value) and value == int(value) and abs(value) < 1e5:
        return f"{int(value)}"
    return number(value, 3)


def named(name: str) -> str:
    """The name of a number in words."""
    return " ".join(_SPELT.get(word, word) for word in name.split("_"))


def times(before: float, after: float) -> str:
    """`× 3.1`: after over before, where that says something."""
    if not (math.isfinite(before) and math.isfinite(after)) or before <= 0 or after <= 0:
        return ""
    return f"× {number(after / before)}"


def quantity(change: SpeedChange, value: float) -> str:
    """A time or a size with its unit."""
    return size(value) if change.unit == "bytes" else f"{number(value, 3)} {change.unit}"
