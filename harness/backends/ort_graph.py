"""An ONNX graph on disk: its nodes, and its constants, read one at a time.

External data is memory-mapped and every length is checked against the file before anything is made of it, so that a
truncated or hostile artifact is an ArtifactError and no allocation. Needs the `onnx` package and no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.backends.ort_artifact import read_config
from harness.codes import signed, unpack
from harness.errors import ArtifactError, UsageError

_AGAIN = "export the artifact again, or copy it again with all its files"
# What a chain of transposes and the like may be long; a hostile graph may be a cycle.
_CHAIN = 16


class _Type(msgspec.Struct, frozen=True):
    name: str
    bits: int
    dtype: str


# By ONNX's own numbers (TensorProto.DataType), so that this module loads without the package.
_TYPES = {
    1: _Type("float32", 32, "<f4"),
    2: _Type("uint8", 8, "u1"),
    3: _Type("int8", 8, "i1"),
    6: _Type("int32", 32, "<i4"),
    7: _Type("int64", 64, "<i8"),
    9: _Type("bool", 8, "?"),
    10: _Type("float16", 16, "<f2"),
    11: _Type("float64", 64, "<f8"),
    16: _Type("bfloat16", 16, "<u2"),
    21: _Type("uint4", 4, "u1"),
    22: _Type("int4", 4, "u1"),
}
FLOATS = ("float32", "float16", "bfloat16", "float64")
_GRAPH = 5  # AttributeProto.GRAPH


class Tensor(msgspec.Struct, frozen=True):
    """A constant: its name, dtype as stored, and values; bfloat16 is widened to float32 and 4 bits to a byte each."""

    name: str
    dtype: str
    values: NDArray[Any]


class Graph:
    """The graph of an ONNX Runtime GenAI artifact.

    `settings` is genai_config.json, `nodes` the nodes of the main graph, `producer` what made it. Raises
    ArtifactError when a file is missing, unreadable, or not what it must be.
    """

    def __init__(self, artifact: Path) -> None:
        try:
            self.settings = read_config(artifact)
        except UsageError as error:
            raise ArtifactError(error.problem, error.remedy) from None
        self._folder = artifact
        model = _load(self._file(_decoder_filename(self.settings), "genai_config.json"))
        self.nodes = list(model.graph.node)
        self.producer = f"{model.producer_name} {model.producer_version}".strip()
        if model.graph.sparse_initializer or model.functions:
            raise ArtifactError("the graph has sparse constants or functions, which no Phi-3 exporter writes", _AGAIN)
        _check_text(model.graph)
        self._constants: dict[str, Any] = {}
        self._makers: dict[str, Any] = {}
        self._add(model.graph.initializer, model.graph.node)

    def _add(self, initializers: Any, nodes: Any) -> None:
        for tensor in initializers:
            self._add_constant(tensor.name, tensor)
        for node in nodes:
            for output in filter(None, node.output):
                if output in self._makers or output in self._constants:
                    raise ArtifactError(f"the graph has two values named {output}", _AGAIN)
                self._makers[output] = node
            if node.op_type == "Constant" and len(node.attribute) == 1 and node.output:
                self._add_constant(node.output[0], _constant(node))

    def _add_constant(self, name: str, tensor: Any) -> None:
        if not name or name in self._constants:
            raise ArtifactError(f"the graph has two constants named {name!r}", _AGAIN)
        self._constants[name] = tensor

    def branch(self, graph: Any, output: int) -> str:
        """The constant that a branch of an If gives as its output of that number; known by name from then on.

        Raises ArtifactError when the branch gives something else.
        """
        name = graph.output[output].name if output < len(graph.output) else ""
        _check_text(graph)
        if name not in self._constants:
            self._add(graph.initializer, graph.node)
        if name not in self._constants:
            raise ArtifactError(f"the branch {graph.name} gives {name!r}, which is no constant", _AGAIN)
        return str(name)

    def maker(self, name: str) -> Any:
        """The node that computes a value; None for a constant and for an input of the graph."""
        return None if name in self._constants else self._makers.get(name)

    def constants(self) -> list[str]:
        """The names of all constants, those of `Constant` nodes included."""
        return list(self._constants)

    def holds(self, name: str) -> bool:
        """Whether a value is a constant itself."""
        return name in self._constants

    def missing_files(self) -> tuple[str, ...]:
        """The files of constants that are not there, each once, in the order that they are named in."""
        places = (entry.value for t in self._constants.values() for entry in t.external_data if entry.key == "location")
        return tuple(name for name in dict.fromkeys(places) if not (self._folder / name).is_file())

    def roots(self, name: str, depth: int = 0) -> tuple[str, ...]:
        """The constants that a value is made of, the first being its data; none if an input has a part in it."""
        if name in self._constants:
            return (name,)
        node = self._makers.get(name)
        if node is None or depth > _CHAIN or any(attribute.type == _GRAPH for attribute in node.attribute):
            return ()
        found = [self.roots(entry, depth + 1) for entry in node.input if entry]
        return tuple(root for roots in found for root in roots) if all(found) else ()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a constant."""
        return tuple(int(extent) for extent in self._constants[name].dims)

    def dtype(self, name: str) -> str:
        """The dtype of a constant by name. Raises ArtifactError for one that holds no numbers of a known kind."""
        tensor = self._constants[name]
        if tensor.data_type not in _TYPES:
            raise ArtifactError(f"{name} is of ONNX's data type {tensor.data_type}, which is not known here", _AGAIN)
        return _TYPES[tensor.data_type].name

    def read(self, name: str) -> Tensor:
        """Read a constant. Raises ArtifactError when the file is truncated or the lengths do not agree."""
        if name not in self._constants:
            raise ArtifactError(f"the graph has no constant {name!r}", _AGAIN)
        tensor, kind = self._constants[name], _TYPES[self._type(name)]
        shape = self.shape(name)
        if min(shape, default=1) < 0:
            raise ArtifactError(f"{name} has the impossible shape {list(shape)}", _AGAIN)
        count = math.prod(shape)
        raw = self._bytes(name, tensor, (count * kind.bits + 7) // 8)
        if raw is None:
            return Tensor(name, kind.name, _typed(name, tensor, shape))
        return Tensor(name, kind.name, _decode(raw, kind, count).reshape(shape))

    def _type(self, name: str) -> int:
        self.dtype(name)
        return int(self._constants[name].data_type)

    def _bytes(self, name: str, tensor: Any, length: int) -> NDArray[np.uint8] | None:
        """The bytes of a constant; None where they are in the fields of their type, as in small graphs."""
        where = {entry.key: entry.value for entry in tensor.external_data}
        if where or tensor.data_location == 1:
            return self._external(name, where, length)
        if not tensor.raw_data:
            return None
        if len(tensor.raw_data) != length:
            raise ArtifactError(f"{name} has {len(tensor.raw_data)} bytes where its shape needs {length}", _AGAIN)
        return np.frombuffer(tensor.raw_data, dtype=np.uint8)

    def _external(self, name: str, where: Mapping[str, str], length: int) -> NDArray[np.uint8]:
        file = self._file(where.get("location", ""), name)
        try:
            offset, stated = int(where.get("offset", 0)), int(where.get("length", length))
        except ValueError:
            raise ArtifactError(f"{name}: where its data lies is no number: {dict(where)}", _AGAIN) from None
        size = file.stat().st_size
        if stated != length or offset < 0:
            raise ArtifactError(f"{name} has {stated} bytes at {offset} where its shape needs {length}", _AGAIN)
        if offset + length > size:
            raise ArtifactError(f"{name} ends at byte {offset + length} of {file.name}, which has {size}", _AGAIN)
        if not length:
            return np.zeros(0, dtype=np.uint8)
        return np.memmap(file, dtype=np.uint8, mode="r", offset=offset, shape=(length,))

    def _file(self, location: str, source: str) -> Path:
        """A file of the artifact's folder; links are followed, since a hub's cache is made of them."""
        paths = (PurePosixPath(location), PureWindowsPath(location))
        if not location or any(path.is_absolute() or path.drive or ".." in path.parts for path in paths):
            raise ArtifactError(f"{source} names the file {location!r}, which is not in the artifact's folder", _AGAIN)
        file = self._folder / location
        if not file.is_file():
            raise ArtifactError(f"{source} names the file {location}, which is not there", _AGAIN)
        return file


def attributes(node: Any) -> dict[str, Any]:
    """A node's attributes by name: numbers, lists of whole numbers and subgraphs; others are left out."""
    kinds = {1: "f", 2: "i", _GRAPH: "g", 7: "ints"}
    return {a.name: getattr(a, kinds[a.type]) for a in node.attribute if a.type in kinds}


def whole(node: Any, name: str, default: int | None = None) -> int:
    """A whole number that a node states. Raises ArtifactError when it is another kind, or missing without a default."""
    value = attributes(node).get(name, default)
    if not isinstance(value, int):
        raise ArtifactError(f"{node.name} states no whole number {name}, but {value}", _AGAIN)
    return value


def _decode(raw: NDArray[np.uint8], kind: _Type, count: int) -> NDArray[Any]:
    if kind.bits == 4:
        codes = unpack(raw, 4)[:count]
        return signed(codes, 4) if kind.name == "int4" else codes
    values = raw.view(kind.dtype)
    return (values.astype(np.uint32) << 16).view(np.float32) if kind.name == "bfloat16" else values


def _typed(name: str, tensor: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    import onnx

    try:
        values = np.asarray(onnx.numpy_helper.to_array(tensor))
    except Exception as error:  # noqa: BLE001 - whatever a malformed tensor makes the package raise
        raise ArtifactError(f"{name} cannot be read: {error}", _AGAIN) from None
    if values.shape != shape:
        raise ArtifactError(f"{name} has shape {list(values.shape)} where it states {list(shape)}", _AGAIN)
    widened = {"bfloat16": np.float32, "int4": np.int8, "uint4": np.uint8}  # types of ml_dtypes
    return values.astype(widened.get(values.dtype.name, values.dtype))


def _check_text(graph: Any) -> None:
    """Raise ArtifactError unless all names are text; what is no UTF-8 comes as bytes."""
    texts = [text for node in graph.node for text in (node.name, node.op_type, node.domain, *node.input, *node.output)]
    texts += [attribute.name for node in graph.node for attribute in node.attribute]
    tensors = [*graph.initializer, *(attribute.t for node in graph.node for attribute in node.attribute)]
    texts += [tensor.name for tensor in tensors] + [entry.name for entry in graph.output]
    texts += [text for tensor in tensors for entry in tensor.external_data for text in (entry.key, entry.value)]
    if not all(isinstance(text, str) for text in texts):
        raise ArtifactError("the graph has names that are no text", _AGAIN)


def _constant(node: Any) -> Any:
    """What a Constant node holds, as a tensor."""
    import onnx

    held = node.attribute[0]
    if held.name == "value":
        return held.t
    fields = {"value_float": "f", "value_floats": "floats", "value_int": "i", "value_ints": "ints"}
    if held.name not in fields:
        raise ArtifactError(f"the constant {node.output[0]} holds a {held.name}, which is not known here", _AGAIN)
    dtype = np.float32 if "float" in held.name else np.int64
    return onnx.numpy_helper.from_array(np.asarray(getattr(held, fields[held.name]), dtype=dtype))


def _decoder_filename(settings: Mapping[str, Any]) -> str:
    decoder = settings["model"].get("decoder")
    filename = decoder.get("filename") if isinstance(decoder, Mapping) else None
    if not isinstance(filename, str):
        raise ArtifactError("genai_config.json names no file of the decoder", _AGAIN)
    return filename


def _load(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(str(path), load_external_data=False)
    except Exception as error:  # noqa: BLE001 - protobuf raises classes of its own
        raise ArtifactError(f"{path.name} is no readable ONNX graph: {error}", _AGAIN) from None
