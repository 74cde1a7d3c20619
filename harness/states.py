"""The residual stream at the places where a fault can be told from its neighbours', and how a session gives it.

After the embedding, after what each attention and each MLP has added, after the final norm; the LM head's are the
logits. Between two neighbouring places lies exactly one sublayer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from harness.backend import Session

EMBEDDED = "model.embed_tokens"
NORMED = "model.norm"
LOGITS = "lm_head"

States = dict[str, NDArray[np.float32]]


def places(layers: int) -> list[str]:
    """Every place of a model of so many layers, in the order of computing, the logits last."""
    sublayers = [f"model.layers.{layer}.{part}" for layer in range(layers) for part in ("self_attn", "mlp")]
    return [EMBEDDED, *sublayers, NORMED, LOGITS]


@runtime_checkable
class GivesStates(Protocol):
    """A session that can be watched while it computes. Diagnostic: what is watched may be compiled another way."""

    def residual_states(self, tokens: list[int], prefill: int) -> States:
        """What there is at every place: `[n, H]` float32, and `[n, V]` for the logits.

        The first `prefill` of the n token ids are fed at once, the others one by one. Raises Unsupported where
        the runtime or the artifact shows no inner values.
        """
        ...


def gather(
    session: Session, tokens: list[int], prefill: int, read: Callable[[], Mapping[str, NDArray[np.float32]]]
) -> States:
    """Feed a session and read, after each call, `[m, H]` at every place for the m tokens just fed."""
    ids = np.asarray(tokens, dtype=np.int64)
    session.reset()
    found: dict[str, list[NDArray[np.float32]]] = {}
    for chunk in (ids[:prefill], *(ids[at : at + 1] for at in range(prefill, ids.size))):
        logits = session.append(chunk)
        for place, rows in {**read(), LOGITS: logits}.items():
            found.setdefault(place, []).append(np.array(rows, dtype=np.float32))
    session.reset()
    return {place: np.concatenate(rows) for place, rows in found.items()}
