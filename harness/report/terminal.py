"""The summary at the end of a run: a table a target, skips grouped by reason, what to look at next."""

from __future__ import annotations

import io
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from harness.record import CaseRecord, RunRecord, SessionRecord
from harness.report.times import in_a_line, suite_times
from harness.untrusted import printable

_ORDER = ("PASS", "FAIL", "ERROR", "UNATTESTED", "NOT_RUN", "WAIVED", "UNSUPPORTED")
# A row is never cut: rather than drop figures on a narrow terminal, lines are left for it to wrap.
_MIN_WIDTH = 200
# The share of the processors in the hands of others from which on a speed says less of the target.
_DISTURBED = 0.1


def summarise(record: RunRecord, width: int, encoding: str) -> str:
    """The summary as text that `encoding` can hold."""
    judged: dict[str, list[CaseRecord]] = defaultdict(list)
    skipped: dict[str, list[CaseRecord]] = defaultdict(list)
    ran = {case.target for case in record.cases if case.outcome != "UNSUPPORTED"}
    for case in record.cases:
        (judged if case.target in ran else skipped)[case.target].append(case)
    parts = []
    if judged:
        parts.append(render(_table(judged, {s.target: s for s in record.sessions}), width, encoding))
        parts.append(_footnotes(record.sessions))
        parts.append(_left_out(record.cases))
        parts.append(in_a_line(suite_times(record)))
    if any(case.waiver for case in record.cases):
        parts.append(_waivers(record.cases))
    if skipped:
        parts.append(_skips(skipped))
    text = printable("\n".join(part for part in parts if part))
    return text.encode(encoding, errors="replace").decode(encoding)


def _table(judged: dict[str, list[CaseRecord]], sessions: dict[str, SessionRecord]) -> Table:
    # No box characters: a console of code page 1252 has none, and a log file is easier to search without.
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("target", no_wrap=True)
    present = [outcome for outcome in _ORDER if any(c.outcome == outcome for cases in judged.values() for c in cases)]
    for outcome in present:
        table.add_column(outcome, justify="right", no_wrap=True)
    for name in ("mean KL", "worst KL", "quant. KL", "impl.", "top-1", "greedy", "computes in"):
        table.add_column(name, justify="right", no_wrap=True)
    length = _timed_length(list(sessions.values()))
    for name in ("first token", "tokens/s") if length else ():
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("evidence", no_wrap=True)
    for target, cases in judged.items():
        session = sessions.get(target)
        table.add_row(
            target,
            *_outcomes(cases, present),
            *_figures(cases),
            _computes_in(session),
            *(_speed(session, length) if length else ()),
            session.evidence.level.value if session and session.evidence else "-",
        )
    return table


def _outcomes(cases: Sequence[CaseRecord], present: Sequence[str]) -> list[str]:
    counts = Counter(case.outcome for case in cases)
    return [str(counts[outcome]) if counts[outcome] else "-" for outcome in present]


def _figures(cases: Sequence[CaseRecord]) -> list[str]:
    rows = [c.numbers for c in cases if c.test == "test_logits" and "kl_mean" in c.numbers]
    positions = sum(r["positions"] for r in rows)
    if positions:
        mean = f"{sum(r['kl_mean'] * r['positions'] for r in rows) / positions:.1e}"
        worst = f"{max(r['kl_worst'] for r in rows):.1e}"
        top1 = f"{100 * sum(r['top1'] * r['positions'] for r in rows) / positions:.2f} %"
    else:
        mean = worst = top1 = "-"
    quantisation, implementation = _apart([row for row in rows if "quantisation_kl_mean" in row])
    matches = [c.numbers["match"] for c in cases if c.test == "test_greedy_match" and "match" in c.numbers]
    greedy = f"{sum(match == 1 for match in matches)}/{len(matches)}" if matches else "-"
    return [mean, worst, quantisation, implementation, top1, greedy]


def _apart(rows: Sequence[dict[str, float]]) -> tuple[str, str]:
    """Mean KL of the quantisation error, and the worst prompt's implementation error in yardsticks."""
    positions = sum(row["positions"] for row in rows)
    if not positions:
        return "-", "-"
    mean = sum(row["quantisation_kl_mean"] * row["positions"] for row in rows) / positions
    ratios = [value for row in rows for name, value in row.items() if name.startswith("ratio_") and "mean" in name]
    return f"{mean:.1e}", f"{max(ratios, default=0.0):.2g} x"


def _computes_in(session: SessionRecord | None) -> str:
    if session is None:
        return "-"
    return session.info.arithmetic.value if session.info.arithmetic else "not stated"


def _timed_length(sessions: Sequence[SessionRecord]) -> int:
    """The length of prompt at which most sessions were timed, the longest of those; 0 where none was."""
    counts = Counter(speed.prompt_tokens for session in sessions for speed in session.speed if speed.first_token_ms)
    return max(counts, key=lambda length: (counts[length], length), default=0)


def _speed(session: SessionRecord | None, length: int) -> tuple[str, str]:
    """Medians at a length: ms to the first token, and tokens a second after it."""
    for speed in session.speed if session else ():
        if speed.prompt_tokens == length and speed.first_token_ms and speed.token_ms:
            first, each = statistics.median(speed.first_token_ms), statistics.median(speed.token_ms)
            return f"{_plain(first)} ms", _plain(1000 / each) if each > 0 else "-"
    return "-", "-"


def _plain(value: float) -> str:
    """Three digits, or all before the point."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def render(table: Table, width: int, encoding: str) -> str:
    """A table as text without trailing spaces, wide enough that no row is cut."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace")
    width = max(width, _MIN_WIDTH)
    console = Console(
        file=stream, width=width, force_terminal=False, color_system=None, markup=False, emoji=False, highlight=False
    )
    console.print(table)
    stream.seek(0)
    return "\n".join(line.rstrip() for line in stream.read().splitlines())


def _footnotes(sessions: Sequence[SessionRecord]) -> str:
    lines = [
        "KL in nat, golden against target, over all positions that compared; greedy: prompts answered as the golden.",
        "quant. KL: golden against FP32 on the artifact's exact weights. impl.: device against that, in yardsticks, "
        "worst prompt.",
    ]
    if length := _timed_length(sessions):
        lines.append(
            f"first token: after a prompt of {length} tokens; tokens/s: after that. Medians, greedy, a batch of one."
        )
    disturbed = {s.target: max(speed.others for speed in s.speed) for s in sessions if s.speed}
    disturbed = {target: share for target, share in disturbed.items() if share > _DISTURBED}
    if disturbed:
        lines.append(
            f"Timed while other processes used up to {100 * max(disturbed.values()):.0f} % of the processors, "
            f"and slower for it: {', '.join(disturbed)}."
        )
    inferred = [f"{s.target} with {s.arithmetic}" for s in sessions if s.arithmetic not in ("", "fp32 operators")]
    if inferred:
        lines.append(f"Found to compute: {'; '.join(inferred)}.")
    lines += [f"Only the total error of {s.target} is judged: {s.undecomposed}." for s in sessions if s.undecomposed]
    coarser = [s.target for s in sessions if s.compute_class.value not in s.target]
    if coarser:
        lines.append(f"Judged by the arithmetic that the runtime reports, not by the weights: {', '.join(coarser)}.")
    last_only = [s.target for s in sessions if not s.info.capabilities.whole_prompt_logits]
    if last_only:
        names = ", ".join(last_only)
        lines.append(f"Logits of a prompt's last token and of the answer only, as the runtime gives them: {names}.")
    for session in sessions:
        lines.extend(_placed(session))
        lines.extend(_options(session))
    return "\n".join(lines)


def _placed(session: SessionRecord) -> list[str]:
    """Which execution provider ran what, where a profile tells."""
    found = session.evidence.placements if session.evidence else ()
    nodes, heavy = sum(p.nodes for p in found), sum(p.heavy_nodes for p in found)
    time = sum(p.microseconds for p in found)
    return [
        f"{session.target}: {p.provider} ran {p.nodes} of {nodes} nodes, {p.heavy_nodes} of {heavy} products and "
        f"attentions, {100 * p.microseconds / max(time, 1):.0f} % of the time."
        for p in found
    ]


def _options(session: SessionRecord) -> list[str]:
    """What a session was loaded with besides the runtime's defaults, and what of it the runtime did not heed."""
    info = session.info
    if not info.load_options:
        return []
    given = ", ".join(f"{name}={value}" for name, value in info.load_options.items())
    lines = [f"Diagnostic, not the runtime's defaults: {session.target} was loaded with {given}."]
    lines += [f"  {name} was ignored: it reads back as {value}." for name, value in info.ignored.items()]
    return lines


def _left_out(cases: Sequence[CaseRecord]) -> str:
    """Suites that were judged on a part of their prompts."""
    short = {(c.target, c.case.partition("[")[2].rstrip("]")): c.numbers.get("prompts_left_out", 0) for c in cases}
    return "\n".join(
        f"{target}: {count:.0f} prompts of {suite} are longer than the session was made for; judged on the others."
        for (target, suite), count in short.items()
        if count
    )


def _waivers(cases: Sequence[CaseRecord]) -> str:
    counts = Counter(case.waiver for case in cases if case.waiver and case.outcome == "WAIVED")
    named = ", ".join(f"{waiver} ({count} case{'s' if count > 1 else ''})" for waiver, count in counts.items())
    return f"known defects of runtimes, run and waived: {named}" if named else ""


def _skips(unsupported: dict[str, list[CaseRecord]]) -> str:
    reasons: dict[str, list[str]] = defaultdict(list)
    for target, cases in unsupported.items():
        reasons[cases[0].message].append(target)
    lines = ["not run here:"]
    for reason, targets in reasons.items():
        lines.append(f"  {', '.join(targets)}")
        lines.extend(f"      {part}" for part in reason.split("; ", 1))
    return "\n".join(lines)
