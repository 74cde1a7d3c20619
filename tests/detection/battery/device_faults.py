"""Faults of kernels, caches and precision, for the emulated device: names, strengths and hooks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch import Tensor

from detection.battery.emulated import Fault
from harness.arithmetic import CachePrecision
from harness.reference.kernels import Kernels
from harness.reference.model import Tap
from harness.reference.weights import Weight
from harness.target import Precision

WINDOW = 256
Named = tuple[str, str, Fault]
Attend = Callable[[Kernels, Tensor, Tensor, Tensor, Tensor], Tensor]


def device_faults() -> Iterator[Named]:
    """Every fault, the strongest first where there are several."""
    yield from _attention()
    yield from _rotary()
    yield from _cache()
    yield from _arithmetic()
    yield from _structure()


def _layers(name: str, strength: str, **hooks: Any) -> Iterator[Named]:
    yield name, f"{strength}every layer", Fault(**hooks)
    yield name, f"{strength}layer 4", Fault(layer=4, **hooks)


def _attention() -> Iterator[Named]:
    yield from _layers("mask leaks one position", "", visible=lambda v, d: v | (d == -1))
    yield from _layers("window ignored by the kernel", "", visible=lambda v, d: d >= 0)
    for step in (16, 1, -1):
        size = WINDOW + step
        yield "window off in the kernel", f"{step:+}", Fault(visible=lambda v, d, w=size: (d >= 0) & (d < w))
    yield from _layers("a token does not see itself", "", visible=_blind)
    yield from _layers("softmax without max", "exp in FP16, ", attend=_no_maximum)
    for share in (10, 1, 0.1):
        yield "kernel's scale of attention", f"{share} %", Fault(attend=_scaled(1 + share / 100))
    yield from _layers("head mapping", "repeated as a whole, ", repeat=lambda x, r: x.repeat(r, 1, 1))
    yield "head mapping", "two heads exchanged, layer 4", Fault(layer=4, repeat=_exchanged)
    for limit in (3, 6):
        yield "scores saturate", f"at {limit}", Fault(attend=_saturated(limit))


def _rotary() -> Iterator[Named]:
    for share in (10, 3, 1, 0.1):
        factor = 1 + share / 100
        yield "kernel's rotary base", f"{share} %", Fault(angles=lambda a, p, f=factor: _base(a, f))
    for share in (1, 0.1):
        yield "kernel's rotary frequencies", f"{share} %", Fault(angles=lambda a, p, s=share: a * (1 + s / 100))
    yield "rotary positions off by one in decode", "", Fault(angles=_late)
    for name, dtype in (("BF16", torch.bfloat16), ("FP16", torch.float16)):
        yield "rotary angles in low precision", name, Fault(angles=lambda a, p, d=dtype: a.to(d).to(torch.float32))


def _cache() -> Iterator[Named]:
    yield from _layers("cache: stale entry", "the last but 2, ", cache=lambda x: _copy_entry(x, -3, -4))
    yield from _layers("cache: one position off", "", cache=lambda x: x.roll(1, dims=1))
    yield "cache: lost at a length", "all before 48", Fault(cache=lambda x: _lost(x, 48))
    yield "cache: lost at a length", "the first entry", Fault(cache=lambda x: _lost(x, 1))
    yield "cache: mixed between prompts", "every layer", Fault(cache=_mixed(12))
    yield "cache: mixed between prompts", "1 position", Fault(cache=_mixed(1))
    yield "cache: wrong after the window", "every layer", Fault(cache=_ring)
    yield "cache: wrong after the window", "layer 4", Fault(layer=4, cache=_ring)
    yield "cache: heads exchanged", "layer 4", Fault(layer=4, cache=lambda x: x[[1, 0, *range(2, x.shape[0])]])
    yield "cache: coarser than stated", "4 bits", Fault(cache=lambda x: _coarse(x, 15))
    yield "cache: coarser than stated", "7 bits", Fault(cache=lambda x: _coarse(x, 127))


def _arithmetic() -> Iterator[Named]:
    for name, dtype in (("BF16", torch.bfloat16), ("FP16", torch.float16)):
        yield "norm in low precision", name, Fault(norm=_coarse_norm(dtype))
    yield "kernel's epsilon", "x 1000", Fault(norm=lambda k, x, w, e: Kernels.rms_norm(k, x, w, e * 1000))
    yield "kernel's epsilon", "x 10", Fault(norm=lambda k, x, w, e: Kernels.rms_norm(k, x, w, e * 10))
    yield "norm centres as LayerNorm does", "every layer", Fault(norm=_layer_norm)
    for limit in (1, 4):
        yield "overflow saturates in the MLP", f"at {limit}", Fault(swiglu=_clamped(limit))
    yield from _layers("SiLU by GELU", "", swiglu=_gelu)
    yield from _layers("gate and up exchanged by the kernel", "", swiglu=_exchanged_halves)
    for count in (8, 1):
        yield "product leaves out last columns", f"{count}", Fault(product=lambda x, c=count: _cut(x, c))
    yield "products in FP16", "summed in FP16", Fault(product=lambda x: x.to(torch.float16).to(torch.float32))
    yield (
        "wrong precision",
        "BF16 operators",
        Fault(arithmetic=lambda a: msgspec.structs.replace(a, operators=Precision.BF16)),
    )
    yield (
        "wrong precision",
        "int8 activations by row",
        Fault(arithmetic=lambda a: msgspec.structs.replace(a, block=768)),
    )
    yield (
        "wrong precision",
        "u8 cache unstated",
        Fault(arithmetic=lambda a: msgspec.structs.replace(a, cache=CachePrecision.U8)),
    )


def _structure() -> Iterator[Named]:
    for layer in (1, 4):
        yield "kernel skips a layer", f"layer {layer}", Fault(order=lambda k, w=layer: () if k == w else (k,))
        yield "layer run twice", f"layer {layer}", Fault(order=lambda k, w=layer: (k, k) if k == w else (k,))
    yield "layers exchanged", "2 and 3", Fault(order=lambda k: ({2: 3, 3: 2}.get(k, k),))
    for share in (1, 0.1):
        yield "residual stream scaled", f"{share} % at layer 3", Fault(tap=_scaled_stream(1 + share / 100))
    for layer in (1, 4):
        yield "residual stream scaled", f"1 % after layer {layer}", Fault(tap=_scaled_stream(1.01, f"{layer}.mlp"))
    yield "garbage at one position", "layer 2", Fault(tap=_garbage)
    for share in (5, 1, 0.1):
        yield "weights read with noise", f"{share} %, one tensor", Fault(weights=lambda w, s=share: _noisy(w, s / 100))
    yield "scale of the neighbouring group read", "one row", Fault(weights=_neighbour)
    yield "scale of the neighbouring group read", "one tensor", Fault(weights=_neighbours)
    yield "stale compiled model", "of a channel-wise export", Fault(weights=_earlier_export)
    yield "embedding of the next token", "every layer", Fault(weights=_next_embedding)


def _blind(visible: Tensor, distance: Tensor) -> Tensor:
    seen = visible & (distance != 0)
    seen[0, 0] = True
    return seen


def _no_maximum(kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    grown = torch.exp(scores).to(torch.float16).clamp(max=65504.0).to(torch.float32).masked_fill(~visible, 0.0)
    total = grown.sum(-1, keepdim=True).to(torch.float16).clamp(max=65504.0).to(torch.float32)
    return kernels.round((grown / total.clamp(min=6e-8)) @ value)


def _scaled(factor: float) -> Attend:
    return lambda kernels, query, *rest: Kernels.attend(kernels, query * factor, *rest)


def _saturated(limit: float) -> Attend:
    def attend(kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).clamp(-limit, limit)
        return kernels.round(torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1) @ value)

    return attend


def _exchanged(x: Tensor, repeats: int) -> Tensor:
    repeated = x.repeat_interleave(repeats, 0)
    return repeated[[2, 1, 0, *range(3, repeated.shape[0])]]


def _base(angles: Tensor, factor: float) -> Tensor:
    r = angles.shape[1]
    return angles * factor ** (-torch.arange(r, dtype=torch.float32) / r)


def _late(angles: Tensor, prefill: int) -> Tensor:
    changed = angles.clone()
    changed[prefill:] += angles[1]
    return changed


def _copy_entry(x: Tensor, target: int, source: int) -> Tensor:
    x[:, target] = x[:, source]
    return x


def _lost(x: Tensor, count: int) -> Tensor:
    if x.shape[1] > count:
        x[:, :count] = 0
    return x


def _mixed(count: int) -> Callable[[Tensor], Tensor]:
    held: list[Tensor] = []

    def cache(x: Tensor) -> Tensor:
        own = x.clone()
        other = held[-2] if len(held) > 1 else own.flip(1)
        n = min(count, x.shape[1], other.shape[1])
        x[:, :n] = other[:, :n]
        held.append(own)
        del held[:-2]
        return x

    return cache


def _ring(x: Tensor) -> Tensor:
    if x.shape[1] > WINDOW:
        over = x.shape[1] - WINDOW
        x[:, over : over + 8] = x[:, :8]  # the oldest that are seen have not been written over
    return x


def _coarse(x: Tensor, steps: int) -> Tensor:
    least, most = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    scale = ((most - least) / steps).clamp(min=1e-6)
    return torch.round((x - least) / scale) * scale + least


def _coarse_norm(dtype: torch.dtype) -> Callable[[Kernels, Tensor, Tensor, float], Tensor]:
    def norm(kernels: Kernels, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        mean = x.to(dtype).pow(2).mean(-1, keepdim=True, dtype=dtype) + epsilon
        return kernels.between(weight * (x * torch.rsqrt(mean).to(torch.float32)))

    return norm


def _layer_norm(kernels: Kernels, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    return Kernels.rms_norm(kernels, x - x.mean(-1, keepdim=True), weight, epsilon)


def _clamped(limit: float) -> Callable[[Kernels, Tensor], Tensor]:
    return lambda kernels, x: Kernels.swiglu(kernels, x).clamp(-limit, limit)


def _gelu(kernels: Kernels, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return kernels.between(up * torch.nn.functional.gelu(gate))


def _exchanged_halves(kernels: Kernels, gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return Kernels.swiglu(kernels, torch.cat([up, gate], dim=-1))


def _cut(x: Tensor, count: int) -> Tensor:
    x = x.clone()
    x[:, -count:] = 0
    return x


def _scaled_stream(factor: float, sublayer: str = "3.self_attn") -> Tap:
    return lambda index, place, x: x * factor if place == f"model.layers.{sublayer}" else None


def _garbage(index: int, place: str, x: Tensor) -> Tensor | None:
    if place != "model.layers.2.mlp":
        return None
    x = x.clone()
    x[x.shape[0] // 2] = x[0]
    return x


def _replace(weights: dict[str, Weight], name: str, values: Tensor) -> None:
    weights[name] = Weight(values, weights[name].quantised)


def _noisy(weights: dict[str, Weight], share: float) -> None:
    name = "model.layers.2.mlp.down_proj.weight"
    values = weights[name].values
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(1))
    _replace(weights, name, values * (1 + share * noise))


def _earlier_export(weights: dict[str, Weight]) -> None:
    """The layers' weights as another export of the same checkpoint has them."""
    for name, weight in list(weights.items()):
        if weight.quantised and name.startswith("model.layers."):
            scale = weight.values.abs().amax(-1, keepdim=True) / 7.0
            _replace(weights, name, torch.round(weight.values / scale) * scale)


def _neighbour(weights: dict[str, Weight]) -> None:
    name = "model.layers.3.mlp.down_proj.weight"
    values = weights[name].values.clone()
    values[37] *= 1.15
    _replace(weights, name, values)


def _neighbours(weights: dict[str, Weight]) -> None:
    name = "model.layers.3.mlp.down_proj.weight"
    values = weights[name].values
    groups = values.reshape(values.shape[0], -1, 128)
    size = groups.abs().amax(-1, keepdim=True)
    _replace(weights, name, (groups / size * size.roll(1, dims=1)).reshape(values.shape))


def _next_embedding(weights: dict[str, Weight]) -> None:
    name = "model.embed_tokens.weight"
    _replace(weights, name, weights[name].values.roll(1, dims=0))
