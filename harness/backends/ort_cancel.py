"""Stopping ONNX Runtime GenAI in the middle of a generation: by its option to terminate, or by dropping a generator."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.endurance import Cancelled

WAYS = ("terminate-session", "dropped-generator")


def cancel(generator: Any, way: str, prompt: NDArray[np.int64], max_new_tokens: int, after: int) -> Cancelled:
    """Generate with a fresh generator and stop it once `after` tokens are there; the caller drops it then.

    After `terminate_session` the runtime has the next call raise.
    """
    generator.append_tokens(prompt.astype(np.int32))
    tokens = 0
    try:
        while not generator.is_done() and tokens < max_new_tokens:
            if tokens == after:
                if way == "dropped-generator":
                    break
                generator.set_runtime_option("terminate_session", "1")
            generator.generate_next_token()
            tokens += 1
    except Exception as error:  # noqa: BLE001 - the runtime raises RuntimeError and OrtException of its own
        return Cancelled(tokens, str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    return Cancelled(tokens)
