"""The report of a sign-off in Markdown: a pure function of its conclusion, records, policy and suite."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from harness.intervals import Interval
from harness.policy import Policy
from harness.prompts import Prompt, PromptSuite
from harness.record import RunRecord, Speed
from harness.signoff.checks import Check, Status
from harness.signoff.conclude import PASS, Conclusion, Pair
from harness.signoff.suite import MIN_ITEMS, text_of

NONE = "-"
REPORT = "report.md"
PAGE = "report.html"
_LONGEST_TEXT = 300


def as_markdown(found: Conclusion, records: Mapping[str, RunRecord], policy: Policy, suite: PromptSuite) -> str:
    """The report: the verdict first, and what it rests on after it."""
    sections = (
        _head(found),
        _candidates(found),
        _reasons(found),
        _limits(policy),
        _errors(found),
        _worst(found, {prompt.id: prompt for prompt in suite.prompts}),
        _strata(found),
        _power(found),
        _speed(found, records),
        _inputs(found, records),
    )
    return "\n".join("\n".join(section) for section in sections if section) + "\n"


def _head(found: Conclusion) -> list[str]:
    lines = [f"# Quantisation sign-off: {_cell(found.checkpoint)}", "", f"**{_cell(found.sentence)}**", ""]
    if found.items < MIN_ITEMS:
        lines += [f"{found.items} items are too few: of intervals over so few, too many miss the truth.", ""]
    lines.append(
        f"{found.items} items of the suite `{found.suite}`, their given texts scored by every candidate; intervals of "
        "95 % (BCa, prompts resampled whole, the same for all candidates). A limit is held against the bound of the "
        "interval, not against the estimate."
    )
    return [*lines, ""]


def _candidates(found: Conclusion) -> list[str]:
    head = ("candidate", "verdict", "must pass", "MB", "KL, nat", "perplexity", "top-1", "greedy match", "front")
    rows: list[Sequence[str]] = []
    for one in found.candidates:
        rows.append(
            (
                one.name,
                one.outcome if one.outcome != PASS else "**PASS**",
                "yes" if one.name in found.must_pass else "",
                NONE if one.bytes is None else f"{one.bytes / 1e6:.2f}",
                _interval(one.kl, _g),
                _interval(one.perplexity_change, _percent),
                _interval(one.top1, _share),
                NONE if one.greedy is None else f"{one.greedy.match:.0%} of {one.greedy.prompts}",
                "yes" if one.name in found.front else "",
            )
        )
    rows += [(name, "**MISSING**", "yes", *[NONE] * 5, "") for name in found.missing]
    front = "On the front: no other candidate is both smaller and nearer to the golden (size against mean KL)."
    return ["## Candidates", "", *_table(head, rows), "", front, ""]


def _reasons(found: Conclusion) -> list[str]:
    lines: list[str] = []
    for one in found.candidates:
        bad = [check for check in one.checks if check.status is Status.FAIL]
        lines += [f"- **{one.name}**, {check.name}: {_cell(check.sentence)}" for check in bad]
    return ["## What fails", "", *lines, ""] if lines else []


def _limits(policy: Policy) -> list[str]:
    limits = policy.limits_of_signoff()
    rows = [
        ("mean KL, upper bound", f"{limits.kl_mean.limit:g} nat", limits.kl_mean.origin),
        ("perplexity, upper bound", f"{limits.perplexity_change.limit:+.3g}", limits.perplexity_change.origin),
        ("top-1 agreement, lower bound", f"{limits.top1_min.limit:g}", limits.top1_min.origin),
        ("greedy match, share", f"{limits.greedy_match_min.limit:g}", limits.greedy_match_min.origin),
    ]
    if limits.must_match:
        rows.append(("answers that must be the golden's", ", ".join(limits.must_match), "the policy's list"))
    return ["## The policy's limits", "", *_table(("figure", "limit", "origin"), rows), ""]


def _errors(found: Conclusion) -> list[str]:
    head = ("candidate", "weight audit", "quantisation KL, nat", "implementation, x yardstick", "arithmetic", "regret")
    rows = []
    for one in found.candidates:
        worst = max(one.implementation.values(), default=math.nan)
        rows.append(
            (
                one.name,
                _status(one.checks, "weight audit"),
                _interval(one.quantisation_kl, _g),
                _status(one.checks, "implementation") + ("" if math.isnan(worst) else f", {worst:.2f}"),
                one.arithmetic or NONE,
                NONE if one.greedy is None or one.greedy.regret_worst is None else f"{one.greedy.regret_worst:.3g}",
            )
        )
    lines = [
        "Quantisation: golden against FP32 PyTorch on the artifact's exact weights. Implementation: that reference, in "
        "the device's arithmetic, against the device, the largest ratio of prefill and decode, mean and worst. Regret: "
        "of the answers, in units of the logits' RMS."
    ]
    return ["## Three errors", "", *_table(head, rows), "", *lines, ""]


def _worst(found: Conclusion, prompts: Mapping[str, Prompt]) -> list[str]:
    lines = ["## The worst item of each candidate", ""]
    for one in found.candidates:
        if one.worst is None or one.worst.id not in prompts:
            continue
        prompt = prompts[one.worst.id]
        lines.append(
            f"- **{one.name}**: `{prompt.id}`, mean KL {one.worst.kl_mean:.3g} nat, "
            f"{one.worst.kl_worst:.3g} at scored token {one.worst.token + 1}"
        )
        lines += ["", *_quoted(text_of(prompt)), "  >", *_quoted(f"⟶ {(prompt.continuation or '').strip()}"), ""]
    return lines if len(lines) > 2 else []


def _quoted(text: str) -> list[str]:
    cut = text if len(text) <= _LONGEST_TEXT else f"… {text[-_LONGEST_TEXT:]}"
    return [f"  > {_cell(line)}  " for line in cut.splitlines()]


def _strata(found: Conclusion) -> list[str]:
    measured = [one for one in found.candidates if one.strata]
    if not measured:
        return []
    strata = dict.fromkeys(stratum for one in measured for stratum in one.strata)
    rows = [
        (
            stratum,
            _perplexity(found.perplexities.get(stratum)),
            *(_g(one.strata[stratum]) if stratum in one.strata else NONE for one in measured),
        )
        for stratum in strata
    ]
    head = ("stratum", "golden's perplexity", *(one.name for one in measured))
    lines = ["## Mean KL by stratum, nat", "", *_table(head, rows), ""]
    if found.golden_perplexity is not None and found.golden_perplexity > found.vocabulary:
        lines += [
            f"The golden's perplexity on all texts is {_perplexity(found.golden_perplexity)}, more than that of a "
            f"guess among the {found.vocabulary} tokens of its vocabulary: most of these texts are strange to this "
            "checkpoint, and on them a change of the perplexity, up or down, says little. KL and top-1 do not depend "
            "on that.",
            "",
        ]
    return lines


def _perplexity(value: float | None) -> str:
    return NONE if value is None else f"{value:.4g}"


def _power(found: Conclusion) -> list[str]:
    """What the sample could have detected, so that a difference that was not found means something."""
    measured = [one for one in found.candidates if one.kl is not None and one.nll_change is not None]
    if not measured:
        return []
    rows: list[Sequence[str]] = [
        (one.name, _g(one.kl.detectable), _percent(math.expm1(one.nll_change.detectable)))
        for one in measured
        if one.kl is not None and one.nll_change is not None
    ]
    lines = ["## What this sample could have detected", ""]
    lines += [
        "The smallest change that a test at 95 % finds in 80 of 100 such samples, given how much prompts differ.",
        "",
        "From a limit, or from the golden:",
        "",
        *_table(("candidate", "mean KL, nat", "perplexity"), rows),
        "",
    ]
    if found.pairs:
        rows = [
            (
                f"{pair.second} less {pair.first}",
                _interval(pair.kl, _g),
                _told_apart(pair),
                _g(pair.kl.detectable),
                _interval(pair.nll, lambda value: _percent(math.expm1(value))),
                _percent(math.expm1(pair.nll.detectable)),
            )
            for pair in found.pairs
        ]
        head = ("pair", "KL, nat", "told apart", "detectable, nat", "perplexity", "detectable")
        lines += ["Between candidates, on the same draws, each with the next one by KL:", "", *_table(head, rows), ""]
    return lines


def _told_apart(pair: Pair) -> str:
    if pair.identical:
        return "no: equal on every item, the same weights?"
    return "yes" if pair.kl.low > 0 or pair.kl.high < 0 else "no"


def _speed(found: Conclusion, records: Mapping[str, RunRecord]) -> list[str]:
    rows = []
    for one in found.candidates:
        record = records.get(one.name)
        session = next(iter(record.sessions), None) if record is not None else None
        if session is None:
            continue
        longest = max(session.speed, key=lambda speed: speed.prompt_tokens, default=None)
        load = NONE if session.timings is None else f"{session.timings.load:.2f}"
        peak = f"{session.peak_memory_bytes / 1e6:.0f}" if session.peak_memory_bytes else NONE
        rows.append((one.name, load, peak, *_latencies(longest)))
    if not rows:
        return []
    head = ("candidate", "load, s", "peak memory, MB", "prompt", "first token, ms", "token, ms", "tokens/s")
    note = "Medians over repeats, batch of one; '-' where it was not measured. Nothing here decides."
    return ["## Speed and memory", "", *_table(head, rows), "", note, ""]


def _latencies(speed: Speed | None) -> Sequence[str]:
    if speed is None or not speed.first_token_ms or not speed.token_ms:
        return (NONE,) * 4
    first, token = statistics.median(speed.first_token_ms), statistics.median(speed.token_ms)
    return (str(speed.prompt_tokens), f"{first:.1f}", f"{token:.2f}", f"{1000 / token:.0f}" if token else NONE)


def _inputs(found: Conclusion, records: Mapping[str, RunRecord]) -> list[str]:
    record = next(iter(records.values()), None)
    if record is None:
        return []
    machine, fingerprint = record.machine, record.checkpoint.fingerprint.key if record.checkpoint else NONE
    lines = [f"- checkpoint `{_cell(found.checkpoint)}`, fingerprint `{fingerprint}`"]
    lines += [f"- prompts `{name}`, SHA-256 `{sha256[:16]}`" for name, sha256 in record.suites.items()]
    lines.append(f"- policy `{record.policy_sha256[:16]}`, waivers `{record.waivers_sha256[:16]}`")
    lines.append(f"- machine: {_cell(machine.processor)}, {machine.system} {machine.architecture}")
    rows = []
    for one in found.candidates:
        made = records.get(one.name)
        session = next(iter(made.sessions), None) if made is not None else None
        if session is not None:
            versions = ", ".join(f"{name} {version}" for name, version in session.info.versions.items())
            rows.append((one.name, one.target, one.made, f"`{session.artifact.sha256[:16]}`", versions))
    waived = sorted({waiver.id for record in records.values() for waiver in record.waivers})
    if waived:
        lines.append(f"- waivers that cover cases of it, and excuse nothing here: {', '.join(waived)}")
    head = ("candidate", "target", "made by", "artifact", "versions")
    return ["## What was judged", "", *lines, "", *(_table(head, rows) if rows else [])]


def _status(checks: Iterable[Check], name: str) -> str:
    words = {Status.PASS: "pass", Status.FAIL: "**fail**", Status.UNJUDGED: "not judged"}
    return next((words[check.status] for check in checks if check.name == name), NONE)


def _interval(found: Interval | None, show: Callable[[float], str]) -> str:
    return NONE if found is None else f"{show(found.estimate)} [{show(found.low)}, {show(found.high)}]"


def _g(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value:+.2%}"


def _share(value: float) -> str:
    return f"{value:.2%}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"| {' | '.join('---' for _ in head)} |"
    for row in rows:
        yield f"| {' | '.join(map(_cell, row))} |"


def _cell(text: str) -> str:
    """A text that neither ends its cell nor becomes a tag; emphasis and code of ours stay."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def as_html(found: Conclusion, records: Mapping[str, RunRecord], policy: Policy, suite: PromptSuite) -> str:
    """The same as a page with plots."""
    from harness.signoff import html  # plots take a second to import

    return html.as_html(found, records, policy, suite)


def plotted_elsewhere(ours: str, theirs: str) -> str:
    """The version of matplotlib that drew the plots of their page, where it is not ours and all else is the same.

    Another version draws the same in other words, so that plots cannot be compared by their bytes; empty where the two
    pages differ in anything else.
    """
    versions = [_PLOTTED.search(page) for page in (ours, theirs)]
    if versions[0] is None or versions[1] is None or versions[0][1] == versions[1][1]:
        return ""
    rest = [_PLOTTED.sub("", _PLOT.sub("<svg>", page)) for page in (ours, theirs)]
    return versions[1][1] if rest[0] == rest[1] else ""


_PLOT = re.compile(r"<svg .*?</svg>", re.DOTALL)
_PLOTTED = re.compile(r'<span id="plotted">Plots by matplotlib ([0-9A-Za-z.+]{1,40})\.</span>')

Renderer = Callable[[Conclusion, Mapping[str, RunRecord], Policy, PromptSuite], str]
RENDERERS: Mapping[str, Renderer] = {REPORT: as_markdown, PAGE: as_html}
"""Every report of a package by its file's name. Verifying renders each again, so it must depend on nothing else."""
