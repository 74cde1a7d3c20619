"""The battery's table and what it amounts to, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detection.battery.rules import NAMES
from detection.battery.trial import Trial

_SAID = {True: "alarm", False: "passes", None: "-"}


def table(faults: Sequence[Trial], variants: Sequence[Trial]) -> str:
    """Every trial, then the rates."""
    lines = ["# What the harness finds", ""]
    lines += [
        "Output of `python -m tox -e detection`. Effect: how far the fault moves the same device's logits, in",
        "",
    ]
    lines[-1:] = [
        "multiples of the yardstick (mean or worst position, whichever is more); at 1 or less it is within the noise of",
        "honest ways of computing the same and need not be found.",
        "",
    ]
    lines += [
        *_summary(faults, variants),
        "",
        "## Smallest strength found",
        "",
        *_smallest(faults),
        "",
        "## Faults",
        "",
    ]
    lines += [*_rows(faults), "", "## Legitimate variants", "", *_variants(variants), ""]
    return "\n".join(lines)


def sound(faults: Sequence[Trial], variants: Sequence[Trial]) -> bool:
    """Whether nothing above the noise was missed, no variant raised an alarm, and 95 % were put down rightly."""
    missed = [trial for trial in faults if trial.needed and not trial.caught]
    return not missed and not any(trial.caught for trial in variants) and attribution(faults) >= 0.95


def attribution(faults: Sequence[Trial]) -> float:
    """The share of those caught that were put down to what was planted."""
    caught = [trial for trial in faults if trial.caught]
    return sum(trial.cause is trial.planted.expected for trial in caught) / max(1, len(caught))


def _summary(faults: Sequence[Trial], variants: Sequence[Trial]) -> Iterator[str]:
    needed = [trial for trial in faults if trial.needed]
    found = sum(trial.caught for trial in needed)
    below = [trial for trial in faults if not trial.needed]
    yield f"- faults: {len({t.planted.name for t in faults})} kinds, {len(faults)} trials"
    yield f"- found of those above the noise: {found} of {len(needed)}"
    yield f"- found of those below it: {sum(t.caught for t in below)} of {len(below)}"
    yield f"- put down rightly: {100 * attribution(faults):.1f} % of those found"
    yield f"- false alarms: {sum(t.caught for t in variants)} of {len(variants)} legitimate variants"
    yield "- rules in use elsewhere, over the same faults above the noise, and over the legitimate variants:"
    for name in NAMES:
        ours = [t.rules[name] for t in needed if t.rules.get(name) is not None]
        theirs = [t.rules[name] for t in variants if t.rules.get(name) is not None]
        yield f"  - {name}: {sum(map(bool, ours))} of {len(ours)} found, {sum(map(bool, theirs))} of {len(theirs)} false alarms"
    for trial in (t for t in faults if t.needed and not t.caught):
        yield f"- **missed**: {_name(trial)} ({trial.planted.place}), effect {_effect(trial)}"
    for trial in (t for t in faults if t.caught and t.cause is not t.planted.expected):
        yield f"- **put down wrongly**: {_name(trial)} ({trial.planted.place}): {trial.cause.value if trial.cause else ''}"
    for trial in (t for t in variants if t.caught):
        yield f"- **false alarm**: {_name(trial)} ({trial.planted.place}): {trial.cause.value if trial.cause else ''}"


def _smallest(faults: Sequence[Trial]) -> Iterator[str]:
    yield "| fault | place | smallest found | largest missed |"
    yield "| --- | --- | --- | --- |"
    groups: dict[tuple[str, str], list[Trial]] = {}
    for trial in faults:
        groups.setdefault((trial.planted.name, trial.planted.place), []).append(trial)
    for (name, place), trials in groups.items():
        found, missed = [t for t in trials if t.caught], [t for t in trials if not t.caught]
        if len(trials) > 1:
            least = found[-1].planted.strength if found else "-"
            most = f"{missed[0].planted.strength} (effect {_effect(missed[0])})" if missed else "-"
            yield f"| {name} | {place} | {least} | {most} |"


def _rows(faults: Sequence[Trial]) -> Iterator[str]:
    yield f"| fault | place | effect | caught by | right | {' | '.join(NAMES)} |"
    yield "| --- " * (5 + len(NAMES)) + "|"
    for trial in faults:
        by = trial.cause.value if trial.cause else ("MISSED" if trial.needed else "within the noise")
        right = "" if not trial.caught else ("yes" if trial.cause is trial.planted.expected else "no")
        said = " | ".join(_SAID[trial.rules.get(name)] for name in NAMES)
        yield f"| {_name(trial)} | {trial.planted.place} | {_effect(trial)} | {by} | {right} | {said} |"


def _variants(variants: Sequence[Trial]) -> Iterator[str]:
    yield f"| variant | place | alarm | {' | '.join(NAMES)} |"
    yield "| --- " * (3 + len(NAMES)) + "|"
    for trial in variants:
        alarm = "; ".join(f"{c.value}: {said}" for c, said in trial.failed.items()).replace("|", "/") or "none"
        said = " | ".join(_SAID[trial.rules.get(name)] for name in NAMES)
        yield f"| {_name(trial)} | {trial.planted.place} | {alarm} | {said} |"


def _name(trial: Trial) -> str:
    return ", ".join(filter(None, (trial.planted.name, trial.planted.strength)))


def _effect(trial: Trial) -> str:
    return "" if trial.effect is None else f"{trial.effect:.2g}"
