"""What a worker can testify of where its session computed: the runtime's word, and the system's busy counters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import numpy as np

from harness.backend import Session, teacher_force
from harness.busy import BusyMeter, Counter, find_counters
from harness.target import DeviceKind, Evidence, Unavailable

# A session that has been asked for little is made to work on, so that a counter has something to show, for at
# most this many seconds more.
_MORE_SECONDS = 3.0
# After the load, after the first call, and once more.
_LOOKS = 3


class Witness:
    """Reads the busy counters around a session's calls. Made after the model is loaded: only then do they exist.

    Some runtimes open the device with the first call: counters that are not there yet are looked for again when
    evidence is asked for. `device` is the device's name without index. `find` looks for counters; nothing is
    looked for, and no time is spent, for a processor.
    """

    def __init__(
        self,
        session: Session,
        kind: DeviceKind,
        device: str = "",
        *,
        find: Callable[[], Sequence[Counter] | Unavailable] | None = None,
        meter: Callable[[Sequence[Counter]], BusyMeter] = BusyMeter,
    ) -> None:
        self._session = session
        self._make = meter
        self._meter: BusyMeter | None = None
        self._unread = ""
        self._looks = 0 if kind is DeviceKind.CPU else _LOOKS
        properties = session.info.properties
        adapter = properties.get("luid") or properties.get("pci")
        nvidia = None if not device or kind is not DeviceKind.GPU else device == "cuda"
        self._find = find or (lambda: find_counters(kind, adapter=adapter, nvidia=nvidia))
        self._look()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Count what happens inside as the session's work."""
        if self._meter is None:
            yield
            return
        with self._meter.work():
            yield

    def testify(self) -> Evidence:
        """What the session says of itself, with the readings of the last second or more of its work."""
        self._look()
        evidence = self._session.evidence()
        if self._meter is None:
            return msgspec.structs.replace(evidence, unread=self._unread)
        self._work_on(self._meter)
        readings = self._meter.readings()
        unread = "; ".join(f"{name} is read no more: {why}" for name, why in self._meter.unread.items())
        return msgspec.structs.replace(evidence, readings=readings, unread=unread)

    def _look(self) -> None:
        """Look for counters, and for what they do by themselves, unless they were found or given up."""
        if self._meter is not None or self._looks == 0:
            return
        self._looks -= 1
        found = self._find()
        if isinstance(found, Unavailable):
            self._unread = f"no busy counter was read: {found}"
            return
        self._meter = self._make(found)
        self._meter.baseline()

    def _work_on(self, meter: BusyMeter) -> None:
        """Before the first window is full, fill it."""
        prompt, more = np.arange(1, 9, dtype=np.int64), np.array([1], dtype=np.int64)
        end = time.perf_counter() + _MORE_SECONDS
        while meter.reads and not meter.readings() and time.perf_counter() < end:
            with meter.work():
                teacher_force(self._session, prompt, more)
