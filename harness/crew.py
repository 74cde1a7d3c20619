"""The worker processes of a run: started here or on a host, under the Python that has the backend's runtime."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePath

from harness.backend import Backend
from harness.connection import Host
from harness.devices import find_interpreter
from harness.discovery import Discovery
from harness.errors import ResourceError, Stage
from harness.golden import TREE
from harness.lab import Lab
from harness.target import Precision, Target
from harness.watch import Limits
from harness.worker import Worker


class Crew:
    """Hires workers and ends them all with `close`.

    `interpreters` are those the user named, by backend or by `backend:host`. Raises ResourceError when the
    temporary folder has no room for one of ours.
    """

    def __init__(
        self,
        backends: Mapping[str, Backend],
        *,
        interpreters: Mapping[str, PurePath],
        hosts: Mapping[str, Host],
        limits: Limits,
    ) -> None:
        self.backends = backends
        self.scratch = _make_scratch()
        self.lab = Lab(hosts, self._hire_outpost)
        self.discovery = Discovery(backends, self.hire, self.interpreter)
        self._interpreters = interpreters
        self._limits = limits
        self._workers: list[Worker] = []
        self._idle: dict[tuple[str, str | None], Worker] = {}

    def interpreter(self, target: Target) -> str | None:
        """The Python of a target's workers, None for the one running now or that of its host. Raises StageError."""
        backend = self.backends[target.backend]
        if target.host is None:
            found = find_interpreter(backend, self._interpreters, TREE, target.device)
            return None if found is None else str(found)
        named = self._interpreters.get(f"{target.backend}:{target.host}")
        return str(named) if named is not None else self.lab.interpreter(target.host, backend.name, target.device)

    def hire(self, label: str, target: Target) -> Worker:
        """A worker for a target, not yet started. Raises StageError when the target's host cannot be used."""
        interpreter = self.interpreter(target)
        if target.host is not None:
            return self._hire_there(label, self.lab.hosts[target.host], interpreter)
        return self._keep(Worker(label, self.scratch, interpreter=interpreter, limits=self._limits))

    def hire_for(self, label: str, backend: str) -> Worker:
        """A worker of this machine for a backend, whatever the device: the reference, an exporter."""
        device = next(iter(self.backends[backend].devices))
        return self.hire(label, Target(backend, device, Precision.FP32))

    def take(self, target: Target) -> Worker:
        """A started worker that has opened the target's backend. Raises StageError."""
        spare = self.discovery.take_spare(target)
        if spare is not None:
            spare.label = str(target)
            return spare
        worker = self.hire(str(target), target)
        worker.start()
        try:
            worker.call(Stage.LOAD, "open", backend=target.backend)
        except BaseException:
            worker.stop()
            raise
        return worker

    def keep_idle(self, role: str, target: Target, worker: Worker) -> None:
        """Keep a worker that has done its work for another of the same role and interpreter: see `take_idle`."""
        kept = self._idle.pop((role, self.interpreter(target)), None)
        self._idle[role, self.interpreter(target)] = worker
        if kept is not None:
            kept.stop()

    def take_idle(self, role: str, target: Target) -> Worker | None:
        """A worker that was kept, if it still runs; None where there is none."""
        kept = self._idle.pop((role, self.interpreter(target)), None)
        return kept if kept is not None and kept.running else None

    def close(self) -> None:
        """Stop every worker, those of sessions too if a run was cut short, and delete the scratch folder."""
        outposts = self.lab.outposts
        others = [worker for worker in self._workers if worker not in outposts]
        self._workers = []
        with contextlib.ExitStack() as last_first:  # and all of them, whatever one of them raises
            last_first.callback(shutil.rmtree, self.scratch, ignore_errors=True)
            for worker in (*outposts, *others):  # an outpost ends the workers of its host that do not end themselves
                last_first.callback(worker.stop)

    def _hire_outpost(self, label: str, host: Host) -> Worker:
        """One that nobody looks after: it is what looks after the others."""
        return self._keep(Worker(label, self.scratch, limits=self._limits, host=host))

    def _hire_there(self, label: str, host: Host, interpreter: str | None) -> Worker:
        worker = Worker(label, self.scratch, interpreter=interpreter, limits=self._limits, host=host, there=self.lab)
        return self._keep(worker)

    def _keep(self, worker: Worker) -> Worker:
        self._workers = [*(known for known in self._workers if known.running), worker]
        return worker


def _make_scratch() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="phi3-conformance-"))
    except OSError as error:
        raise ResourceError(
            f"there is no room for a temporary folder: {error}", "free space, or set TMPDIR (TEMP on Windows)"
        ) from None
