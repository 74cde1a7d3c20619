"""What a worker may take of time and memory, and whether it has taken too much."""

from __future__ import annotations

import time
from collections.abc import Mapping

import psutil

from harness.errors import Stage
from harness.orphans import Tree

# Seconds allowed for one call, by stage. Export and load of a full-size model take minutes.
TIMEOUTS: dict[Stage, float] = {
    Stage.DISCOVER: 180.0,
    Stage.PREPARE: 7200.0,
    Stage.LOAD: 1800.0,
    Stage.RUN: 1800.0,
}
LOOK_SECONDS = 0.5
GIB = 1 << 30
# Below this the kernel would soon choose a victim, and the machine be too slow to use before it does.
_FLOOR_BYTES = 300_000_000
_FLOOR_SHARE = 0.02


class Limits:
    """What every worker of a run may take; `mark` changes it for one test.

    `timeouts` are seconds by stage where they are not the usual ones, `memory` is in bytes, None for no limit.
    """

    def __init__(self, timeouts: Mapping[Stage, float] | None = None, memory: int | None = None) -> None:
        self.memory = memory
        self._timeouts = {**TIMEOUTS, **(timeouts or {})}
        self._marked: dict[Stage, float] = {}

    def mark(self, timeouts: Mapping[Stage, float]) -> None:
        """Let the test that runs now have other timeouts, in place of those of the test before."""
        self._marked = dict(timeouts)

    def seconds(self, stage: Stage) -> float:
        """Seconds allowed for a call of a stage."""
        return self._marked.get(stage, self._timeouts[stage])

    def remedy(self, stage: Stage) -> str:
        """How to give calls of a stage more time."""
        if stage in self._marked:
            return f"if it only needs longer: @pytest.mark.stage_timeout({stage.value}=SECONDS) on the test"
        return f"if it only needs longer: --stage-timeout {stage.value}=SECONDS"


class Excess(Exception):
    """A worker holds too much memory: what was found, and the remedy."""

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy


class MemoryWatch:
    """Looks at the memory of one worker now and then. A look takes milliseconds, so it is taken twice a second."""

    def __init__(self, tree: Tree, limits: Limits) -> None:
        self._tree = tree
        self._limits = limits
        self._looked = time.monotonic()

    def look(self) -> None:
        """Raise Excess when the worker holds more than it may, or the machine has hardly any memory left."""
        if time.monotonic() - self._looked < LOOK_SECONDS:
            return
        held, machine = self._tree.memory(), psutil.virtual_memory()
        self._looked = time.monotonic()
        allowed = self._limits.memory
        if allowed is not None and held > allowed:
            raise Excess(
                f"it held {held / GIB:.2f} GiB of memory, more than --worker-memory {allowed / GIB:g}",
                "if it needs that much: a larger --worker-memory GIB",
            )
        floor = max(_FLOOR_BYTES, int(_FLOOR_SHARE * machine.total))
        if machine.available < floor < held:  # a small worker is not what ails the machine
            raise Excess(
                f"it held {held / GIB:.2f} GiB of memory and the machine had {machine.available / GIB:.2f} GiB left",
                "end other programs, judge a smaller model, or see with --worker-memory GIB when it leaks",
            )
