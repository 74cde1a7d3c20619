"""A session that wears out: the planted one, which can be stopped, loaded twice, and made to keep what it should not.

PLANTED_FAULT: leaks-memory (2 MiB a load), leaks-handles (one a load), leaks-threads (one a load), leaks-in-calls
(64 KiB a call), breaks-after-cancel, ignores-cancel, sessions-mix (a session that computes after another reads its
tokens backwards), drifts (logits grow by a millionth a call).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.backend import Capabilities, Session, SessionInfo
from harness.endurance import Cancelled
from harness.target import DeviceKind, Precision, Target
from phi3_planted import PlantedBackend, PlantedSession
from planted_cache import fault

_KEPT: list[Any] = []
_KEPT_FROM_CALLS: list[Any] = []


class WearingBackend(PlantedBackend):
    """Phi-3 in NumPy, wearing out."""

    name = "planted-wear"
    devices: Mapping[str, DeviceKind] = {"cpu": DeviceKind.CPU}

    def targets(self) -> Sequence[Target]:
        return [Target(self.name, "cpu", Precision.FP32)]

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        if fault("leaks-memory"):
            _KEPT.append(b"x" * (2 << 20))
        if fault("leaks-handles"):
            _KEPT.append(os.open(artifact / "config.json", os.O_RDONLY))  # a file object would be told of at the end
        if fault("leaks-threads"):
            thread = threading.Thread(target=threading.Event().wait, daemon=True)
            thread.start()
            _KEPT.append(thread)
        return WearingSession(artifact, target)


class WearingSession(PlantedSession):
    """One of perhaps two sessions in a process."""

    _fed_last: WearingSession | None = None

    def __init__(self, artifact: Path, target: Target) -> None:
        super().__init__(artifact, target)
        self._broken = False
        self._asked = 0

    @property
    def info(self) -> SessionInfo:
        plain = super().info
        return SessionInfo(
            plain.vocabulary, plain.arithmetic, plain.properties, plain.versions, Capabilities(repeats_exactly=True)
        )

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self._asked += 1
        if fault("leaks-in-calls"):
            _KEPT_FROM_CALLS.append(b"x" * (64 << 10))
        other, WearingSession._fed_last = WearingSession._fed_last, self
        mixes = fault("sessions-mix") and other not in (None, self)
        rows: NDArray[np.float32] = super().append(tokens[::-1].copy() if mixes else tokens)
        if fault("drifts"):
            rows = (rows * (1 + 1e-6 * self._asked)).astype(np.float32)
        return np.roll(rows, 1, axis=-1) if self._broken else rows

    def ways_to_cancel(self) -> Sequence[str]:
        return ("a-flag", "another-flag")

    def cancel(self, way: str, prompt: NDArray[np.int64], max_new_tokens: int, after: int) -> Cancelled:
        self._broken = fault("breaks-after-cancel") and way == "another-flag"
        return Cancelled(max_new_tokens if fault("ignores-cancel") else after, "" if way == "a-flag" else "cancelled")
