"""Stopping OpenVINO in the middle of a generation: `InferRequest.cancel()` from another thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from harness.endurance import Cancelled

# Between two calls of cancel: one that comes while no inference runs has no effect.
_PAUSE_SECONDS = 0.001


def cancel_request(request: Any, generate: Callable[[Callable[[], None]], int], after: int) -> Cancelled:
    """Cancel the inferences of a request again and again from the `after`th on, until the generation ends.

    `generate` runs the generation, calls what it is given before each inference, and returns how many tokens it gave.
    The runtime has the inference that was waited for raise.
    """
    calls = 0
    found = Cancelled(0)

    def count() -> None:
        nonlocal calls
        calls += 1

    def run() -> None:
        nonlocal found
        try:
            found = Cancelled(generate(count))
        except Exception as error:  # noqa: BLE001 - the runtime raises RuntimeError of many origins; it is reported
            last = [line for line in str(error).splitlines() if line.strip()]
            found = Cancelled(max(calls - 1, 0), last[-1].strip() if last else type(error).__name__)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        if calls > after:
            request.cancel()
        time.sleep(_PAUSE_SECONDS)
    thread.join()
    return found
