"""The report of a sign-off as one HTML file: a pure function of its conclusion, records, policy and suite.

It is sealed into the package, and verifying renders it again and compares: see `harness.signoff.report`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import matplotlib
import msgspec

from harness.intervals import Interval
from harness.policy import Policy
from harness.prompts import Prompt, PromptSuite
from harness.record import RunRecord, SessionRecord
from harness.report.figures import count, number
from harness.report.page import render
from harness.report.particulars import Facts
from harness.signoff.checks import Check, Status
from harness.signoff.conclude import FAIL, PASS, REFUSED, Conclusion, Judged, Worst
from harness.signoff.plots import plot_front, plot_limits
from harness.signoff.suite import MIN_ITEMS, text_of

PARTS = (
    ("decision", "Decision"),
    ("candidates", "Candidates"),
    ("front", "Size and KL"),
    ("limits", "Limits"),
    ("errors", "Three errors"),
    ("must-match", "Answers"),
    ("worst", "Worst items"),
    ("power", "Power"),
    ("pairs", "Pairs"),
    ("strata", "Strata"),
    ("silent", "Not said"),
    ("inputs", "Judged"),
)
_TONES = {PASS: "pass", FAIL: "fail", REFUSED: "waived"}
_LONGEST_TEXT = 1500


class Row(msgspec.Struct, frozen=True):
    """A candidate with what its record has of speed: medians in ms at the longest prompt, bytes; NaN where none was."""

    found: Judged
    session: SessionRecord | None
    must_pass: bool
    prompt_tokens: int
    first_token: float
    token: float

    @property
    def failing(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.found.checks if check.status is Status.FAIL]

    @property
    def unjudged(self) -> list[Check]:
        """What could not be looked at."""
        return [check for check in self.found.checks if check.status is Status.UNJUDGED]

    @property
    def tone(self) -> str:
        """The page's word for how it came out."""
        return _TONES.get(self.found.outcome, "fail")

    def check(self, name: str) -> Check | None:
        """A check by its name."""
        return next((check for check in self.found.checks if check.name == name), None)


class Item(msgspec.Struct, frozen=True):
    """An item that is the worst of some candidates: its text, what was given after it, and their figures."""

    id: str
    text: str
    chat: bool
    continuation: str
    of: list[tuple[str, Worst]]


def as_html(found: Conclusion, records: Mapping[str, RunRecord], policy: Policy, suite: PromptSuite) -> str:
    """The report: text that is a page by itself. Whatever text the package holds is escaped."""
    rows = [_row(one, records.get(one.name), one.name in found.must_pass) for one in found.candidates]
    limits = policy.limits_of_signoff()
    word = "SIGNED OFF" if found.passed else "NOT SIGNED OFF"
    measured = [row for row in rows if row.found.kl is not None and row.found.nll_change is not None]
    return render(
        "signoff.html",
        title=f"{word}: {found.checkpoint}, Phi-3 conformance",
        parts=PARTS,
        found=found,
        word=word,
        tone="pass" if found.passed else "fail",
        eyebrow=" · ".join(("Phi-3 conformance", "quantisation sign-off", found.checkpoint)),
        headline=found.sentence.partition(": ")[2] or found.sentence,
        lead=_lead(found),
        alert=_alert(found),
        tallies=_tallies(found),
        rows=rows,
        measured=measured,
        limits=limits,
        front_plot=plot_front(found, limits),
        limits_plot=plot_limits(found, limits),
        items=_worst(found, {prompt.id: prompt for prompt in suite.prompts}),
        answers=_answers(found, records, limits.must_match),
        strata=list(dict.fromkeys(stratum for row in rows for stratum in row.found.strata)),
        strange=found.golden_perplexity is not None and found.golden_perplexity > found.vocabulary,
        facts=_facts(found, records),
        waived=sorted({waiver.id for record in records.values() for waiver in record.waivers}),
        min_items=MIN_ITEMS,
        interval=interval,
        g=lambda value: number(value, 3),
        signed=signed,
        relative=lambda value: signed(math.expm1(value)),
        percent=lambda value: f"{value:.2%}",
        tokens_a_second=lambda ms: f"{1000 / ms:.0f}" if ms > 0 else "–",
        short=_short,
        matplotlib=matplotlib.__version__,
    )


def _lead(found: Conclusion) -> str:
    positions = max((one.positions for one in found.candidates), default=0)
    scored = f", {positions:,} positions" if positions else ""
    return (
        f"{count(found.items, 'item')} of the suite {found.suite}{scored}: given texts that every candidate scored. A "
        "limit is held against the bound of a 95\u00a0% interval, not against the estimate."
    )


def _alert(found: Conclusion) -> str:
    parts = [f"{name} must pass and is no candidate." for name in found.missing]
    if found.items < MIN_ITEMS:
        parts.append(
            f"{count(found.items, 'item')} are too few: of intervals over so few, too many miss the truth. Below "
            f"{MIN_ITEMS} nothing is decided."
        )
    return " ".join(parts)


def _tallies(found: Conclusion) -> list[tuple[str, str, str]]:
    outcomes = [one.outcome for one in found.candidates]
    must = len(found.must_pass)
    kept = sum(one.outcome == PASS for one in found.candidates if one.name in found.must_pass)
    shown = [
        ("must pass, and do", f"{kept} of {must}", "pass" if kept == must else "fail"),
        ("candidates pass", f"{outcomes.count(PASS)}", "pass" if PASS in outcomes else "ink"),
        ("candidates fail", f"{outcomes.count(FAIL)}", "fail" if FAIL in outcomes else "ink"),
    ]
    if REFUSED in outcomes:
        shown.append(("not decided", f"{outcomes.count(REFUSED)}", "waived"))
    return [*shown, ("items", f"{found.items:,}", "ink")]


def _row(found: Judged, record: RunRecord | None, must_pass: bool) -> Row:
    session = next(iter(record.sessions), None) if record is not None else None
    timed = [speed for speed in session.speed if speed.first_token_ms and speed.token_ms] if session is not None else []
    longest = max(timed, key=lambda speed: speed.prompt_tokens, default=None)
    if longest is None:
        return Row(found, session, must_pass, 0, math.nan, math.nan)
    first, token = statistics.median(longest.first_token_ms), statistics.median(longest.token_ms)
    return Row(found, session, must_pass, longest.prompt_tokens, first, token)


def _worst(found: Conclusion, prompts: Mapping[str, Prompt]) -> list[Item]:
    """The worst items, each once, those of the most candidates first."""
    of: dict[str, list[tuple[str, Worst]]] = {}
    for one in found.candidates:
        if one.worst is not None and one.worst.id in prompts:
            of.setdefault(one.worst.id, []).append((one.name, one.worst))
    items = [_item(prompts[key], own) for key, own in of.items()]
    return sorted(items, key=lambda item: -len(item.of))


def _item(prompt: Prompt, of: list[tuple[str, Worst]]) -> Item:
    return Item(prompt.id, text_of(prompt), prompt.text is None, prompt.continuation or "", of)


def _answers(
    found: Conclusion, records: Mapping[str, RunRecord], names: tuple[str, ...]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Of every candidate, how it answered each of the prompts: `same`, `other` or `none`."""
    rows = []
    for one in found.candidates:
        cases = records[one.name].cases if one.name in records else []
        match = {case.case: case.numbers.get("match") for case in cases if case.test == "test_greedy_match"}
        rows.append((one.name, [(name, _answer(match.get(f"test_greedy_match[{name}]"))) for name in names]))
    return rows


def _answer(match: float | None) -> str:
    return "none" if match is None else "same" if match == 1.0 else "other"


def _facts(found: Conclusion, records: Mapping[str, RunRecord]) -> Facts:
    """What was judged, by hash; of the first candidate's record, which verifying holds the others against."""
    record = next((records[one.name] for one in found.candidates if one.name in records), None)
    if record is None:
        return []
    machine = record.machine
    fingerprint = record.checkpoint.fingerprint.key if record.checkpoint is not None else ""
    return [
        ("Checkpoint", f"{found.checkpoint}, fingerprint {fingerprint}"),
        *((f"Prompts {name}", f"SHA-256 {sha256}") for name, sha256 in record.suites.items()),
        ("Policy", f"SHA-256 {record.policy_sha256}"),
        ("Waivers", f"SHA-256 {record.waivers_sha256}"),
        ("Machine", f"{machine.processor}, {machine.cores} cores, {machine.system} {machine.architecture}"),
        ("Harness", f"phi3-conformance {found.harness}"),
    ]


def interval(found: Interval) -> tuple[float, float, float]:
    """Estimate and both ends."""
    return found.estimate, found.low, found.high


def signed(value: float) -> str:
    """A change in per cent with its sign."""
    return f"{value:+.2%}"


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_TEXT else f"… {text[-_LONGEST_TEXT:]}"
