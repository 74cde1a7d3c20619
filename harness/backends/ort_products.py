"""How ONNX Runtime's operators store a weight: MatMulNBits, GatherBlockQuantized, DequantizeLinear, plain floats.

Each function reads one weight as `[n, K]`, n rows of output channels (or tokens) and K columns of input channels, with
groups along K. Layouts as in ONNX Runtime's operator documentation: MatMulNBits packs codes `[n, G, block x bits / 8]`,
lowest bits first, and takes 2^(bits - 1) for a zero point that is not given; a block that K does not fill is padded.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.backends.ort_graph import FLOATS, Graph, Tensor, attributes, whole
from harness.codes import unpack
from harness.errors import ArtifactError
from harness.weights import Plain, Quantised

_UNKNOWN = "export it with onnxruntime_genai.models.builder by the recipes of this backend"
# Bits, least and greatest code of the dtypes that DequantizeLinear and GatherBlockQuantized take.
_CODES = {"int4": (4, -8, 7), "uint4": (4, 0, 15), "int8": (8, -128, 127), "uint8": (8, 0, 255)}


def read_product(graph: Graph, node: Any) -> Plain | Quantised:
    """The weight of a MatMulNBits, or of a MatMul by a constant, as `[n, K]`.

    Raises ArtifactError when the tensors do not fit the node, or the layout is not one described here.
    """
    if node.op_type == "MatMulNBits":
        return _matmul_nbits(graph, node)
    return _matrix(graph, node.input[1], transposed=True)  # x @ B with B [K, n]


def read_lookup(graph: Graph, node: Any) -> Plain | Quantised:
    """The embedding of a Gather or a GatherBlockQuantized as `[V, H]`. Raises ArtifactError, see `read_product`."""
    if node.op_type == "GatherBlockQuantized":
        return _gather_block_quantized(graph, node)
    if whole(node, "axis", 0) != 0:
        raise ArtifactError(f"{node.name} looks up columns, not rows", _UNKNOWN)
    return _matrix(graph, node.input[0], transposed=False)


def read_vector(graph: Graph, name: str) -> Plain:
    """The weight `[n]` of a norm. Raises ArtifactError when it is no vector of floats."""
    tensor = graph.read(name)
    if tensor.dtype not in FLOATS or tensor.values.ndim != 1:
        raise ArtifactError(f"{name} is {tensor.dtype} {list(tensor.values.shape)}, not a vector of floats", _UNKNOWN)
    return Plain(tensor.values, tensor.dtype)


def _matmul_nbits(graph: Graph, node: Any) -> Quantised:
    n, width, block, bits = whole(node, "N"), whole(node, "K"), whole(node, "block_size"), whole(node, "bits", 4)
    if bits not in (2, 4, 8) or min(n, width) < 1 or block < 8:
        raise ArtifactError(f"{node.name} states bits {bits}, N {n}, K {width}, block_size {block}", _UNKNOWN)
    if whole(node, "weight_prepacked", 0):
        raise ArtifactError(
            f"{node.name} holds its weights in a processor's own layout", "export with matmulnbits_weights_prepacked=0"
        )
    inputs = [*node.input, *[""] * 6]
    for name, what in ((inputs[4], "an order of columns (g_idx)"), (inputs[5], "a bias")):
        if name:
            raise ArtifactError(f"{node.name} has {what}, {name}, which Phi-3 has not", _UNKNOWN)
    groups = -(-width // block)
    packed = _sized(graph.read(inputs[1]), ("uint8",), (n, groups, block * bits // 8))
    codes = unpack(packed, bits).reshape(n, groups * block)[:, :width]
    scales = _sized(graph.read(inputs[2]), FLOATS, (n, groups))
    zero_points = _packed_zero_points(graph, inputs[3], n, groups, bits)
    return _evened(Quantised(codes, scales, zero_points, bits, 0, 2**bits - 1), block)


def _gather_block_quantized(graph: Graph, node: Any) -> Quantised:
    block, bits = whole(node, "block_size", 128), whole(node, "bits", 4)
    if whole(node, "gather_axis", 0) != 0 or whole(node, "quantize_axis", 1) not in (1, -1):
        raise ArtifactError(f"{node.name} is not quantised along the rows that it looks up", _UNKNOWN)
    if bits not in (2, 4, 8) or block < 8:
        raise ArtifactError(f"{node.name} states bits {bits}, block_size {block}", _UNKNOWN)
    inputs = [*node.input, *[""] * 4]
    data = _reshaped(graph, inputs[0])
    scales = graph.read(inputs[2])
    if data.values.ndim != 2 or scales.values.ndim != 2:
        raise ArtifactError(f"{node.name} looks up in shape {list(data.values.shape)}", _UNKNOWN)
    n = data.values.shape[0]
    if data.dtype == "uint8":
        codes = unpack(data.values, bits)
        groups = -(-codes.shape[1] // block)
        zero_points = _packed_zero_points(graph, inputs[3], n, groups, bits)
        low, high = 0, 2**bits - 1
    else:
        codes, (bits, low, high) = data.values, _code_range(data)
        groups = -(-codes.shape[1] // block)
        zero_points = _plain_zero_points(graph, inputs[3], data.dtype, (n, groups))
    return _evened(Quantised(codes, _sized(scales, FLOATS, (n, groups)), zero_points, bits, low, high), block)


def _reshaped(graph: Graph, name: str) -> Tensor:
    """A constant, through the Reshape that makes a lookup out of the LM head's codes `[V, G, bytes]`."""
    node = graph.maker(name)
    if node is None:
        return graph.read(name)
    roots = graph.roots(name)
    if node.op_type != "Reshape" or len(roots) != 2:
        raise ArtifactError(f"{name} is made by {node.op_type}, which cannot be followed to a constant", _UNKNOWN)
    tensor, shape = graph.read(roots[0]), graph.read(roots[1]).values.tolist()
    try:
        return Tensor(tensor.name, tensor.dtype, tensor.values.reshape(shape))
    except (TypeError, ValueError):
        raise ArtifactError(f"{tensor.name} {list(tensor.values.shape)} cannot be made {shape}", _UNKNOWN) from None


def _matrix(graph: Graph, name: str, *, transposed: bool) -> Plain | Quantised:
    """A constant matrix, transposed if so asked, through Transpose, Identity and DequantizeLinear."""
    # A name with roots is made of constants by a chain of bounded length: the loop ends.
    if not graph.roots(name):
        raise ArtifactError(f"{name} is no constant", _UNKNOWN)
    while (node := graph.maker(name)) is not None:
        if node.op_type == "DequantizeLinear":
            return _dequantize_linear(graph, node, transposed=transposed)
        if node.op_type not in ("Transpose", "Identity"):
            raise ArtifactError(f"{name} is made by {node.op_type}, which cannot be followed to a constant", _UNKNOWN)
        if node.op_type == "Transpose":
            # Of a matrix there are two permutations; one that is no matrix is refused below.
            transposed ^= list(attributes(node).get("perm", (1, 0))) != [0, 1]
        name = node.input[0]
    tensor = graph.read(name)
    if tensor.dtype not in FLOATS or tensor.values.ndim != 2:
        raise ArtifactError(f"{name} is {tensor.dtype} {list(tensor.values.shape)}, not a matrix of floats", _UNKNOWN)
    return Plain(tensor.values.T if transposed else tensor.values, tensor.dtype)


def _dequantize_linear(graph: Graph, node: Any, *, transposed: bool) -> Quantised:
    """Codes of one byte or half a byte each, with groups along one axis (or one scale for each row, or for all)."""
    inputs = [*node.input, "", ""]
    data, scales = graph.read(inputs[0]), graph.read(inputs[1])
    if data.values.ndim != 2 or scales.dtype not in FLOATS or data.dtype not in _CODES:
        raise ArtifactError(f"{node.name} turns {data.dtype} {list(data.values.shape)} into weights", _UNKNOWN)
    axis, block = whole(node, "axis", 1) % 2, max(0, whole(node, "block_size", 0))
    columns = 0 if transposed else 1  # the axis that K lies along
    bits, low, high = _code_range(data)
    zeros = _plain_zero_points(graph, inputs[2], data.dtype, scales.values.shape)
    if block:
        if axis != columns or scales.values.ndim != 2:
            raise ArtifactError(f"{node.name} has its groups along the output channels", _UNKNOWN)
    elif scales.values.size != 1 and (axis == columns or scales.values.ndim != 1):
        raise ArtifactError(f"{node.name} has a scale for each input channel", _UNKNOWN)
    codes, grid = (data.values.T if transposed else data.values), scales.values
    if block:
        grid, zeros = (grid.T if transposed else grid), (zeros.T if transposed else zeros)
    else:
        grid = np.broadcast_to(grid.reshape(-1, 1), (codes.shape[0], 1))
        zeros = zeros.reshape(-1, 1)
    block = block or codes.shape[1]
    if grid.shape != (codes.shape[0], -(-codes.shape[1] // block)):
        raise ArtifactError(f"{node.name} has scales {list(grid.shape)} for codes {list(codes.shape)}", _UNKNOWN)
    return _evened(Quantised(codes, grid, zeros, bits, low, high), block)


def _evened(weight: Quantised, block: int) -> Quantised:
    """The same weight with groups of one length: where K is no multiple of the block, the divisor that they share."""
    width, groups = weight.codes.shape[1], weight.scales.shape[1]
    if width % block == 0 or groups == 1:
        return weight
    common = math.gcd(width, block)
    where = np.arange(width // common) * common // block
    zeros = weight.zero_points if weight.zero_points.shape[1] == 1 else weight.zero_points[:, where]
    return Quantised(weight.codes, weight.scales[:, where], zeros, weight.bits, weight.low, weight.high)


def _code_range(data: Tensor) -> tuple[int, int, int]:
    if data.dtype not in _CODES:
        raise ArtifactError(f"{data.name} holds {data.dtype}, which are no codes", _UNKNOWN)
    return _CODES[data.dtype]


def _packed_zero_points(graph: Graph, name: str, n: int, groups: int, bits: int) -> NDArray[Any]:
    """`[n, G]` zero points packed as the codes are, each row in bytes of its own; `[1, 1]` where none are given."""
    if not name:
        return np.full((1, 1), 2 ** (bits - 1), dtype=np.uint8)
    stored = graph.read(name)
    if stored.dtype in FLOATS:
        return _whole(_sized(stored, FLOATS, (n, groups)), name)
    packed = _sized(stored, ("uint8",), (n, -(-groups * bits // 8)))
    return unpack(packed, bits)[:, :groups]


def _whole(values: NDArray[Any], name: str) -> NDArray[Any]:
    if not np.array_equal(values, np.rint(values)):
        raise ArtifactError(f"{name} holds zero points that are no whole numbers", _UNKNOWN)
    return values.astype(np.int32)


def _plain_zero_points(graph: Graph, name: str, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Zero points of the codes' own dtype; `[1, 1]` zero where none are given."""
    return _sized(graph.read(name), (dtype,), shape) if name else np.zeros((1, 1), dtype=np.int8)


def _sized(tensor: Tensor, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> NDArray[Any]:
    """A tensor's values in a shape; older exporters wrote it flat. Raises ArtifactError when it has another extent."""
    if tensor.dtype not in dtypes or tensor.values.size != math.prod(shape):
        raise ArtifactError(
            f"{tensor.name} is {tensor.dtype} {list(tensor.values.shape)}, not {' or '.join(dtypes)} {list(shape)}",
            _UNKNOWN,
        )
    return tensor.values.reshape(shape)
