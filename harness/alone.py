"""What is timed is timed alone: while a case marked `timed` runs, the other workers of pytest-xdist run none.

Each worker holds a lock of its own while it runs a case; who times holds all of them. They wait where one case ends and
the next begins, which the seconds of neither have in them.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Generator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import filelock
import pytest

TIMED = "timed"
MEANING = "timed: the case measures time; under pytest-xdist no other runs beside it"
_FOLDER: pytest.StashKey[Path] = pytest.StashKey()


class Alone:
    """Takes turns with other workers, which name the same folder: any cases at once, or one that is timed."""

    def __init__(self, folder: Path, worker: str, workers: int) -> None:
        folder.mkdir(exist_ok=True)
        # Who wants to run a case goes through the gate, and whoever waits for the others' locks keeps it shut.
        self._gate = filelock.FileLock(folder / "gate")
        self._own = filelock.FileLock(folder / worker)
        self._all = [filelock.FileLock(folder / f"gw{number}") for number in range(workers)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Set up, call and tear down in turn."""
        timed = item.get_closest_marker(TIMED) is not None
        with ExitStack() as held:
            with self._gate:
                for lock in self._all if timed else [self._own]:
                    held.enter_context(lock)
            return (yield)


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark, and under xdist what heeds it."""
    config.addinivalue_line("markers", MEANING)
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        turns = Alone(_folder(worker), worker["workerid"], worker["workercount"])
        config.pluginmanager.register(turns, "phi3-conformance-turns")


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """In the main process: know the folder that the workers will make."""
    node.config.stash[_FOLDER] = _folder(node.workerinput)


def pytest_unconfigure(config: pytest.Config) -> None:
    """In the main process: remove it, once there are no workers any more."""
    if _FOLDER in config.stash:
        shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)


def _folder(worker: Mapping[str, Any]) -> Path:
    return Path(tempfile.gettempdir()) / f"phi3-conformance-turns-{worker['testrunuid']}"
