"""The artifact reference with all weights in memory and a layer at a time: what each takes of memory and time.

    python tests/benchmarks/artifact_reference.py [--texts 12] [--artifact BACKEND=FOLDER --checkpoint FOLDER]

Without `--artifact` a Phi-3 of 400 million random parameters is made and exported as `openvino:cpu:int4` is by default.
Of each text of about 60 tokens are computed: logits in plain FP32, logits with int8 activations and a u8 cache, and the
yardsticks of that. In memory they are asked for text by text, as a run asks for them; streamed, together, as a run has
them gathered. The answers must be the same to the last bit.

Memory is RssAnon, see `full_size.py`; both are printed with what Python with torch holds before it holds a model, which
is taken off for the ratio. Linux only.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from harness.arithmetic import Arithmetic, CachePrecision
from harness.backend import load_backend
from harness.checkpoint import find_checkpoint
from harness.devices import find_interpreter
from harness.errors import Stage
from harness.golden import TREE
from harness.target import Precision, Target
from harness.wanted import MOST_ROWS, Wanted, fitting
from harness.worker import Worker

sys.path.insert(0, str(TREE / "tests"))  # run as a script, this has its own folder there
from benchmarks.full_size import Cost, Meter, make_checkpoint

EMULATED = Arithmetic(Precision.FP32, 32, CachePrecision.U8)


def main() -> None:
    """Compute the same both ways, and print what it took; status 1 if the answers are not the same."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=int, default=12)
    parser.add_argument("--artifact", default=None, metavar="BACKEND=FOLDER")
    parser.add_argument("--checkpoint", type=Path, default=None)
    options = parser.parse_args()
    interpreter = find_interpreter(load_backend("pytorch"), {}, TREE)
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:  # /tmp may be memory
        folder = Path(name)
        checkpoint = options.checkpoint or folder / "random"
        if not checkpoint.is_dir():
            make_checkpoint(checkpoint, "small")
        backend, _, artifact = (options.artifact or f"openvino={export(checkpoint, folder)}").partition("=")
        config = find_checkpoint(str(checkpoint)).config
        opening = {"backend": backend, "artifact": artifact, "config": config}
        wanted = list(ask(options.texts, config["vocab_size"]))
        idle = measured(folder, interpreter, {}, [], streamed=False)[0]
        whole, first = measured(folder, interpreter, opening, wanted, streamed=False)
        streamed, second = measured(folder, interpreter, opening, wanted, streamed=True)
    same = all(alike(one, other) for one, other in zip(first, second, strict=True))
    print(
        f"{options.texts} texts, {sum(len(one.tokens) for one in wanted) // 3} tokens; idle {idle.memory / 1e9:.2f} GB"
    )
    print(f"in memory: {whole}; a layer at a time: {streamed}")
    ratio = (streamed.memory - idle.memory) / (whole.memory - idle.memory)
    print(f"  streamed over whole: time {streamed.seconds / whole.seconds:.2f}, memory {ratio:.2f}")
    print(f"  {'the same to the last bit' if same else 'OTHER ANSWERS: ' + difference(first, second)}")
    sys.exit(0 if same else 1)


def export(checkpoint: Path, folder: Path) -> Path:
    """An artifact by the default recipe of openvino:cpu:int4."""
    backend, out = load_backend("openvino"), folder / "artifact"
    worker = Worker("exporter", folder / "scratch", interpreter=find_interpreter(backend, {}, TREE))
    worker.start()
    try:
        worker.call(Stage.PREPARE, "open", backend="openvino")
        recipe = backend.recipe(Target.parse("openvino:cpu:int4"), None)
        arguments = {"checkpoint": str(checkpoint), "recipe": recipe, "out": str(out), "trust_remote_code": False}
        worker.call(Stage.PREPARE, "export", **arguments)
    finally:
        worker.stop()
    return out


def ask(texts: int, vocabulary: int) -> Iterator[Wanted]:
    """What a run asks of each text."""
    generator = np.random.default_rng(20261125)
    for number in range(texts):
        tokens = tuple(generator.integers(3, vocabulary, 54 + number % 13).tolist())
        yield Wanted(tokens, len(tokens) - 16, Arithmetic())
        yield Wanted(tokens, len(tokens) - 16, EMULATED)
        yield Wanted(tokens, len(tokens) - 16, EMULATED, yardsticks=True)


def measured(
    folder: Path, interpreter: Path | None, opening: dict[str, Any], wanted: list[Wanted], *, streamed: bool
) -> tuple[Cost, list[Any]]:
    """Open a reference in a new worker and ask; without an opening, what the worker costs by itself."""
    meter = Meter()
    meter.start()
    worker = Worker("reference", folder / "scratch", interpreter=interpreter)
    worker.start()
    try:
        worker.call(Stage.LOAD, "open", backend="pytorch")
        if not opening:
            bundled = TREE / "golden" / "phi-3-tiny" / "checkpoint"
            config = json.loads((bundled / "config.json").read_text(encoding="utf-8"))
            opening = {"backend": "pytorch", "artifact": str(bundled), "config": config}
        reason = worker.call(Stage.LOAD, "open_reference", **opening, streamed=streamed)
        if reason:
            sys.exit(reason)
        found = list(together(worker, wanted) if streamed else one_by_one(worker, wanted))
    finally:
        cost = meter.read()
        worker.stop()
    return cost, found


def one_by_one(worker: Worker, wanted: list[Wanted]) -> Iterator[Any]:
    """As `harness.decompose` asks a reference that is in memory."""
    for one in wanted:
        asked = {"tokens": list(one.tokens), "prefill": one.prefill, "arithmetic": one.arithmetic}
        if one.yardsticks:
            yield worker.call(Stage.RUN, "yardsticks", **asked)
        else:
            yield {"logits": worker.call(Stage.RUN, "reference_logits", **asked)}


def together(worker: Worker, wanted: list[Wanted]) -> Iterator[Any]:
    """As `harness.decompose` asks a reference that is streamed: as much as goes into a pass."""
    left, passes = list(wanted), 0
    while left:
        some = fitting(left[0], left[1:])
        worker.call(Stage.RUN, "begin_reference", what="answers", asked={"wanted": some})
        while worker.call(Stage.RUN, "advance_reference") is not None:
            pass
        passes += 1
        assert some == left[: len(some)]
        left = left[len(some) :]
        for _ in some:
            yield worker.call(Stage.RUN, "reference_result")
    print(f"{passes} passes over the weights, of at most {MOST_ROWS} rows")


def alike(one: Any, other: Any) -> bool:
    """Whether two answers are the same to the last bit."""
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


def difference(first: list[Any], second: list[Any]) -> str:
    """The largest difference of logits, and of yardsticks."""
    worst = {True: 0.0, False: 0.0}
    for one, other in zip(first, second, strict=True):
        for key in one:
            worst[key == "logits"] = max(worst[key == "logits"], float(np.abs(one[key] - other[key]).max()))
    return f"logits within {worst[True]:.1e}, yardsticks within {worst[False]:.1e}"


if __name__ == "__main__":
    main()
