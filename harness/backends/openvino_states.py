"""The residual stream out of OpenVINO: the model with more results, compiled for the same device and properties."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import Unsupported
from harness.states import EMBEDDED, NORMED, places

Reader = Callable[[], dict[str, NDArray[np.float32]]]


@contextmanager
def watched(model: Any) -> Iterator[Reader]:
    """Have an OVModelForCausalLM compute by a model with a result at every place, while the context lasts.

    Gives what reads the results of its last call, `[m, H]` float32. The plain model stays loaded beside it. Raises
    Unsupported where the IR does not name its operations as optimum-cli does.
    """
    import openvino

    marked = model.model.clone()
    _mark(marked, int(model.config.num_hidden_layers))
    properties = {key: value for key, value in model.ov_config.items() if key != "CACHE_DIR"}
    compiled = openvino.Core().compile_model(marked, model._device, {**properties, "CACHE_DIR": ""})
    plain, model.request = model.request, compiled.create_infer_request()
    names = places(int(model.config.num_hidden_layers))[:-1]
    try:
        yield lambda: {name: model.request.get_tensor(name).data[0].astype(np.float32) for name in names}
    finally:
        model.request = plain


def _mark(model: Any, layers: int) -> None:
    """Add a result, named by its place, to the operations that give the stream."""
    operations = {operation.get_friendly_name(): operation for operation in model.get_ops()}
    for place in places(layers)[:-1]:
        found = next((operations[name] for name in _names(place) if name in operations), None)
        if found is None:
            raise Unsupported(
                f"the IR has no operation {_names(place)[0]}", "export the checkpoint with optimum-cli to localise"
            )
        added = model.add_outputs(found.output(0))[0]
        added.get_tensor().set_names({*added.get_tensor().get_names(), place})


def _names(place: str) -> tuple[str, ...]:
    """What the operation of a place is called; the embedding by exporters of float and of quantised models."""
    if place == EMBEDDED:
        return tuple(f"__module.{place}/{kind}::embedding/Gather" for kind in ("aten", "ov_ext"))
    if place == NORMED:
        return (f"__module.{place}/aten::mul/Multiply_1",)
    layer, _, part = place.rpartition(".")
    return (f"__module.{layer}/aten::add/{'Add' if part == 'self_attn' else 'Add_1'}",)
