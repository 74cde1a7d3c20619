"""The state of a compiled IR: going back in it, copying it, and texts with a state each.

A stateful IR keeps keys and values in variables of its infer request, which can be read and set; this is how
openvino_genai trims the cache of a chat (`VariableState`, OpenVINO's API reference). What is read of a cache in u8 is
what its dequantisation gives, and setting it quantises again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Kept(NamedTuple):
    """A state: every variable by name, how many tokens were fed, and the rows of the batch that beams go on from."""

    variables: dict[str, NDArray[Any]]
    fed: int
    beams: Any


# Keys and values are [batch, heads, tokens, size].
_TOKENS = 2


def rewind(request: Any, length: int) -> None:
    """Keep the first `length` tokens of every key and value."""
    import openvino

    for variable in request.query_state():
        kept = np.ascontiguousarray(variable.state.data[:, :, :length])
        assert kept.shape[_TOKENS] == length, variable.name
        variable.state = openvino.Tensor(kept)


def copy_of(request: Any, fed: int, beams: Any) -> Kept:
    """A copy of everything that a request keeps."""
    variables = {variable.name: np.array(variable.state.data) for variable in request.query_state()}
    return Kept(variables, fed, None if beams is None else np.array(beams))


def restore(request: Any, kept: Kept) -> None:
    """Set everything that a request keeps."""
    import openvino

    for variable in request.query_state():
        variable.state = openvino.Tensor(np.array(kept.variables[variable.name]))
