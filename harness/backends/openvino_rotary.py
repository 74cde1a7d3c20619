"""The rotary embedding in an OpenVINO graph: frequencies times positions, then cosine and sine, then a factor.

LongRoPE selects between two sets of frequencies by the length of the text.
"""

from __future__ import annotations

import msgspec
import numpy as np

from harness.backends.openvino_ir import NESTING, Graph, Node
from harness.weights import Array

_SHAPING = ("Convert", "ConvertLike", "Reshape", "Unsqueeze", "Squeeze", "Broadcast", "Tile")
_ARITHMETIC = {"Multiply": np.multiply, "Divide": np.divide, "Power": np.power}


class Rotary(msgspec.Struct, frozen=True):
    """What the cosines or sines of a layer are made from.

    `frequencies`: `[r]`, of a text of the original length or less. `long`: of a longer one, with `switch` the length
    above which they are taken; None where there is one set only. `factor`: what the cosines or sines are multiplied
    with.
    """

    frequencies: Array
    factor: float
    long: Array | None
    switch: float | None


def read_rotary(graph: Graph, node: Node, function: str) -> Rotary | None:
    """Read upwards from a layer's cosines (`function` Cos) or sines (Sin); None where the form is not recognised."""
    factor = 1.0
    for _ in range(NESTING):
        node = graph.through(node, *_SHAPING)
        if node.type == function:
            break
        scaled = _scaled(graph, node)
        if scaled is None:
            return None
        node, factor = scaled[0], factor * scaled[1]
    product = _product(graph, node)
    if product is None:
        return None
    sets = [_evaluate(graph, product, long=long) for long in (False, True)]
    short, long = sets
    if short is None or long is None:
        return None
    chosen = not np.array_equal(short, long)
    return Rotary(short, factor, long if chosen else None, _switch(graph, product) if chosen else None)


def rotary_constants(graph: Graph) -> list[Node]:
    """The constants that the angles of all cosines and sines are computed from."""
    products = [_product(graph, node) for node in graph.of_type("Cos", "Sin")]
    return [
        node for product in products if product is not None
        for node in [product, *graph.above(product, lambda above: above.type == "Const")] if node.type == "Const"
    ]  # fmt: skip


def _scaled(graph: Graph, node: Node) -> tuple[Node, float] | None:
    """A multiplication by a number taken off."""
    if node.type != "Multiply" or len(node.inputs) != 2:
        return None
    first, second = graph.operands(node)
    for inner, constant in ((first, second), (second, first)):
        value = graph.scalar(constant)
        if value is not None:
            return inner, value
    return None


def _product(graph: Graph, node: Node) -> Node | None:
    """The frequencies in Cos(Concat(a, a)) with a = Transpose(MatMul(frequencies, positions)), else None.

    The positions must be the model's input as it came.
    """
    if node.type not in ("Cos", "Sin"):
        return None
    both = graph.through(graph.input(node, 0), *_SHAPING)
    if both.type != "Concat" or len(both.inputs) != 2 or both.inputs[0] != both.inputs[1]:
        return None
    product = graph.through(graph.input(both, 0), *_SHAPING, "Transpose")
    if product.type != "MatMul":
        return None
    positions = graph.through(graph.input(product, 1), *_SHAPING)
    return graph.input(product, 0) if positions.type == "Parameter" and positions.name == "position_ids" else None


def _evaluate(graph: Graph, node: Node, *, long: bool, depth: int = 0) -> Array | None:
    """The values of a small expression over constants, shapes apart; a Select takes its first branch if `long`."""
    node = graph.through(node, *_SHAPING)
    if depth > NESTING:
        return None
    if node.type == "Const":
        return np.asarray(graph.values(node), dtype=np.float64).reshape(-1)
    if node.type == "Select":
        return _evaluate(graph, graph.input(node, 1 if long else 2), long=long, depth=depth + 1)
    if node.type not in _ARITHMETIC or len(node.inputs) != 2:
        return None
    first, second = (_evaluate(graph, above, long=long, depth=depth + 1) for above in graph.operands(node))
    if first is None or second is None or (first.size != second.size and 1 not in (first.size, second.size)):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(_ARITHMETIC[node.type](first, second), dtype=np.float64)


def _switch(graph: Graph, node: Node) -> float | None:
    """The length above which the first branch of the Select is taken, in Greater(length, constant)."""
    selects = graph.above(node, lambda above: above.type == "Select") if node.type != "Select" else [node]
    if len(selects) != 1:
        return None
    condition = graph.through(graph.input(selects[0], 0), *_SHAPING)
    return graph.scalar(graph.input(condition, 1)) if condition.type == "Greater" else None
