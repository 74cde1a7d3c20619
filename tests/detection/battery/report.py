"""The battery's table and what it amounts to, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from detection.battery.rules import NAMES
from detection.battery.trial import Trial

_HEAD = (
    "# What the harness finds",
    "",
    "This is the output of `python -m tox -e detection`. Effect: how far the fault moves the same device's logits,",
    "in multiples of the yardstick (mean or worst position, whichever is more). Where it is no more than the distance",
    "of another honest device in the same unit (of thirty, where a device is emulated), the fault is within the noise",
    "and need not be found. Error: the",
    "largest implementation error judged, mean and worst, in yardsticks. ONNX Runtime's artifacts have their",
    "sliding window repaired first. An emulated device is the reference's forward pass, summed in another order,",
    "with a fault in it.",
    "",
    "The four rules on the right are in use elsewhere, and were applied to the same data: mutual top-5 membership at",
    "the first divergence; floors of 89 % on top-1 and 99 % on top-5; mean KL above twice that without the fault; a",
    "fixed tolerance of 1e-2 + 1e-2 x each logit, which alarms without a fault too.",
)
_SAID = {True: "alarm", False: "passes", None: "-"}


def table(faults: Sequence[Trial], variants: Sequence[Trial]) -> str:
    """Every trial, then the rates."""
    lines = [*_HEAD, "", *_summary(faults, variants), "", "## Smallest strength found", "", *_smallest(faults)]
    lines += ["", "## Faults", "", *_rows(faults), "", "## Legitimate variants", "", *_variants(variants), ""]
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
    missed = [trial.effect or 0.0 for trial in faults if not trial.caught and trial.effect is not None]
    if missed:
        yield f"- every fault that moves the logits by more than {max(missed):.2g} yardsticks was found"
    yield f"- put down rightly: {100 * attribution(faults):.1f} % of those found"
    yield f"- false alarms: {sum(t.caught for t in variants)} of {len(variants)} legitimate variants"
    yield "- rules in use elsewhere, over those of these faults and variants that have logits to apply them to:"
    for name in NAMES:
        ours = [t.rules[name] for t in needed if t.rules.get(name) is not None]
        theirs = [t.rules[name] for t in variants if t.rules.get(name) is not None]
        found_by, alarms = sum(map(bool, ours)), sum(map(bool, theirs))
        yield f"  - {name}: {found_by} of {len(ours)} found, {alarms} of {len(theirs)} false alarms"
    for trial in (t for t in faults if t.needed and not t.caught):
        yield f"- **missed**: {_name(trial)} ({trial.planted.place}), effect {_effect(trial)}, error {_ratios(trial)}"
    for trial in (t for t in faults if t.caught and t.cause is not t.planted.expected):
        yield f"- **put down wrongly**: {_name(trial)} ({trial.planted.place}): {_cause(trial)}"
    for trial in (t for t in variants if t.caught):
        yield f"- **false alarm**: {_name(trial)} ({trial.planted.place}): {_cause(trial)}"


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
    yield f"| fault | place | effect | error | caught by | right | {' | '.join(NAMES)} |"
    yield "| --- " * (6 + len(NAMES)) + "|"
    for trial in faults:
        by = trial.cause.value if trial.cause else ("MISSED" if trial.needed else "within the noise")
        right = "" if not trial.caught else ("yes" if trial.cause is trial.planted.expected else "no")
        said = " | ".join(_SAID[trial.rules.get(name)] for name in NAMES)
        where = f"{_name(trial)} | {trial.planted.place}"
        yield f"| {where} | {_effect(trial)} | {_ratios(trial)} | {by} | {right} | {said} |"


def _variants(variants: Sequence[Trial]) -> Iterator[str]:
    yield f"| variant | place | error | alarm | {' | '.join(NAMES)} |"
    yield "| --- " * (4 + len(NAMES)) + "|"
    for trial in variants:
        alarm = "; ".join(f"{c.value}: {said}" for c, said in trial.failed.items()).replace("|", "/") or "none"
        said = " | ".join(_SAID[trial.rules.get(name)] for name in NAMES)
        yield f"| {_name(trial)} | {trial.planted.place} | {_ratios(trial)} | {alarm} | {said} |"


def _name(trial: Trial) -> str:
    return ", ".join(filter(None, (trial.planted.name, trial.planted.strength)))


def _effect(trial: Trial) -> str:
    return "" if trial.effect is None else f"{trial.effect:.2g}"


def _cause(trial: Trial) -> str:
    return trial.cause.value if trial.cause else ""


def _ratios(trial: Trial) -> str:
    return "" if trial.ratios == (0.0, 0.0) else f"{trial.ratios[0]:.2g} / {trial.ratios[1]:.2g}"
