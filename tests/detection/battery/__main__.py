"""Run the battery: `python -m detection.battery`, with the folder `tests` on the path."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterable
from pathlib import Path

import msgspec

from detection.battery import report, variants
from detection.battery.bench import Bench
from detection.battery.campaign import CLASSES, TARGETS, Emulated, artifact_trials, form_trials
from detection.battery.trial import Trial


def main() -> int:
    """Judge everything, print the table; 1 when the battery is not sound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=("artifacts", "devices", "answers", "variants", "none"), action="append")
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--save", type=Path, help="write the trials here, as JSON")
    parser.add_argument("--read", type=Path, action="append", default=[], help="count trials saved before as well")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = arguments.only or ["artifacts", "devices", "answers", "variants"]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        faults, legitimate = run(Bench(Path(folder)), chosen, quick=arguments.quick)
    if arguments.save:
        arguments.save.write_bytes(msgspec.json.encode((faults, legitimate)))
    for path in arguments.read:
        saved = msgspec.json.decode(path.read_bytes(), type=tuple[list[Trial], list[Trial]])
        faults, legitimate = saved[0] + faults, saved[1] + legitimate
    text = report.table(faults, legitimate)
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return 0 if report.sound(faults, legitimate) else 1


def run(bench: Bench, chosen: list[str], *, quick: bool) -> tuple[list[Trial], list[Trial]]:
    """Faults and legitimate variants, judged."""
    faults: list[Trial] = []
    legitimate: list[Trial] = []
    if "answers" in chosen:
        faults += _told(form_trials(bench))
    if "artifacts" in chosen:
        for backend in TARGETS:
            faults += _told(artifact_trials(bench, backend, few=quick))
    emulated = Emulated(bench) if {"devices", "variants"} & set(chosen) else None
    if "devices" in chosen and emulated:
        for name in ["fp32+a8"] if quick else CLASSES:
            faults += _told(emulated.trials(name, few=quick))
    if "variants" in chosen and emulated:
        if not quick:
            legitimate += _told(variants.export_trials(bench))
            legitimate += _told(variants.running_trials(bench))
        legitimate += _told(variants.emulated_trials(emulated))
    return faults, legitimate


def _told(trials: Iterable[Trial]) -> list[Trial]:
    """The trials, with a line on standard error for each as it is judged."""
    found = []
    began = time.monotonic()
    for trial in trials:
        cause = trial.cause.value if trial.cause else "nothing found"
        effect = "" if trial.effect is None else f" effect {trial.effect:.3g}"
        planted = trial.planted
        said = trial.failed[trial.cause][:150] if trial.cause else ""
        head = f"{time.monotonic() - began:6.1f} s  {planted.place}: {planted.name} {planted.strength}:"
        print(f"{head}{effect} {cause}; {said}", file=sys.stderr, flush=True)
        found.append(trial)
    return found


if __name__ == "__main__":
    sys.exit(main())
