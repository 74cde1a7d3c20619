"""Faults of the graph: what an artifact computes, changed in its constants, its attributes and its edges."""

from __future__ import annotations

from collections.abc import Iterator

from detection.battery.weight_faults import Edit

BASE, WINDOW = 10000.0, 256


def graph_edits() -> Iterator[Edit]:
    """Every fault of the graph, the strongest first where there are several."""
    for share in (10, 3, 1, 0.1):
        yield Edit("rotary base", f"{share} %", lambda f, s=share: f.rotary_base(BASE, 1 + s / 100))  # type: ignore[misc]
    for share in (1, 0.1):
        yield Edit("rotary frequencies scaled", f"{share} %", lambda f, s=share: f.rotary_scale(1 + s / 100))  # type: ignore[misc]
    for factor in (10, 1.1):
        yield Edit("epsilon of the norms", f"x {factor}", lambda f, s=factor: f.epsilon(s))  # type: ignore[misc]
    yield Edit("window ignored", "", lambda files: files.window(0))
    for step in (16, 1, -1):
        yield Edit("window off", f"{step:+}", lambda f, s=step: f.window(WINDOW + s))  # type: ignore[misc]
    for share in (10, 1, 0.1):
        yield Edit("scale of attention", f"{share} %", lambda f, s=share: f.attention_scale(1 + s / 100))  # type: ignore[misc]
    for layer in (0, 5):
        yield Edit("gate and up exchanged", f"layer {layer}", lambda f, k=layer: f.swap_gate_and_up(k))  # type: ignore[misc]
    for layer in (1, 4):
        yield Edit("layer skipped", f"layer {layer}", lambda f, k=layer: f.skip_layer(k))  # type: ignore[misc]
