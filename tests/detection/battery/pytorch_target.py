"""PyTorch as a target: faults planted in the modules of transformers' Phi-3, and legitimate ways of running it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import msgspec
import torch

from detection.battery.bases import loaded
from detection.battery.bench import Bench, Station
from detection.battery.trial import Answers, Cause, Planted, Trial
from harness.target import Precision

PRECISIONS = (Precision.FP32, Precision.BF16)


def trials(bench: Bench, precision: Precision) -> Iterator[Trial]:
    """Every fault at one precision."""
    target, station = _station(bench, precision)
    for name, strength, plant in _faults():
        planted = Planted(name, strength, target, Cause.IMPLEMENTATION)
        yield station.judge(planted, _answers(bench, target, plant))


def variants(bench: Bench, precision: Precision) -> Iterator[Trial]:
    """Other kernels of attention and other numbers of threads."""
    target, station = _station(bench, precision)
    ways: list[tuple[str, Callable[[Any], None], int]] = [
        ("eager attention", lambda model: model.set_attn_implementation("eager"), 1),
        ("sdpa attention", lambda model: model.set_attn_implementation("sdpa"), 1),
        ("two threads", lambda model: None, 2),
    ]
    for name, change, threads in ways:
        torch.set_num_threads(threads)
        try:
            answers = _answers(bench, target, change)
        finally:
            torch.set_num_threads(1)  # as the references in this process are computed
        trial = station.judge(Planted(f"pytorch {name}", "", target, Cause.IMPLEMENTATION), answers)
        yield msgspec.structs.replace(trial, effect=None)


def _station(bench: Bench, precision: Precision) -> tuple[str, Station]:
    target = f"pytorch:cpu:{precision.value}"
    weights = bench.weights("pytorch", bench.checkpoint.path)
    station = Station(bench, weights, _answers(bench, target, lambda model: None), precision)
    station.noise = station.effect(_answers(bench, target, lambda model: model.set_attn_implementation("eager")))
    return target, station


def _answers(bench: Bench, target: str, change: Callable[[Any], None]) -> Answers:
    session = loaded(target, bench.checkpoint.path)
    try:
        with torch.no_grad():
            change(session._model)  # type: ignore[attr-defined]
        return bench.ask(session)
    finally:
        session.close()


def _faults() -> Iterator[tuple[str, str, Callable[[Any], None]]]:
    for share in (10, 1, 0.1):
        yield "kernel's rotary base", f"{share} %", partial(_rotary, factor=1 + share / 100)
    for share in (10, 1):
        yield "kernel's scale of attention", f"{share} %, layer 3", partial(_attention, share=share)
    for factor in (1000, 10):
        yield "kernel's epsilon", f"x {factor}", partial(_epsilon, factor=factor)
    yield "window ignored by the kernel", "every layer", partial(_window, by=None)
    for by in (16, 1):
        yield "window off in the kernel", f"+{by}", partial(_window, by=by)
    yield "kernel skips a layer", "3", _skip
    yield "gate and up exchanged by the kernel", "layer 3", _exchange
    yield "SiLU by GELU", "layer 3", _gelu


def _rotary(model: Any, factor: float) -> None:
    frequencies = model.model.rotary_emb.inv_freq
    steps = torch.arange(frequencies.numel(), device=frequencies.device) / frequencies.numel()
    frequencies.mul_(factor**-steps)


def _attention(model: Any, share: float) -> None:
    model.model.layers[3].self_attn.scaling *= 1 + share / 100


def _epsilon(model: Any, factor: float) -> None:
    for module in model.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon *= factor


def _window(model: Any, by: int | None) -> None:
    window = None if by is None else model.config.sliding_window + by
    model.config.sliding_window = window
    for layer in model.model.layers:
        if hasattr(layer.self_attn, "sliding_window"):
            layer.self_attn.sliding_window = window


def _skip(model: Any) -> None:
    layer = model.model.layers[3]
    for product in (layer.self_attn.o_proj, layer.mlp.down_proj):
        product.weight.zero_()


def _exchange(model: Any) -> None:
    weight = model.model.layers[3].mlp.gate_up_proj.weight
    gate, up = weight.chunk(2)
    weight.copy_(torch.cat([up, gate]))


def _gelu(model: Any) -> None:
    model.model.layers[3].mlp.activation_fn = torch.nn.GELU()
