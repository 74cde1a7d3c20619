"""The whole battery: every fault on every station, one trial after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import torch

from detection.battery import protocol_faults
from detection.battery.bases import copied, exported, loaded
from detection.battery.bench import Bench, Station
from detection.battery.device_faults import device_faults
from detection.battery.emulated import FURTHER, OTHERS, Device, Fault
from detection.battery.graph_faults import graph_edits
from detection.battery.onnx_files import OnnxFiles
from detection.battery.openvino_files import OpenVinoFiles
from detection.battery.trial import Answers, Cause, Planted, Trial
from detection.battery.weight_faults import weight_edits
from harness import compare
from harness.arithmetic import Arithmetic, CachePrecision, Weights, caches_up_to
from harness.compare import Outcome
from harness.reference.artifact import assemble
from harness.reference.kernels import Variant
from harness.reference.model import Phi3, TokenSequence
from harness.target import Precision
from harness.yardstick import judge_regret

TARGETS = {"openvino": "openvino:cpu:int4", "ort-genai": "ort-genai:cpu:int4"}
# What an ONNX graph says by its edges only, which nobody reads: it shows in what the device computes.
_UNSTATED = (("ort-genai", "gate and up exchanged"), ("ort-genai", "layer skipped"))
# What is a fault at a finer precision, and the arithmetic itself at this one.
_HONEST = {Precision.BF16: (("norm in low precision", "BF16"),)}
_FEW = (("scale of one group", "2 %"), ("row duplicated in the LM head", "rare token"), ("rotary base", "1 %"))
_FILES: dict[str, type[OpenVinoFiles | OnnxFiles]] = {"openvino": OpenVinoFiles, "ort-genai": OnnxFiles}
# Emulated devices, one of each class of rounding: how they compute, and what their runtime permits itself.
_U8 = caches_up_to(CachePrecision.U8)
CLASSES = {
    "fp32": (Arithmetic(), tuple(Arithmetic(cache=c) for c in caches_up_to(CachePrecision.F16))),
    "fp32+a8": (
        Arithmetic(Precision.FP32, 32, CachePrecision.U8),
        tuple(Arithmetic(Precision.FP32, b, c) for b, c in itertools.product((0, 32), _U8)),
    ),
    "bf16+a8": (
        Arithmetic(Precision.BF16, 32, CachePrecision.U8),
        tuple(Arithmetic(Precision.BF16, b, c) for b, c in itertools.product((0, 32), _U8)),
    ),
    "bf16": (
        Arithmetic(Precision.BF16, 0, CachePrecision.U8),
        tuple(Arithmetic(Precision.BF16, 0, c, w) for c, w in itertools.product(_U8, (Weights.EXACT, Weights.BF16))),
    ),
}


def artifact_trials(bench: Bench, backend: str, *, few: bool = False) -> Iterator[Trial]:
    """Faults of weights and of the graph, planted in an artifact that a real runtime then computes with."""
    target = TARGETS[backend]
    source = exported(bench, target)
    base = copied(bench, source, f"{backend}-clean")
    session = loaded(target, base)
    station = Station(bench, bench.weights(backend, base), bench.ask(session), Precision.INT4)
    session.close()
    yield _too_coarse(bench, target, base, station.clean)
    edits = [*weight_edits(bench.checkpoint, backend), *graph_edits()]
    for number, edit in enumerate(edits):
        if few and (edit.name, edit.strength) not in _FEW:
            continue
        folder = copied(bench, source, f"{backend}-{number}")
        edit.change(_FILES[backend](folder))
        expected = Cause.IMPLEMENTATION if (backend, edit.name) in _UNSTATED else Cause.AUDIT
        planted = Planted(edit.name, edit.strength, target, expected)
        yield _judge_artifact(bench, station, planted, backend, target, folder)


def _too_coarse(bench: Bench, target: str, artifact: Path, clean: Answers) -> Trial:
    """An INT4 artifact handed in as INT8: whole in itself, and not good enough."""
    station = Station(bench, bench.weights(target.split(":")[0], artifact), clean, Precision.INT8)
    trial = station.judge(
        Planted("quantised more coarsely than asked", "INT4 for INT8", target, Cause.QUANTISATION), clean
    )
    return msgspec.structs.replace(trial, effect=None)


def _judge_artifact(bench: Bench, station: Station, planted: Planted, backend: str, target: str, folder: Path) -> Trial:
    finding = bench.audit(backend, folder)
    try:
        session = loaded(target, folder)
    except Exception as error:  # noqa: BLE001 - runtimes raise all kinds for an artifact that is not whole
        said = finding or f"not loaded: {type(error).__name__}"
        return Trial(planted, {Cause.AUDIT: said}, None, {})
    try:
        answers = bench.ask(session)
    finally:
        session.close()
    weights = None if finding else bench.weights(backend, folder)
    return station.judge(planted, answers, finding=finding, weights=weights)


class Emulated:
    """The stations of emulated devices on one artifact's weights."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self._stored = bench.weights("openvino", exported(bench, TARGETS["openvino"]))
        self.weights = assemble(self._stored, bench.checkpoint.config)
        torch.set_num_threads(1)

    def answers(self, name: str, fault: Fault) -> Answers:
        """What a device of a class gives with a fault."""
        arithmetic, permitted = CLASSES[name]
        device = Device(self.bench.checkpoint.config, self.weights, fault)
        return device.answers(self.bench.cases, arithmetic, permitted)

    def station(self, name: str) -> Station:
        """The station of a class, and its device without a fault."""
        found = Station(self.bench, self._stored, self.answers(name, Fault()), Precision.INT4)
        found.noise = max(found.effect(self.honest(name, other)) for other in (*OTHERS, *FURTHER))
        return found

    def honest(self, name: str, variant: Variant) -> Answers:
        """What an honest device of a class gives that computes in another way."""
        arithmetic, permitted = CLASSES[name]
        model = Phi3(self.bench.checkpoint.config, self.weights)
        fed = [TokenSequence(case.sequence, len(case.tokens)) for case in self.bench.cases]
        return Answers([model.logits([one], arithmetic, variant)[0].numpy() for one in fed], permitted)

    def trials(self, name: str, *, few: bool = False) -> Iterator[Trial]:
        """Faults of kernels, caches, precision and of what is handed back."""
        station = self.station(name)
        place = f"emulated, {name}"
        for number, (fault_name, strength, fault) in enumerate(device_faults()):
            computing = CLASSES[name][0]
            own = fault.arithmetic and fault.arithmetic(computing) == computing
            if (few and number % 12) or own or (fault_name, strength) in _HONEST.get(computing.operators, ()):
                continue
            planted = Planted(fault_name, strength, place, Cause.IMPLEMENTATION)
            yield station.judge(planted, self.answers(name, fault))
        clean = station.clean
        for fault_name, strength, cause, change in protocol_faults.logit_faults():
            wrong = [change(x, n) for x, n in zip(clean.logits, self.bench.prefills, strict=True)]
            yield station.judge(
                Planted(fault_name, strength, place, cause), Answers(wrong, clean.permitted, clean.products)
            )
        yield from self._choices(station, place)

    def _choices(self, station: Station, place: str) -> Iterator[Trial]:
        """Right logits, wrong choice among them: found by regret."""
        bench = self.bench
        inference, _ = station.apart(station.clean, station.references)
        arithmetic = inference.arithmetic
        limit = bench.policy.implementation_of(arithmetic.compute_class).regret
        for rank in (5, 2):
            case = max(bench.cases, key=lambda c: len(c.continuation))
            prefill, tokens = len(case.tokens), list(case.continuation)
            reference = station.references.logits(case.sequence, prefill, arithmetic)[prefill - 1 : -1]
            margins = np.sort(reference, axis=1)[:, -1] - np.sort(reference, axis=1)[:, -rank]
            at = int(np.argsort(margins)[len(margins) // 2])
            tokens[at] = int(np.argsort(reference[at])[-rank])
            sequence = [*case.tokens, *tokens]
            choosing = slice(prefill - 1, len(sequence) - 1)
            verdict = judge_regret(
                station.references.logits(sequence, prefill, arithmetic)[choosing],
                tokens,
                [y[choosing] for y in station.references.yardsticks(sequence, prefill, arithmetic).values()],
                inference.pooled.get("decode_worst", 0.0),
                limit,
            )
            failed = {} if verdict.outcome is Outcome.PASS else {Cause.IMPLEMENTATION: verdict.message.splitlines()[0]}
            strength = f"rank {rank}, {margins[at]:.2g} logits down"
            yield Trial(
                Planted("another token chosen than the best", strength, place, Cause.IMPLEMENTATION), failed, None, {}
            )


def form_trials(bench: Bench) -> Iterator[Trial]:
    """Answers of a wrong form, and evidence of another device."""
    ended = [case for case in bench.cases if case.ended and len(case.continuation) > 8]
    case = max(ended, key=lambda c: len(c.continuation))
    for name, strength, tokens in protocol_faults.answer_faults(
        case.tokens, case.continuation, bench.end_tokens, case.new_tokens
    ):
        verdict = compare.judge_form(tokens, case.new_tokens, bench.end_tokens)
        message = verdict.message
        if verdict.outcome is Outcome.PASS and compare.is_echo(
            case.tokens, tokens, case.continuation, bench.end_tokens
        ):
            message = "the answer is the prompt over again"
        failed = {Cause.PROTOCOL: message} if message else {}
        yield Trial(Planted(name, strength, "answer", Cause.PROTOCOL), failed, None, {})
    for name, strength, kind, evidence, index in protocol_faults.evidence_faults():
        verdict = compare.judge_evidence(evidence, kind, bench.policy, index)
        failed = {Cause.EVIDENCE: verdict.message} if verdict.outcome is not Outcome.PASS else {}
        yield Trial(Planted(name, strength, "evidence", Cause.EVIDENCE), failed, None, {})
