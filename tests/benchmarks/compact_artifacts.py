"""Compact rows of the bundled golden against whole ones, on what real runtimes make of the official artifacts.

    PYTHONPATH=tests python tests/benchmarks/compact_artifacts.py [--only ort-genai]

For PyTorch in half precisions and every export of the detection battery that is exported without a data set, over
the suite `core`: mean KL, the worst KL and the worst centred relative error that are judged, and the entry of the
vocabulary that is furthest off (spreads of the others, and logits), each by whole rows and by compact ones of a
sixteenth of their bytes; then the same entry of the implementation error, over eight prompts. What is honest here is
what the limits under `[entries]` in `conformance/policy.toml` must leave alone. Needs the runtimes:
`.tox/runtime/bin/python`.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from detection.battery.bases import copied, exported, loaded
from detection.battery.bench import GOLDEN, Bench
from detection.battery.trial import Answers
from detection.battery.variants import OPENVINO, ORT, recipe
from harness import metrics
from harness.backend import Recipe
from harness.compare import Rows, compare_logits
from harness.golden import verify_files
from harness.metrics import RowErrors
from harness.policy import Limit
from harness.vocabulary import judge_entries

_NO_LIMIT = Limit(float("inf"), "measured, not judged")
_PROMPTS, _PROBES = 8, 3


def targets(only: str | None) -> Iterator[tuple[str, str, Recipe | None]]:
    """Name, target and recipe, None where the checkpoint itself is loaded."""
    for precision in ("bf16", "fp16"):
        yield f"pytorch {precision}", f"pytorch:cpu:{precision}", None
    for backend, schemes in (("openvino", OPENVINO), ("ort-genai", ORT)):
        for name, precision, options in schemes:
            target = f"{backend}:cpu:{precision.value}"
            if not {"--dataset", "--awq", "--gptq"} & set(options) and only in (None, backend):
                yield f"{backend} {name}", target, recipe(target, name, options)


def errors_of(bench: Bench, answers: Answers) -> list[RowErrors]:
    """Device against golden, in the form that the bench has."""
    compared = [
        compare_logits(rows, device, len(case.tokens), whole_prompt=True)
        for rows, device, case in zip(bench.rows, answers.logits, bench.cases, strict=True)
    ]
    return [rows.errors for rows in compared if isinstance(rows, Rows)]


def implementation(bench: Bench, answers: Answers, backend: str, artifact: Path) -> list[RowErrors]:
    """Device against the artifact reference in the arithmetic inferred, over the first prompts."""
    references = bench.references(bench.weights(backend, artifact))
    asked = list(zip(bench.cases, answers.logits, strict=True))[:_PROMPTS]
    probes = [(case.sequence, len(case.tokens), device) for case, device in asked[:_PROBES]]
    arithmetic = references.infer(answers.permitted, probes, answers.products).arithmetic
    return [
        metrics.compare_rows(references.logits(case.sequence, len(case.tokens), arithmetic), device, entries=True)
        for case, device in asked
    ]


def tell(name: str, errors: Sequence[RowErrors]) -> None:
    """Print a line."""
    entry = judge_entries(errors, _NO_LIMIT, "total").numbers
    kl = np.concatenate([one.kl for one in errors]).mean()
    worst = max(float(one.kl_surely.max()) for one in errors)
    relative = max(float(one.relative_surely.max()) for one in errors)
    print(
        f"  {name:14} KL {kl:.4g}, worst {worst:.3g}; worst relative error {relative:.3g}; "
        f"entry {entry['total_entry']:.0f}: {entry['total_entry_spreads']:.1f} spreads, "
        f"{entry['total_entry_logits']:.2g} logits",
        flush=True,
    )


def main() -> None:
    """Judge everything."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("openvino", "ort-genai"))
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    prompts = [("core", case.id) for case in verify_files(GOLDEN / "core").manifest.cases]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        whole, compact = Bench(Path(folder), prompts), Bench(Path(folder), prompts, compact=True)
        for name, target, chosen in targets(arguments.only):
            backend = target.split(":")[0]
            artifact = (
                whole.checkpoint.path if chosen is None else copied(whole, exported(whole, target, chosen), "one")
            )
            session = loaded(target, artifact)
            answers = whole.ask(session)
            session.close()
            print(name)
            tell("whole", errors_of(whole, answers))
            tell("compact", errors_of(compact, answers))
            if chosen is not None:
                tell("implementation", implementation(whole, answers, backend, artifact))


if __name__ == "__main__":
    main()
