"""Checkpoints of the published models' true shapes, and the whole way through this project with them.

    python tests/benchmarks/true_shapes.py make NAME FOLDER [--layers N]
    python tests/benchmarks/true_shapes.py chain [NAME ...] [--layers N|all] [--targets T] [--suites ...] [--memory N]

`make` writes a checkpoint of random weights, seeded, in BF16 and in shards as the published one is. `chain` makes one,
cut to `--layers` (2) of its layers with their true widths, and for each records a golden in as little memory as
streaming takes, verifies it, and judges the targets by it: logits, greedy answers, the three errors and the weights.
With `--perturbed` it is recorded with whole rows, too, and held against itself with noise, see `perturbed.py`. It
prints time and memory of each step and how the cases came out. Memory is RssAnon of all processes, see `full_size.py`.
Linux only. Needs `.tox/runtime`, where the workers run. It takes minutes a model and up to 20 GB of disk below the home
folder.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.checkpoint import open_checkpoint
from harness.golden import MANIFEST, TREE, verify_files
from harness.layout import Layout
from harness.record import read_record
from harness.streaming.room import least_for_reference, least_memory

sys.path.insert(0, str(TREE / "tests"))  # run as a script, this has its own folder there
from benchmarks.full_size import Cost, Meter
from benchmarks.perturbed import tell
from published_shapes import NAMES, make, write_prompts

_TEXTS = ("The quick brown fox jumps over the lazy dog", "Rain, and a hare")
_SUITES = ("test_greedy", "test_known_faults", "test_logits", "test_weights")


def main() -> None:
    """Make a checkpoint, or go the whole way with some."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    made = commands.add_parser("make")
    made.add_argument("name", choices=NAMES)
    made.add_argument("folder", type=Path)
    made.add_argument("--layers", type=int, default=None)
    chain = commands.add_parser("chain")
    chain.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    chain.add_argument("--layers", type=_layers, default=2, help="how many, or all; 2 by default")
    chain.add_argument("--targets", action="append", default=[])
    chain.add_argument("--golden-only", action="store_true", help="record and verify, and judge nothing")
    chain.add_argument("--perturbed", action="store_true", help="hold the golden against itself with noise")
    chain.add_argument("--memory", default=None, help="what a golden and a reference may take; the least by default")
    chain.add_argument("--new-tokens", type=int, default=4)
    chain.add_argument("--suites", nargs="+", choices=_SUITES, default=_SUITES, help="what targets are judged in")
    options = parser.parse_args()
    if options.command == "make":
        total = make(options.folder, options.name, layers=options.layers)
        print(f"{options.folder}: {options.name} of {total / 1e6:.0f} million random weights")
        return
    names = options.names or list(NAMES)
    if not set(names) <= set(NAMES):
        parser.error(f"models are {', '.join(NAMES)}")
    targets = [] if options.golden_only else options.targets or ["openvino:cpu:int4"]
    asked = Asked(options.layers, targets, options.memory, options.new_tokens, options.suites, options.perturbed)
    right = [_chain(name, asked) for name in names]
    sys.exit(0 if all(right) else 1)


class Asked(NamedTuple):
    """How far the way is: layers, targets, memory as `--memory` takes it, new tokens, test files without `.py`.

    `perturbed`: whether the golden is held against itself with noise.
    """

    layers: int | None
    targets: list[str]
    memory: str | None
    new_tokens: int
    suites: Sequence[str]
    perturbed: bool


def _chain(name: str, asked: Asked) -> bool:
    """The whole way with one model; whether every step ended well and every case that ran passed."""
    with tempfile.TemporaryDirectory(dir=Path.home()) as root:  # /tmp may be memory
        folder = Path(root)
        checkpoint, suite, golden = folder / name, folder / "few.jsonl", folder / "golden"
        total = make(checkpoint, name, layers=asked.layers)
        write_prompts(suite, _TEXTS, asked.new_tokens)
        least, of_reference = (asked.memory, asked.memory) if asked.memory else _least(checkpoint, asked.new_tokens)
        layers = f"{asked.layers} layers" if asked.layers else "all layers"
        said = f"{name}, {layers}: {total / 1e6:.0f} million weights; --memory {least}, then {of_reference}"
        print(said, flush=True)
        where = [f"--checkpoint={checkpoint}", f"--prompts={suite}", f"--golden={golden}"]
        command = [sys.executable, "-m", "harness.cli", "golden"]
        right = _run("golden record", [*command, "record", *where, "--memory", least], folder)
        right = right and _run("golden verify", [*command, "verify", *where], folder)
        if right and asked.perturbed:
            whole = [*where[:2], f"--golden={folder / 'whole'}", "--form=full", "--memory", least]
            right = _run("golden record --form full", [*command, "record", *whole], folder)
            right = right and tell(*(verify_files(_only(folder / form)) for form in ("whole", "golden")))
        for target in asked.targets if right else ():
            record = folder / "record.json"
            record.unlink(missing_ok=True)
            judge = [sys.executable, "-m", "pytest", "-c", str(TREE / "pyproject.toml"), *where, f"--targets={target}"]
            judge += [f"--memory={of_reference}", f"--record={record}", "-p", "no:cacheprovider", "-q"]
            judge += [str(TREE / "conformance" / f"{suite}.py") for suite in asked.suites]
            right &= _run(f"pytest {target}", judge, folder)
            _tell(record)
        return right


def _only(root: Path) -> Path:
    """The one suite's golden below a folder."""
    (manifest,) = root.rglob(MANIFEST)
    return manifest.parent


def _layers(text: str) -> int | None:
    return None if text == "all" else int(text)


def _least(checkpoint: Path, new_tokens: int) -> tuple[str, str]:
    """The memory that streaming takes by its own estimates for a golden and for references, a token being a byte."""
    lengths = [len(text) + new_tokens for text in _TEXTS]
    layout = Layout.of(open_checkpoint(checkpoint).config)
    golden = least_memory(layout, len(lengths), max(lengths), sum(lengths))
    reference = least_for_reference(layout, max(lengths), rounded=True)
    return f"{golden // 10**6 + 1}MB", f"{reference // 10**6 + 1}MB"


def _run(what: str, command: list[str], folder: Path) -> bool:
    """Carry out a step and print what it took; its output only where it failed."""
    environment = {**os.environ, "PHI3_CONFORMANCE_CACHE": str(folder / "cache")}
    meter = Meter()
    meter.start()
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    cost: Cost = meter.read()
    print(f"  {what}: {cost}{'' if done.returncode == 0 else f', ended with status {done.returncode}'}", flush=True)
    told = [line for line in done.stdout.splitlines() if "against float64" in line]
    print("".join(f"    {line.partition(': ')[2]}\n" for line in told), end="", flush=True)
    if done.returncode:
        print("\n".join("    " + line for line in (done.stdout + done.stderr).splitlines()[-40:]), flush=True)
    return done.returncode == 0


def _tell(record: Path) -> None:
    """How the cases of a run came out, and the figures of those that have some."""
    if not record.is_file():
        return
    cases = read_record(record).cases
    counts = Counter(case.outcome for case in cases)
    print("    " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())), flush=True)
    for case in cases:
        if case.outcome not in ("PASS", "UNSUPPORTED"):
            print(f"    {case.id}: {case.outcome}: {case.message.splitlines()[0] if case.message else ''}", flush=True)


if __name__ == "__main__":
    main()
