"""The residual stream out of ONNX Runtime GenAI: a copy of the artifact whose graph has more outputs.

The builder fuses each residual addition with the norm after it into a SkipSimplifiedLayerNormalization, whose fourth
output is the sum.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.backends.ort_artifact import read_config
from harness.errors import Unsupported
from harness.states import EMBEDDED, NORMED, places

_FUSED = "SkipSimplifiedLayerNormalization"
_SUM = 3
_REMEDY = "export the checkpoint with onnxruntime-genai's model builder to localise"


def copy_marked(artifact: Path, out: Path) -> dict[str, str]:
    """Write the artifact into the folder `out`, not there yet, with an output for every place but the logits.

    Returns the output's name by place. Weights are linked, or copied where the disk has no links. Needs the `onnx`
    package. Raises Unsupported where the graph is not built as the builder does it.
    """
    import onnx

    settings = read_config(artifact)["model"]["decoder"]
    filename = settings["filename"]
    model = onnx.load(str(artifact / filename), load_external_data=False)
    names = _mark(model.graph, int(settings["num_hidden_layers"]))
    out.mkdir(parents=True)
    for file in artifact.iterdir():
        if file.is_file() and file.name != filename:
            _link(file, out / file.name)
    onnx.save(model, str(out / filename))
    return names


def _mark(graph: Any, layers: int) -> dict[str, str]:
    fused = [node for node in graph.node if node.op_type == _FUSED]
    first = [node for node in graph.node if node.op_type == "SimplifiedLayerNormalization"]
    if len(fused) != 2 * layers or len(first) != 1:
        found = f"{len(fused)} {_FUSED} and {len(first)} plain norms for {layers} layers"
        raise Unsupported(f"the graph's residual stream cannot be followed: it has {found}", _REMEDY)
    names = {EMBEDDED: str(first[0].input[0]), NORMED: str(fused[-1].output[0])}
    for place, node in zip(places(layers)[1:-2], fused, strict=True):
        node.output.extend([""] * (_SUM + 1 - len(node.output)))
        node.output[_SUM] = node.output[_SUM] or f"{node.name}/output_{_SUM}"
        names[place] = str(node.output[_SUM])
    logits = next(entry for entry in graph.output if entry.name == "logits")
    present = {entry.name for entry in graph.output}
    for name in names.values():
        if name not in present:
            added = graph.output.add()
            added.name = name
            added.type.tensor_type.elem_type = _float_type(graph, first[0], logits)
    return names


def _float_type(graph: Any, norm: Any, logits: Any) -> int:
    """ONNX's number of the dtype that the stream is computed in: that of a norm's weight; else that of the logits."""
    weight = next((tensor for tensor in graph.initializer if tensor.name == norm.input[1]), None)
    return int(weight.data_type if weight is not None else logits.type.tensor_type.elem_type)


def _link(source: Path, target: Path) -> None:
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        shutil.copyfile(source, target)


def read(generator: Any, names: dict[str, str], fed: int) -> dict[str, NDArray[np.float32]]:
    """`[fed, H]` float32 at every place, of the last tokens that a generator was given."""
    return {
        place: np.array(generator.get_output(name), dtype=np.float32).reshape(-1, generator.get_output(name).shape[-1])[
            -fed:
        ]
        for place, name in names.items()
    }
