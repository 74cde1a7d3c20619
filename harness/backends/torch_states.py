"""The residual stream of a model of transformers, by hooks: what goes into a norm is the stream at that place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import Unsupported
from harness.states import EMBEDDED, NORMED, places


@contextmanager
def watched(model: Any) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What the last call of the model gave at every place but the logits, `[m, H]` float32, while the context lasts.

    Raises Unsupported where the model is not built of the modules that Phi-3 is in transformers.
    """
    seen: dict[str, NDArray[np.float32]] = {}
    handles: list[Any] = []
    try:
        for place, module, entering in _modules(model):
            keep = _keeper(seen, place)
            if entering:
                handles.append(module.register_forward_pre_hook(lambda _, given, keep=keep: keep(given)))
            else:
                handles.append(module.register_forward_hook(lambda _, __, given, keep=keep: keep(given)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _modules(model: Any) -> list[tuple[str, Any, bool]]:
    """For every place the module at which it is seen, and whether on the way in or on the way out."""
    try:
        inner = model.model
        after_mlp = [*(layer.input_layernorm for layer in inner.layers[1:]), inner.norm]
        seams = [
            norm
            for layer, after in zip(inner.layers, after_mlp, strict=True)
            for norm in (layer.post_attention_layernorm, after)
        ]
        names = places(len(inner.layers))[1:-2]
        inside = [(place, norm, True) for place, norm in zip(names, seams, strict=True)]
        return [(EMBEDDED, inner.embed_tokens, False), *inside, (NORMED, inner.norm, False)]
    except AttributeError as error:
        raise Unsupported(f"{type(model).__name__} is not built as Phi-3 is in transformers: {error}") from None


def _keeper(seen: dict[str, NDArray[np.float32]], place: str) -> Any:
    def keep(given: Any) -> None:
        import torch

        value = given[0] if isinstance(given, tuple) else given
        seen[place] = value[0].detach().to(dtype=torch.float32, device="cpu").numpy().copy()

    return keep
