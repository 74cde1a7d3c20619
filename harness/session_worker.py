"""The worker of a target's session over time: started again where it died, given up where it keeps dying.

So is one whose device somebody else keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.errors import NotRun, Stage, StageError, WorkerDied, WorkerTimeout
from harness.run import Run
from harness.target import DeviceKind, Target
from harness.worker import Worker

MAX_DEATHS = 3
"""A target whose worker has died this often is given up."""


class SessionWorker:
    """Holds the worker that `load` has put into it. `load` raises StageError."""

    def __init__(self, run: Run, target: Target, load: Callable[[], None]) -> None:
        self.deaths = 0
        self.refused: StageError | None = None
        """Why the device is not to be had, once it was waited for in vain: each case would wait as long again."""
        self._run, self._target, self._load_new = run, target, load
        self._worker: Worker | None = None
        self._last_death: StageError | None = None
        self._untold: WorkerDied | None = None
        self._peak_memory = 0

    def start(self) -> None:
        """Load, the first time. Raises StageError with the stage that failed.

        A worker that dies while it loads counts as one that dies later: the error is the first case's, and
        the next case starts another. A hang is not tried again, since a load may take half an hour to time out.
        """
        try:
            self._load_new()
        except WorkerDied as error:
            if error.stage is not Stage.LOAD:
                raise
            self._count(error)
            self._untold = error

    def load(self, worker: Worker, load: Callable[[Worker], None]) -> None:
        """Load with a new worker, which is stopped where that raises."""
        self._worker = worker
        try:
            load(worker)
        except BaseException:
            worker.stop()
            raise

    def call(self, operation: str, **arguments: Any) -> Any:
        """Have it carry out an operation, in a new one where the last has died; see `TargetSession.call`."""
        if self._untold is not None:
            untold, self._untold = self._untold, None
            raise untold
        if self._worker is None or not self._worker.running:
            self._load_again()
        assert self._worker is not None
        try:
            return self._worker.call(Stage.RUN, operation, **arguments)
        except (WorkerDied, WorkerTimeout) as error:
            self._count(error)
            raise

    @property
    def peak_memory(self) -> int:
        """The most bytes that a process of this session has held so far, 0 where they cannot be counted."""
        self._peak_memory = max(self._peak_memory, self._worker.peak_memory if self._worker is not None else 0)
        return self._peak_memory

    @property
    def alive(self) -> bool:
        """Whether its process is there and would answer, so that it can be left clean.

        One that has ended is replaced at the next call. One that Ctrl-C was pressed on still computes: to ask it for
        anything would wait for that, and take the answer to the one call for that to the other.
        """
        return self._worker is not None and self._worker.listening

    def rest(self) -> None:
        """Let go of the device, for another session of ours; the session is loaded again at the next call.

        A CPU is shared, and its session stays.
        """
        if self._run.kind(self._target) is not DeviceKind.CPU and self._worker is not None:
            self._peak_memory = self.peak_memory
            self._worker.stop()

    def restart(self, *, spare_the_old: bool) -> None:
        """End its process, or spare it for a run beside this one, and load in a new one. Raises what `call` raises."""
        if self._worker is not None:
            self._peak_memory = self.peak_memory
            if spare_the_old:
                self._run.dismiss_for_others(self._target, self._worker)
            else:
                self._worker.stop()
        self._load_again()

    def close(self) -> None:
        """Let the worker go."""
        if self._worker is not None:
            self._run.dismiss(self._target, self._worker)
            self._worker = None

    def _load_again(self) -> None:
        if self._target.host is not None:  # a lost host is an error each time, and no crash of the target's
            self._run.crew.lab.check(self._target.host, Stage.RUN)
        if self.refused is not None:
            raise self.refused
        if self.deaths >= MAX_DEATHS and self._last_death is not None:
            last = self._last_death.problem.splitlines()[0]
            raise NotRun(
                f"{self._target} was given up after its worker had died {self.deaths} times, the last time so: {last}",
                self._last_death.remedy,
            )
        try:
            self._load_new()
        except (WorkerDied, WorkerTimeout) as error:
            self._count(error)
            raise

    def _count(self, error: StageError) -> None:
        self.deaths += 1
        self._last_death = error
