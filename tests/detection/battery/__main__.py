"""Run the battery: `python -m detection.battery`, with the folder `tests` on the path."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import msgspec

from detection.battery import pytorch_target, report, variants
from detection.battery.bench import Bench
from detection.battery.campaign import CLASSES, TARGETS, Emulated, artifact_trials, form_trials
from detection.battery.trial import Trial

PARTS = ("artifacts", "devices", "pytorch", "answers", "variants")


def main() -> int:
    """Judge everything, print the table; 1 when the battery is not sound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=(*PARTS, "none"), action="append")
    parser.add_argument(
        "--class", dest="classes", choices=tuple(CLASSES), action="append", help="emulated devices of it"
    )
    parser.add_argument("--quick", action="store_true", help="a few of each kind")
    parser.add_argument("--compact", action="store_true", help="judge against compact rows of the golden")
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--save", type=Path, help="write the trials here, as JSON")
    parser.add_argument("--read", type=Path, action="append", default=[], help="count trials saved before as well")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    chosen = arguments.only or [part for part in PARTS if part != "pytorch" or not arguments.quick]
    classes = arguments.classes or (["fp32+a8"] if arguments.quick else list(CLASSES))
    faults: list[Trial] = []
    legitimate: list[Trial] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for kept, trial in run(Bench(Path(folder), compact=arguments.compact), chosen, classes, quick=arguments.quick):
            (faults if kept == "fault" else legitimate).append(trial)
            tell(trial)
            if arguments.save:  # after each, so that what was judged is kept whatever interrupts
                arguments.save.write_bytes(msgspec.json.encode((faults, legitimate)))
    for path in arguments.read:
        saved = msgspec.json.decode(path.read_bytes(), type=tuple[list[Trial], list[Trial]])
        faults, legitimate = saved[0] + faults, saved[1] + legitimate
    text = report.table(faults, legitimate)
    print(text)
    if arguments.out:
        arguments.out.write_text(text, encoding="utf-8")
    return 0 if report.sound(faults, legitimate) else 1


def run(bench: Bench, chosen: list[str], classes: list[str], *, quick: bool) -> Iterator[tuple[str, Trial]]:
    """Every trial, each a `fault` or a `variant`."""
    if "answers" in chosen:
        yield from (("fault", trial) for trial in form_trials(bench))
    emulated = Emulated(bench) if {"devices", "variants"} & set(chosen) else None
    if "devices" in chosen and emulated:
        for name in classes:
            yield from (("fault", trial) for trial in emulated.trials(name, few=quick))
    if "pytorch" in chosen:
        for precision in pytorch_target.PRECISIONS:
            yield from (("fault", trial) for trial in pytorch_target.trials(bench, precision))
            yield from (("variant", trial) for trial in pytorch_target.variants(bench, precision))
    if "artifacts" in chosen:
        for backend in TARGETS:
            yield from (("fault", trial) for trial in artifact_trials(bench, backend, few=quick))
    if "variants" in chosen and emulated:
        yield from (("variant", trial) for trial in variants.emulated_trials(emulated, classes))
        if not quick:
            yield from (("variant", trial) for trial in variants.running_trials(bench))
            yield from (("variant", trial) for trial in variants.export_trials(bench))


def tell(trial: Trial) -> None:
    """A line on standard error, since the whole takes its time."""
    cause = trial.cause.value if trial.cause else "nothing found"
    effect = "" if trial.effect is None else f" effect {trial.effect:.3g}"
    said = trial.failed[trial.cause][:150] if trial.cause else ""
    head = f"{trial.planted.place}: {trial.planted.name} {trial.planted.strength}:"
    print(f"{time.strftime('%X')}  {head}{effect} {cause}; {said}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
