"""One layer's attention in an OpenVINO graph: heads, rotation, mask and scale, as far as they are recognised."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np

from harness.backends.openvino_ir import NESTING, Graph, Node
from harness.backends.openvino_rotary import Rotary, read_rotary
from harness.weights import Statement


class _Part(msgspec.Struct, frozen=True):
    """Query, key or value: the first row of the fused product that it takes, its heads and their size."""

    begin: int
    heads: int
    size: int


def read_attention(graph: Graph, node: Node, layer: int) -> list[Statement]:
    """What a ScaledDotProductAttention states for its layer."""
    stated: dict[str, Any] = {}
    key, key_heads = _repeated(graph, graph.input(node, 1))
    value, value_heads = _repeated(graph, graph.input(node, 2))
    parts = [
        _part(graph, _unrotated(graph, graph.input(node, 0))),
        _part(graph, _unrotated(graph, _new(graph, key))),
        _part(graph, _new(graph, value)),
    ]
    query, keys, values = parts
    if query is not None and keys is not None and values is not None and keys.heads == values.heads:
        stated["num_attention_heads"] = query.heads
        stated["num_key_value_heads"] = keys.heads
        if query.size == keys.size == values.size:
            stated["head_size"] = query.size
        stated["qkv_begin"] = [part.begin for part in (query, keys, values)]
        stated |= _mapping(query.heads, keys.heads, {"kv_head": key_heads, "kv_head_of_values": value_heads})
    stated |= _rotation(graph, [graph.input(node, 0), _new(graph, key)])
    stated |= _mask(graph, graph.input(node, 3)) if len(node.inputs) > 3 else {}
    scale = graph.scalar(graph.input(node, 4)) if len(node.inputs) > 4 else None
    if scale is not None:
        stated["attention_scale"] = scale
    return [
        Statement(what.removesuffix("_of_values"), np.asarray(held, dtype=np.float64), node.name, layer)
        for what, held in stated.items()
    ]


def _repeated(graph: Graph, node: Node) -> tuple[Node, tuple[int, int] | None]:
    """Keys or values before their heads are repeated, with the axis and the number of repeats; None if none are."""
    if node.type != "Reshape":
        return node, None
    spread = graph.input(node, 0)
    if spread.type not in ("Broadcast", "Tile") or graph.input(spread, 0).type != "Unsqueeze":
        return node, None
    unsqueezed = graph.input(spread, 0)
    axis, extents = graph.scalar(graph.input(unsqueezed, 1)), _extents(graph, graph.input(spread, 1))
    if axis is None or len(extents) != 5 or int(axis) not in (1, 2) or not extents[int(axis)]:
        return node, None
    return graph.input(unsqueezed, 0), (int(axis), int(extents[int(axis)] or 0))


def _extents(graph: Graph, node: Node) -> list[int | None]:
    """The extents in a shape that is concatenated from parts; None for each that is not constant."""
    if node.type != "Concat":
        held = graph.constant(node)
        return [] if held is None else [int(extent) for extent in held.reshape(-1)]
    found: list[int | None] = []
    for part in graph.operands(node):
        held = graph.constant(part)
        if held is not None:
            found += [int(extent) for extent in held.reshape(-1)]
        else:
            # A Gather of several entries of a shape gives as many extents; all others here give one.
            indices = graph.constant(graph.input(part, 1)) if part.type == "Gather" and len(part.inputs) > 1 else None
            found += [None] * (1 if indices is None else max(1, int(indices.size)))
    return found


def _new(graph: Graph, node: Node) -> Node:
    """The new part of keys or values that are appended to the cache."""
    return graph.input(node, 1) if node.type == "Concat" and len(node.inputs) == 2 else node


def _unrotated(graph: Graph, node: Node) -> Node:
    """What goes into x cos + rotated(x) sin; the node itself where it is nothing of the kind."""
    if node.type == "Concat":  # a part of each head is not rotated
        node = graph.input(node, 0)
    if node.type != "Add":
        return node
    return graph.through(graph.input(node, 0), "Multiply", "Slice")


def _part(graph: Graph, node: Node) -> _Part | None:
    """Read Transpose(Reshape(Slice(product))): which rows of the product become which heads."""
    node = graph.through(node, "Slice")
    if node.type != "Transpose" or _list(graph, node, 1) != [0, 2, 1, 3]:
        return None
    shaped = graph.input(node, 0)
    shape = _list(graph, shaped, 1) if shaped.type == "Reshape" else []
    cut = graph.input(shaped, 0)
    if len(shape) != 4 or cut.type not in ("Slice", "MatMul"):
        return None
    if cut.type == "MatMul":
        return _Part(0, shape[2], shape[3])
    begin, step, axes = _list(graph, cut, 1), _list(graph, cut, 3), _list(graph, cut, 4)
    if len(begin) != 1 or step != [1] or axes not in ([2], [-1]) or graph.input(cut, 0).type != "MatMul":
        return None
    return _Part(begin[0], shape[2], shape[3])


def _list(graph: Graph, node: Node, number: int) -> list[int]:
    held = graph.constant(graph.input(node, number)) if number < len(node.inputs) else None
    return [] if held is None else [int(value) for value in held.reshape(-1)]


def _mapping(heads: int, kv_heads: int, repeats: dict[str, tuple[int, int] | None]) -> dict[str, Any]:
    """Which key and value head each query head reads: neighbours share one where each head is repeated in place."""
    found: dict[str, Any] = {}
    for what, repeat in repeats.items():
        axis, count = repeat or (2, 1)
        if 0 < kv_heads * count == heads:
            own = np.arange(kv_heads)
            found[what] = np.repeat(own, count) if axis == 2 else np.tile(own, count)
    return found


def _rotation(graph: Graph, rotated: list[Node]) -> dict[str, Any]:
    """Frequencies, factor and form of the rotation, stated where queries and keys, cosines and sines agree in form."""
    found: list[Rotary] = []
    for node in rotated:
        node = graph.input(node, 0) if node.type == "Concat" else node
        if node.type != "Add" or len(node.inputs) != 2:
            return {}
        straight, turned = graph.operands(node)
        if straight.type != "Multiply" or turned.type != "Multiply":
            return {}
        x = graph.input(straight, 0)
        pair = [read_rotary(graph, graph.input(straight, 1), "Cos"), read_rotary(graph, graph.input(turned, 1), "Sin")]
        if pair[0] is None or pair[1] is None or not _is_half_turned(graph, graph.input(turned, 0), x, pair[0]):
            return {}
        found += [entry for entry in pair if entry is not None]
    first = found[0]
    if any(not _same(first, other) for other in found[1:]):
        return {}
    stated = {"rotary_inv_freq": first.frequencies, "rotary_factor": first.factor, "rotary_interleaved": 0}
    if first.long is not None:
        stated["rotary_inv_freq_long"] = first.long
        if first.switch is not None:
            stated["rotary_switch"] = first.switch
    return stated


def _same(first: Rotary, second: Rotary) -> bool:
    alike = np.array_equal(first.frequencies, second.frequencies) and first.factor == second.factor
    return alike and (first.long is None) == (second.long is None) and first.switch == second.switch


def _is_half_turned(graph: Graph, node: Node, x: Node, rotary: Rotary) -> bool:
    """Whether a node is Concat(-x[r:], x[:r]) with r the number of frequencies."""
    r = rotary.frequencies.size
    if node.type != "Concat" or len(node.inputs) != 2 or node.data.get("axis") not in ("-1", "3"):
        return False
    negative, lower = graph.operands(node)
    if negative.type != "Multiply" or graph.scalar(graph.input(negative, 1)) != -1.0 or lower.type != "Slice":
        return False
    upper = graph.input(negative, 0)
    if upper.type != "Slice" or graph.input(upper, 0) is not x or graph.input(lower, 0) is not x:
        return False
    return _list(graph, upper, 1) == [r] and _list(graph, lower, 1) == [0] and _list(graph, lower, 2) == [r]


def _mask(graph: Graph, node: Node) -> dict[str, Any]:
    """The window and how far ahead a token sees, from Select(and of comparisons, 0, very negative).

    Every term of the conjunction must be known: comparisons of the two ranges of positions, the padding, True.
    """
    chosen = graph.through(node, "Broadcast", "Unsqueeze", "Reshape", "Convert", "Slice")
    if chosen.type != "Select" or graph.scalar(graph.input(chosen, 1)) != 0.0:
        return {}
    hidden = graph.scalar(graph.input(chosen, 2))
    if hidden is None or hidden > -1e4:
        return {}
    ahead, window = None, -1.0
    for term in _terms(graph, graph.input(chosen, 0)):
        bound = _bound(graph, term)
        if bound is None and not _is_padding(graph, term):
            return {}
        if bound is not None and bound[0] == "ahead":
            ahead = bound[1] if ahead is None else min(ahead, bound[1])
        elif bound is not None and bound[0] == "window":
            window = bound[1] if window == -1 else min(window, bound[1])
    return {} if ahead is None else {"sliding_window": window, "lookahead": ahead}


def _terms(graph: Graph, node: Node) -> list[Node]:
    """The factors of nested conjunctions."""
    found: list[Node] = []
    waiting = [node]
    while waiting and len(found) <= NESTING:
        here = graph.through(waiting.pop(), "Broadcast", "Unsqueeze", "Convert")
        if here.type in ("BitwiseAnd", "LogicalAnd"):
            waiting += graph.operands(here)
        else:
            found.append(here)
    return found


def _is_padding(graph: Graph, node: Node) -> bool:
    """Whether a term is the caller's attention mask, or True."""
    held = graph.constant(node)
    if held is not None:
        return bool(np.all(held))
    source = graph.through(node, "Reshape", "Gather", "GatherND", "Convert", "Unsqueeze", "Slice")
    return source.type == "Parameter" and source.name == "attention_mask"


def _bound(graph: Graph, node: Node) -> tuple[str, float] | None:
    """What a comparison of a key's and a query's position allows: how far ahead, or how far back it sees."""
    if node.type not in ("Greater", "GreaterEqual", "Less", "LessEqual"):
        return None
    (key, key_shift), (query, query_shift) = (_position(graph, above) for above in graph.operands(node))
    if not _is_keys(graph, key) or not _is_queries(graph, query):
        return None
    shift = query_shift - key_shift  # key <comparison> query + shift
    if node.type in ("Less", "LessEqual"):
        return "ahead", shift - (node.type == "Less")
    return "window", -shift + (node.type == "GreaterEqual")


def _position(graph: Graph, node: Node) -> tuple[Node, float]:
    """A range of positions and the constant that is added to it."""
    shift = 0.0
    for _ in range(NESTING):
        node = graph.through(node, "Unsqueeze", "Convert", "Reshape", "Squeeze")
        if node.type not in ("Add", "Subtract") or len(node.inputs) != 2:
            break
        value = graph.scalar(graph.input(node, 1))
        if value is None:
            break
        shift += value if node.type == "Add" else -value
        node = graph.input(node, 0)
    return node, shift


def _is_keys(graph: Graph, node: Node) -> bool:
    """Positions 0, 1, 2... of the cache and the new tokens."""
    return node.type == "Range" and graph.scalar(graph.input(node, 0)) == 0 and graph.scalar(graph.input(node, 2)) == 1


def _is_queries(graph: Graph, node: Node) -> bool:
    """Positions of the new tokens: 0, 1, 2... plus the first element of a range that begins at the cache's length."""
    if node.type != "Add":
        return False
    ranges = [above for above in graph.operands(node) if _is_keys(graph, above)]
    firsts = [above for above in graph.operands(node) if above.type == "Gather"]
    if len(ranges) != 1 or len(firsts) != 1 or graph.scalar(graph.input(firsts[0], 1)) != 0:
        return False
    past = graph.input(firsts[0], 0)
    # The cache's length is one extent of its shape, with nothing done to it.
    if past.type != "Range" or graph.scalar(graph.input(past, 2)) != 1:
        return False
    length = graph.through(graph.input(past, 0), "Convert", "Squeeze", "Reshape")
    return length.type == "Gather" and graph.input(length, 0).type == "ShapeOf"
