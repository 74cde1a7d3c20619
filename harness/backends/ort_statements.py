"""What an ONNX Runtime GenAI artifact states beside its weights: of attention and norms, rotary tables, configuration.

Names are those of `harness.weights.Statement.what`. A default that the artifact does not write down is not stated. With
LongRoPE there are two pairs of tables: `rotary_cos` and `rotary_sin` for short texts, and `rotary_cos_long` and
`rotary_sin_long` for those longer than the original context.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from harness.backends.ort_graph import FLOATS, Graph, attributes
from harness.errors import ArtifactError
from harness.weights import Array, Statement

_ODD = "export the artifact again, or look at the graph"
_LAYER = re.compile(r"(?:^|[./])layers[./](\d{1,4})[./]")
_NORMS = ("SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization")
_ATTENTION = {
    "num_heads": "num_attention_heads",
    "kv_num_heads": "num_key_value_heads",
    "local_window_size": "sliding_window",
    "softcap": "softcap",
}
_DECODER = ("num_attention_heads", "num_key_value_heads", "head_size", "num_hidden_layers", "hidden_size")
_MODEL = {"vocab_size": "vocabulary", "context_length": "context_length"}


class _Table(msgspec.Struct, frozen=True):
    """A rotary table that some layers use: `rows` is the stretch of its constant that it is, None for all of it."""

    what: str
    constant: str
    rows: slice | None = None


def rotary_constants(graph: Graph) -> set[str]:
    """The names that rotary tables go by: constants, and the outputs of a node that chooses between them."""
    named = {name for _, name, _ in _rotary_inputs(graph.nodes)}
    return named | {table.constant for name in named for table in _tables(graph, "", name, {})}


def read_statements(graph: Graph, config: Mapping[str, Any]) -> list[Statement]:
    """Everything that the artifact states; `config` is the checkpoint's, which says whether tables are LongRoPE's.

    Raises ArtifactError when something stated is no number, or a rotary table cannot be read.
    """
    found = _of_settings(graph.settings)
    for node in graph.nodes:
        if node.op_type in _NORMS:
            found += _of_norm(node)
        elif node.op_type == "GroupQueryAttention":
            found += _of_attention(node)
        elif node.op_type == "RotaryEmbedding":
            found += _stated(node, {"interleaved": "rotary_interleaved"})
    return found + _of_rotary(graph, config)


def _of_settings(settings: Mapping[str, Any]) -> list[Statement]:
    model = settings["model"]
    decoder = model.get("decoder") or {}
    found = [_setting(what, model[key], f"model.{key}") for key, what in _MODEL.items() if key in model]
    found += [_setting(key, decoder[key], f"model.decoder.{key}") for key in _DECODER if key in decoder]
    if "eos_token_id" in model:
        found.append(_setting("end_tokens", model["eos_token_id"], "model.eos_token_id"))
    window = decoder.get("sliding_window")
    if isinstance(window, Mapping) and "window_size" in window:
        where = "model.decoder.sliding_window.window_size"
        found.append(_setting("sliding_window", window["window_size"], where))
    return found


def _setting(what: str, value: Any, where: str) -> Statement:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(entry, int | float) and not isinstance(entry, bool) for entry in values):
        raise ArtifactError(f"genai_config.json: {where} is {value!r}, not a number", _ODD)
    numbers = np.asarray(values if isinstance(value, list) else value, dtype=np.float64)
    return Statement(what, numbers, f"genai_config.json: {where}")


def _of_norm(node: Any) -> list[Statement]:
    found = _stated(node, {"epsilon": "rms_norm_eps"})
    final = "final_norm" in node.name  # numbered as if it were one layer more
    return [msgspec.structs.replace(statement, layer=None) for statement in found] if final else found


def _of_attention(node: Any) -> list[Statement]:
    found = _stated(node, _ATTENTION)
    if attributes(node).get("scale"):  # 0 asks for the default, 1 / sqrt(head size)
        found += _stated(node, {"scale": "attention_scale"})
    rotates = attributes(node).get("do_rotary")
    return found + (_stated(node, {"rotary_interleaved": "rotary_interleaved"}) if rotates else [])


def _stated(node: Any, names: Mapping[str, str]) -> list[Statement]:
    stated, layer = attributes(node), _layer(node)
    return [
        Statement(what, np.asarray(stated[key], dtype=np.float64), f"{node.name}: {key}", layer)
        for key, what in names.items()
        if isinstance(stated.get(key), int | float)
    ]


def _layer(node: Any) -> int | None:
    match = _LAYER.search(node.name)
    return int(match[1]) if match else None


def _rotary_inputs(nodes: Iterable[Any]) -> list[tuple[str, str, int | None]]:
    """For each table that a node takes: whether it is `rotary_cos` or `rotary_sin`, its name, and the node's layer."""
    places = {"GroupQueryAttention": 7, "RotaryEmbedding": 2}
    found = []
    for node in nodes:
        first = places.get(node.op_type)
        if node.op_type == "RotaryEmbedding" and node.domain != "com.microsoft":
            first = 1  # ONNX's own operator takes the positions last
        inputs = [*node.input, *[""] * 9]
        if first is not None and inputs[first] and inputs[first + 1]:
            found.append(("rotary_cos", inputs[first], _layer(node)))
            found.append(("rotary_sin", inputs[first + 1], _layer(node)))
    return found


def _of_rotary(graph: Graph, config: Mapping[str, Any]) -> list[Statement]:
    """Each table once, for no layer in particular where all take it, else for each layer that does."""
    users: dict[tuple[str, str], set[int | None]] = {}
    layers: set[int | None] = set()
    rotating = [n for n in graph.nodes if n.op_type != "GroupQueryAttention" or attributes(n).get("do_rotary")]
    for what, name, layer in _rotary_inputs(rotating):
        users.setdefault((what, name), set()).add(layer)
        layers.add(layer)
    found = []
    for (what, name), taken in users.items():
        values = {table.what: (table.constant, _table(graph, table)) for table in _tables(graph, what, name, config)}
        for layer in [None] if taken == layers else sorted(taken, key=lambda entry: -1 if entry is None else entry):
            found += [Statement(kind, table, source, layer) for kind, (source, table) in values.items()]
    return found


def _tables(graph: Graph, what: str, name: str, config: Mapping[str, Any]) -> Iterable[_Table]:
    """The tables behind a name: one, or two where the text's length chooses between them."""
    if graph.holds(name):
        original, context = config.get("original_max_position_embeddings"), config.get("max_position_embeddings")
        # Some execution providers cannot choose: the long table follows the short one.
        if original and context and graph.shape(name)[:1] == (original + context,):
            return _Table(what, name, slice(0, original)), _Table(f"{what}_long", name, slice(original, None))
        return (_Table(what, name),)
    node = graph.maker(name)
    condition = graph.maker(node.input[0]) if node is not None and node.op_type == "If" else None
    if condition is None or condition.op_type != "Greater":
        raise ArtifactError(f"the rotary table {name} is neither a constant nor chosen by the text's length", _ODD)
    branches, output = attributes(node), list(node.output).index(name)
    if not {"else_branch", "then_branch"} <= set(branches):
        raise ArtifactError(f"{node.name} lacks a branch", _ODD)
    short, long = (graph.branch(branches[key], output) for key in ("else_branch", "then_branch"))
    return _Table(what, short), _Table(f"{what}_long", long)


def _table(graph: Graph, table: _Table) -> Array:
    tensor = graph.read(table.constant)
    if tensor.dtype not in FLOATS or tensor.values.ndim != 2:
        raise ArtifactError(f"{table.constant} is {tensor.dtype} {list(tensor.values.shape)}, no rotary table", _ODD)
    return np.asarray(tensor.values if table.rows is None else tensor.values[table.rows], dtype=np.float64)
