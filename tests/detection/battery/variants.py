"""Legitimate ways of exporting and of running, none of which may raise an alarm."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np

from detection.battery.bases import copied, exported, loaded
from detection.battery.bench import Bench, Station, products_of
from detection.battery.campaign import TARGETS, Emulated
from detection.battery.emulated import OTHERS
from detection.battery.trial import Answers, Cause, Planted, Trial
from harness.backend import Recipe, Session, load_backend, teacher_force
from harness.backends.openvino_recipes import RECIPES
from harness.target import Precision, Target

_INT4 = ("--weight-format", "int4", "--sym", "--group-size", "128")
_DATA = ("--dataset", "auto", "--num-samples", "32")
# The official exporters' other schemes: name, precision, options.
OPENVINO = (
    ("int4 g128 r0.6", Precision.INT4, (*_INT4, "--ratio", "0.6")),
    ("int4 g128 r1.0", Precision.INT4, (*_INT4, "--ratio", "1.0")),
    ("int4 channel", Precision.INT4, ("--weight-format", "int4", "--sym", "--group-size", "-1", "--ratio", "1.0")),
    ("int4 asymmetric", Precision.INT4, ("--weight-format", "int4", "--group-size", "128", "--ratio", "1.0")),
    ("int4 g64 all layers", Precision.INT4, (*_INT4[:-1], "64", "--ratio", "1.0", "--all-layers")),
    ("int4 AWQ", Precision.INT4, (*_INT4, "--ratio", "1.0", "--awq")),
    ("int4 scale estimation", Precision.INT4, (*_INT4, "--ratio", "1.0", "--scale-estimation", *_DATA)),
    ("int4 AWQ, scale estimation", Precision.INT4, (*_INT4, "--ratio", "1.0", "--awq", "--scale-estimation", *_DATA)),
    ("int4 GPTQ", Precision.INT4, (*_INT4, "--ratio", "1.0", "--gptq", *_DATA)),
    ("int8", Precision.INT8, ("--weight-format", "int8")),
    ("fp16", Precision.FP16, ("--weight-format", "fp16")),
    ("fp32", Precision.FP32, ("--weight-format", "fp32")),
)  # fmt: skip
ORT = (
    ("int4", Precision.INT4, ()),
    ("int4 accuracy level 1", Precision.INT4, ("accuracy_level=1",)),
    ("int4 block 128", Precision.INT4, ("block_size=128",)),
    ("int4 asymmetric", Precision.INT4, ("is_symmetric=false",)),
    ("int4 LM head in 8 bits", Precision.INT4, ("algo_config=rtn_last",)),
    ("int4 k-quant mixed", Precision.INT4, ("algo_config=k_quant_mixed",)),
    ("int8", Precision.INT8, ()),
    ("fp32", Precision.FP32, ()),
)


def export_trials(bench: Bench) -> Iterator[Trial]:
    """The official exports of the bundled checkpoint, on their runtime's defaults."""
    for backend, schemes in (("openvino", OPENVINO), ("ort-genai", ORT)):
        for name, precision, options in schemes:
            target = f"{backend}:cpu:{precision.value}"
            folder = copied(bench, exported(bench, target, recipe(target, name, options)), "variant")
            yield _judged(bench, backend, target, folder, f"{backend} {name}", bench.ask)


def recipe(target: str, name: str, options: tuple[str, ...]) -> Recipe:
    """The exporter's recipe with those options; the backend's own where it has one of the same."""
    parsed = Target.parse(target)
    default = load_backend(parsed.backend).recipe(parsed, None)
    assert default is not None
    if parsed.backend == "ort-genai":
        options = (*default.options, *(("--extra_options", *options) if options else ()))
        name = f"{name}-cpu"
    own = next((recipe for recipe in (default, *RECIPES) if recipe.options == options), None)
    return own or msgspec.structs.replace(default, name=name.replace(" ", "-").replace(",", ""), options=options)


def running_trials(bench: Bench) -> Iterator[Trial]:
    """Ways of running the two INT4 artifacts."""
    openvino = exported(bench, TARGETS["openvino"])
    ort = copied(bench, exported(bench, TARGETS["ort-genai"]), "running")
    ways: list[tuple[str, str, Path, dict[str, str], Callable[[Session], Answers]]] = [
        ("openvino", "ACCURACY mode", openvino, {"EXECUTION_MODE_HINT": "ACCURACY"}, bench.ask),
        ("openvino", "FP32 hint", openvino, {"INFERENCE_PRECISION_HINT": "f32"}, bench.ask),
        ("openvino", "one thread", openvino, {"INFERENCE_NUM_THREADS": "1"}, bench.ask),
        ("openvino", "two threads", openvino, {"INFERENCE_NUM_THREADS": "2"}, bench.ask),
        ("ort-genai", "one thread", _threads(ort, 1), {}, bench.ask),
        ("ort-genai", "two threads", _threads(ort, 2), {}, bench.ask),
    ]
    for backend, folder in (("openvino", openvino), ("ort-genai", ort)):
        ways += [
            (backend, "reloaded", folder, {}, bench.ask),
            (backend, "after other prompts", folder, {}, lambda s: (bench.ask(s), bench.ask(s))[1]),
            (backend, "other order of prompts", folder, {}, lambda s: _reversed(bench, s)),
            (backend, "chunked prefill", folder, {}, lambda s: _chunked(bench, s)),
        ]
    for backend, name, folder, options, ask in ways:
        yield _judged(bench, backend, TARGETS[backend], folder, f"{backend} {name}", ask, options)


def _threads(artifact: Path, number: int) -> Path:
    """A copy of an artifact of ONNX Runtime GenAI that asks for so many threads."""
    folder = artifact.with_name(f"threads-{number}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(artifact, folder)
    path = folder / "genai_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model"]["decoder"]["session_options"]["intra_op_num_threads"] = number
    path.write_text(json.dumps(config), encoding="utf-8")
    return folder


def emulated_trials(emulated: Emulated, classes: Sequence[str]) -> Iterator[Trial]:
    """Honest devices other than the one that faults are planted in."""
    for name in classes:
        station = emulated.station(name)
        for other in OTHERS:
            given = emulated.honest(name, other)
            yield station.judge(Planted(other.name, "", f"emulated, {name}", Cause.IMPLEMENTATION), given)


def _judged(
    bench: Bench, backend: str, target: str, folder: Path, name: str, ask: Callable[[Session], Answers],
    options: dict[str, str] | None = None,
) -> Trial:  # fmt: skip
    session = loaded(target, folder, options)
    try:
        answers = ask(session)
    finally:
        session.close()
    station = Station(bench, bench.weights(backend, folder), answers, Target.parse(target).precision)
    finding = bench.audit(backend, folder)
    trial = station.judge(Planted(name, "", target, Cause.IMPLEMENTATION), answers, finding=finding)
    # Held against itself it has no effect, nor twice its own KL.
    return msgspec.structs.replace(trial, effect=None, rules={**trial.rules, "KL doubled": None})


def _reversed(bench: Bench, session: Session) -> Answers:
    found = [teacher_force(session, np.asarray(c.tokens), np.asarray(c.continuation)) for c in bench.cases[::-1]]
    return Answers(found[::-1], session.info.permitted, products_of(session))


def _chunked(bench: Bench, session: Session) -> Answers:
    found = []
    for case in bench.cases:
        session.reset()
        tokens = np.asarray(case.tokens)
        rows = [session.append(tokens[at : at + 96]) for at in range(0, tokens.size, 96)]
        rows += [session.append(np.asarray([token])) for token in case.continuation]
        found.append(np.concatenate(rows))
    return Answers(found, session.info.permitted, products_of(session))
