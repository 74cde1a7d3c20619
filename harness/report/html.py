"""The report of a run as one HTML file."""

from __future__ import annotations

import datetime

from harness.record import PromptRecord, RunRecord
from harness.report.answers import answers, text_of
from harness.report.apart import errors_apart, prompt_of
from harness.report.canvas import Plot
from harness.report.figures import count
from harness.report.overview import HARMLESS, Overview, deciding, look_over, tone, took
from harness.report.page import render
from harness.report.panels import plot_layers, plot_positions, plot_speed
from harness.report.particulars import devices, machines, messages, noise, run_facts, session_facts
from harness.report.plots import plot_errors
from harness.report.series import ByPosition, by_length, by_position, spread
from harness.report.tokens import token_data, token_targets

PARTS = (
    ("verdict", "Verdict"),
    ("matrix", "Matrix"),
    ("errors", "Three errors"),
    ("prompts", "Tokens"),
    ("answers", "Answers"),
    ("layers", "Layers"),
    ("positions", "Positions"),
    ("speed", "Speed"),
    ("noise", "Noise"),
    ("waivers", "Waivers"),
    ("skips", "Not run"),
    ("targets", "Targets"),
    ("machine", "Machine"),
)
_SIGNS = (
    ("PASS", "pass"),
    ("FAIL", "fail, error, not attested or not run"),
    ("WAIVED", "known defect, waived"),
    ("UNSUPPORTED", "could not run here"),
)
_TONES = {"pass": "pass", "fail": "fail", "incomplete": "waived", "nothing": "fail"}


def to_html(record: RunRecord) -> str:
    """The report: text that is a page by itself. Whatever text the record holds is escaped."""
    view = look_over(record)
    errors = errors_apart(view.rows)
    positions = by_position(record)
    paces = by_length(record.sessions)
    prompts = [(prompt, _failing(record, prompt)) for prompt in record.prompts]
    targets = token_targets(record)
    target = next((row.target for row in view.failed if row.target in targets), "")
    name = record.checkpoint.name if record.checkpoint is not None else "no checkpoint"
    return render(
        "report.html",
        title=f"{view.word}: {name}, Phi-3 conformance",
        parts=PARTS,
        record=record,
        view=view,
        tone=_TONES[view.state],
        eyebrow=" · ".join(part for part in ("Phi-3 conformance", name, when(record.started), took(record)) if part),
        tallies=_tallies(view),
        alert=_alert(record),
        signs=_SIGNS,
        errors=errors,
        errors_plot=plot_errors(errors),
        undecomposed=[(s.target, s.undecomposed) for s in record.sessions if s.undecomposed],
        prompts=prompts,
        open_prompt=_open(record, target),
        token_data=token_data(record),
        token_targets=targets,
        token_target=target,
        token_measure="implementation" if any(one.apart for one in positions) else "kl",
        answers=answers(record),
        layers=[
            (session, plot_layers(session.localisation, f"layers-{number}"))
            for number, session in enumerate(record.sessions)
            if session.localisation is not None and session.localisation.sublayers
        ],
        position_plots=[
            plot
            for apart in (True, False)
            if (plot := _positions([one for one in positions if one.apart is apart], record, view)) is not None
        ],
        speed_plots=[p for first in (True, False) if (p := plot_speed(paces, first_token=first)) is not None],
        costs=[s for s in record.sessions if s.timings or s.speed or s.peak_memory_bytes],
        lengths=sorted({speed.prompt_tokens for session in record.sessions for speed in session.speed}),
        noise=noise(record.sessions),
        machines=machines(record),
        run_facts=run_facts(record),
        prompt_of=prompt_of,
        text_of=text_of,
        spread=spread,
        devices=devices,
        messages=messages,
        session_facts=session_facts,
    )


def _positions(found: list[ByPosition], record: RunRecord, view: Overview) -> Plot | None:
    window = record.checkpoint.window if record.checkpoint is not None else None
    tones = {row.target: tone(deciding([c.outcome for c in row.cases if c.test == "test_logits"])) for row in view.rows}
    return plot_positions(found, window if window and window > 0 else None, tones)


def when(text: str) -> str:
    """A time of a record for reading: `25 November 2026, 13:39 UTC`; as it stands where it is none."""
    try:
        time = datetime.datetime.fromisoformat(text)
    except (ValueError, TypeError):
        return text
    return f"{time.day} {time:%B %Y, %H:%M}" + (" UTC" if not time.utcoffset() else f" {time:%z}")


def _failing(record: RunRecord, prompt: PromptRecord) -> int:
    """How many targets fail on a prompt; those that crash or are not attested do so whatever the prompt."""
    return len({c.target for c in record.cases if c.outcome == "FAIL" and prompt_of(c) == prompt.id})


def _open(record: RunRecord, target: str) -> int:
    """The number of the prompt to show first: one that the target fails on, or the first."""
    failed = {
        prompt_of(c) for c in record.cases if c.target == target and c.test == "test_logits" and c.outcome == "FAIL"
    }
    return next((number for number, prompt in enumerate(record.prompts) if prompt.id in failed), 0)


def _tallies(view: Overview) -> list[tuple[str, str, str]]:
    counts = view.counts
    failing = sum(times for outcome, times in counts.items() if outcome not in HARMLESS)
    return [
        ("targets judged", f"{len(view.rows):,}", "ink"),
        ("cases failed", f"{failing:,}", "fail" if failing else "ink"),
        ("cases passed", f"{counts.get('PASS', 0):,}", "pass" if counts.get("PASS") else "ink"),
        ("cases waived", f"{counts.get('WAIVED', 0):,}", "waived" if counts.get("WAIVED") else "ink"),
        ("targets not here", f"{len(view.absent):,}", "ink"),
    ]


def _alert(record: RunRecord) -> str:
    if record.complete:
        return ""
    judged = sum(case.outcome != "UNSUPPORTED" for case in record.cases)
    return f"INCOMPLETE: the run was cut short after {count(judged, 'case')}. What is missing was not judged."
