"""Faults of the graph: what an artifact computes, changed in its constants, its attributes and its edges."""

from __future__ import annotations

from collections.abc import Iterator
from operator import methodcaller

from detection.battery.weight_faults import Edit

BASE, WINDOW = 10000.0, 256


def graph_edits() -> Iterator[Edit]:
    """Every fault of the graph, the strongest first where there are several."""
    for share in (10, 3, 1, 0.1):
        yield Edit("rotary base", f"{share} %", methodcaller("rotary_base", BASE, 1 + share / 100))
    for share in (1, 0.1):
        yield Edit("rotary frequencies scaled", f"{share} %", methodcaller("rotary_scale", 1 + share / 100))
    for factor in (10, 1.1):
        yield Edit("epsilon of the norms", f"x {factor}", methodcaller("epsilon", factor))
    yield Edit("window ignored", "", methodcaller("window", 0))
    for step in (16, 1, -1):
        yield Edit("window off", f"{step:+}", methodcaller("window", WINDOW + step))
    for share in (10, 1, 0.1):
        yield Edit("scale of attention", f"{share} %", methodcaller("attention_scale", 1 + share / 100))
    yield Edit("end tokens", "another one", methodcaller("end_tokens", [5]))
    yield Edit("end tokens", "one lacking", methodcaller("end_tokens", [2037, 2038]))
    yield Edit("constants truncated", "64 KiB", methodcaller("truncate", 1 << 16))
    for layer in (0, 5):
        yield Edit("gate and up exchanged", f"layer {layer}", methodcaller("swap_gate_and_up", layer))
    for layer in (1, 4):
        yield Edit("layer skipped", f"layer {layer}", methodcaller("skip_layer", layer))
