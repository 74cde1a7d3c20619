"""Single products of a loaded model, computed alone by its runtime: an operator probe.

How a runtime computes a product (in which precision, with int8 activations or without) shows at once where its input
is known exactly. In the logits of a whole model in half precision it does not: rounding is chaotic there, and an
emulation of int8 activations lies no nearer to the device than none.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

INPUTS = "inputs"
OUTPUTS = "outputs"

Products = dict[str, dict[str, NDArray[np.float32]]]
"""By the name of a weight `[N, K]` in the checkpoint: `inputs` `[m, K]` and `outputs` `[m, N]`, both float32."""

ROWS = 8


@runtime_checkable
class GivesProducts(Protocol):
    """A session that can compute single products with its artifact's weights, on its device, in its own way."""

    def products(self) -> Products:
        """A few products of quantised weights where there are any. Raises Unsupported where they cannot be cut out."""
        ...


def drawn(width: int, number: int) -> NDArray[np.float32]:
    """Seeded inputs `[ROWS, width]`, normally distributed; `number` draws others."""
    return np.random.default_rng(number).standard_normal((ROWS, width)).astype(np.float32)
