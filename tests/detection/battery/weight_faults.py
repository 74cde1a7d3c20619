"""Faults of weights and their packing: each changes one tensor of an artifact as an exporter or a driver might."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import methodcaller
from typing import Any

import msgspec
import numpy as np

from detection.battery.onnx_files import OnnxFiles
from detection.battery.openvino_files import OpenVinoFiles
from detection.battery.tensor import Tensor
from harness.checkpoint import Checkpoint
from harness.phi3_float64 import Weights

Files = OpenVinoFiles | OnnxFiles
Change = Callable[[Files], None]

DOWN, HEAD = "model.layers.3.mlp.down_proj.weight", "lm_head.weight"
QKV, EMBEDDING = "model.layers.1.self_attn.qkv_proj.weight", "model.embed_tokens.weight"
ROW, GROUP = 37, 2
ONE, ALL = slice(GROUP, GROUP + 1), slice(None)
# Two tokens and more that the goldens' prompts and answers do not have.
RARE = (1913, 1931)


class Edit(msgspec.Struct, frozen=True):
    """A change of an artifact on disk, with its name and strength."""

    name: str
    strength: str
    change: Change


def weight_edits(checkpoint: Checkpoint, backend: str) -> Iterator[Edit]:
    """Every fault of weights for artifacts of a backend, the strongest first where there are several."""
    for share in (5, 2, 1, 0.5):
        factor = 1 + share / 100
        yield _of("scale of one group", f"{share} %", DOWN, _scale, ONE, factor)
        yield _of("scale of one channel", f"{share} %", QKV, _scale, ALL, factor)
    yield _of("sign of one group's scale", "", DOWN, _scale, ONE, -1.0)
    yield _of("a bit of a scale's exponent", "one group", DOWN, _scale, ONE, 2.0)
    yield _of("scales shifted by a group", "one row", DOWN, _shift_scales)
    yield _of("codes shifted by a group", "one row", DOWN, _shift_codes)
    yield _of("nibbles exchanged", "whole tensor", DOWN, _nibbles, ALL)
    yield _of("nibbles exchanged", "one row", DOWN, _nibbles, slice(ROW, ROW + 1))
    for size in (32, 16, 8):
        yield _of("tile transposed", f"{size} x {size}", DOWN, _tile, size)
    yield Edit("layers' weights exchanged", "3 and 4", _exchange_layers)
    yield _of("rows exchanged", "two", DOWN, _swap, 5, 9)
    yield _of("rows exchanged", "two of queries", QKV, _swap, 5, 9)
    yield _of("row duplicated in the LM head", "rare token", HEAD, _copy, *RARE)
    yield _of("row zeroed in the LM head", "rare token", HEAD, _zero_row)
    yield _of("another layer taken for the LM head", "as many rows as it has", HEAD, _taken_for_head, checkpoint)
    for share in (1.0, 0.1):
        how = "whole tensor" if share == 1.0 else "a tenth of the rows"
        yield _of("rounding by floor", how, DOWN, _floor, checkpoint, share)
    for count in (64, 8, 1):
        yield _of("codes off by one", f"{count} in a group", DOWN, _nudge, count)
    zero = "model.layers.1.self_attn.o_proj.weight"
    if backend == "openvino":
        for step in (4, 1):
            yield _of("zero point of one channel", f"{step} of 255", zero, _zero_point, step)
        yield _of("embedding rows exchanged", "two rare", EMBEDDING, _swap, *RARE)
    else:
        yield Edit("embedding rows exchanged", "two rare", _swap_embedding)
    for share in (10, 1):
        yield Edit("norm's weight", f"one channel, {share} %", methodcaller("scale_norm", 3, 17, 1 + share / 100))


def _of(name: str, strength: str, tensor: str, change: Callable[..., None], *given: Any) -> Edit:
    def edit(files: Files) -> None:
        held = files.tensor(tensor)
        change(held, *given)
        files.store(held)

    return Edit(name, strength, edit)


def _exchange_layers(files: Files) -> None:
    first, second = files.tensor(DOWN), files.tensor(DOWN.replace(".3.", ".4."))
    first.name, second.name = second.name, first.name
    files.store(first)
    files.store(second)


def _scale(tensor: Tensor, groups: slice, factor: float) -> None:
    tensor.scales[ROW, groups] = tensor.scales[ROW, groups] * np.asarray(factor, dtype=tensor.scales.dtype)


def _shift_scales(tensor: Tensor) -> None:
    tensor.scales[ROW] = np.roll(tensor.scales[ROW], 1)


def _shift_codes(tensor: Tensor) -> None:
    tensor.codes[ROW] = np.roll(tensor.codes[ROW], tensor.group)


def _nibbles(tensor: Tensor, rows: slice) -> None:
    held = tensor.codes[rows]
    tensor.codes[rows] = held.reshape(held.shape[0], -1, 2)[:, :, ::-1].reshape(held.shape)


def _tile(tensor: Tensor, size: int) -> None:
    tensor.codes[:size, :size] = tensor.codes[:size, :size].T.copy()


def _swap(tensor: Tensor, first: int, second: int) -> None:
    for held in (tensor.codes, tensor.scales, tensor.zeros):
        if held is not None:
            held[[first, second]] = held[[second, first]]


def _copy(tensor: Tensor, source: int, target: int) -> None:
    for held in (tensor.codes, tensor.scales, tensor.zeros):
        if held is not None:
            held[target] = held[source]


def _zero_row(tensor: Tensor) -> None:
    tensor.scales[RARE[0]] = 0


def _taken_for_head(tensor: Tensor, checkpoint: Checkpoint) -> None:
    """What an exporter that looks for the LM head by its width may take: here gate and up of the first layer."""
    weight = Weights(checkpoint)["model.layers.0.mlp.gate_up_proj.weight"]
    rows = weight.shape[0]
    groups = weight.reshape(rows, tensor.scales.shape[1], -1)
    most = (1 << (tensor.bits - 1)) - 1
    scales = np.abs(groups).max(axis=-1) / most
    zero = 0 if tensor.signed else 1 << (tensor.bits - 1)
    tensor.scales[:rows] = scales.astype(tensor.scales.dtype)
    tensor.codes[:rows] = (np.round(groups / scales[..., None]) + zero).reshape(rows, -1)
    if tensor.zeros is not None:
        tensor.zeros[:rows] = zero


def _nudge(tensor: Tensor, count: int) -> None:
    begin = GROUP * tensor.group
    step = max(1, tensor.group // count)
    part = tensor.codes[ROW, begin : begin + tensor.group : step][:count]
    least, most = (
        (-(1 << (tensor.bits - 1)), (1 << (tensor.bits - 1)) - 1) if tensor.signed else (0, (1 << tensor.bits) - 1)
    )
    tensor.codes[ROW, begin : begin + tensor.group : step][:count] = np.where(part < most, part + 1, least)


def _zero_point(tensor: Tensor, step: int) -> None:
    assert tensor.zeros is not None
    tensor.zeros[ROW] += step if tensor.zeros[ROW, 0] < 128 else -step


def _floor(tensor: Tensor, checkpoint: Checkpoint, share: float) -> None:
    n, width = tensor.codes.shape
    weight = Weights(checkpoint)[tensor.name].reshape(n, tensor.scales.shape[1], -1)
    zero = 0 if tensor.signed else 1 << (tensor.bits - 1)
    codes = np.floor(weight / tensor.scales.astype(np.float64)[..., None]) + zero
    low, high = (
        (-(1 << (tensor.bits - 1)), (1 << (tensor.bits - 1)) - 1) if tensor.signed else (0, (1 << tensor.bits) - 1)
    )
    rows = slice(0, int(n * share))
    tensor.codes[rows] = np.clip(codes, low, high).reshape(n, width)[rows]


def _swap_embedding(files: Files) -> None:
    assert isinstance(files, OnnxFiles)
    files.swap_embedding_rows(*RARE)
