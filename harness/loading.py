"""Loading a session in its worker: the device claimed, and what the session says of itself checked."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from harness.backend import SessionInfo
from harness.device_lock import Holder
from harness.errors import Stage, StageError
from harness.run import Settings
from harness.target import Precision, Target
from harness.worker import Worker

_CLAIM_SECONDS = 0.5


def claim_device(worker: Worker, target: Target, seconds: float, announce: Callable[[str], None]) -> StageError | None:
    """Wait until no other process uses the target's device; a CPU is shared. The error if that takes longer."""
    end, told = time.monotonic() + seconds, False
    while True:
        holder = worker.call(Stage.LOAD, "claim", target=str(target))
        if holder is None:
            return None
        found = msgspec.convert(holder, Holder)
        if time.monotonic() >= end:
            return StageError(
                Stage.LOAD,
                f"the device of {target} is in use by {found}",
                "let that end, or wait longer with --device-wait SECONDS",
            )
        if not told:
            announce(f"{target} waits for its device: {found}")
            told = True
        time.sleep(_CLAIM_SECONDS)


def load_session(
    worker: Worker, target: Target, location: str, options: Mapping[str, str], settings: Settings
) -> SessionInfo:
    """Load the artifact at `location`, a path on the worker's machine; see `check_session`. Raises StageError(load)."""
    found = worker.call(
        Stage.LOAD,
        "load",
        artifact=location,
        target=str(target),
        options=dict(options),
        trust_remote_code=settings.trust_remote_code,
    )
    return msgspec.convert(found, SessionInfo)


def check_session(info: SessionInfo, target: Target, vocabulary: int) -> None:
    """Raises StageError(load) where a session says of itself what cannot be judged."""
    if info.arithmetic in (Precision.INT8, Precision.INT4):
        raise StageError(
            Stage.LOAD,
            f"{target} says that it computes in {info.arithmetic.value}: arithmetic is a float precision",
            "mend the adapter: integer products with float scales are the arithmetic of those scales",
        )
    if info.vocabulary != vocabulary:
        raise StageError(
            Stage.LOAD,
            f"the artifact has a vocabulary of {info.vocabulary}, the checkpoint one of {vocabulary}",
            "give the checkpoint that the artifact was made from: --checkpoint",
        )
