from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness import watch
from harness.errors import Stage
from harness.orphans import Tree
from harness.watch import GIB, Excess, Limits, MemoryWatch


class _Tree:
    """Stands in for a worker that holds so many bytes."""

    def __init__(self, held: int) -> None:
        self.held = held
        self.looks = 0

    def memory(self) -> int:
        self.looks += 1
        return self.held


def _watch(held: int, limits: Limits, monkeypatch: pytest.MonkeyPatch, **machine: int) -> tuple[Any, MemoryWatch]:
    found = SimpleNamespace(total=16 * GIB, available=8 * GIB)
    found.__dict__.update(machine)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: found)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.0)
    tree: Any = _Tree(held)
    return tree, MemoryWatch(tree, limits)


def test_without_a_limit_a_worker_may_hold_what_the_machine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, watching = _watch(15 * GIB, Limits(), monkeypatch)
    watching.look()
    assert tree.looks == 1


def test_a_worker_over_its_limit_is_named_with_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    _, watching = _watch(3 * GIB, Limits(memory=int(2.5 * GIB)), monkeypatch)
    with pytest.raises(Excess) as caught:
        watching.look()
    assert caught.value.problem == "it held 3.00 GiB of memory, more than --worker-memory 2.5"
    assert "--worker-memory" in caught.value.remedy


@pytest.mark.parametrize(
    ("held", "available", "total", "killed"),
    [
        (GIB, 299_000_000, 8 * GIB, True),
        (GIB, 310_000_000, 8 * GIB, False),
        (2 * GIB, GIB, 64 * GIB, True),  # 2 % of a large machine
        (100_000_000, 200_000_000, 8 * GIB, False),  # to end it would help nobody
    ],
)
def test_a_machine_without_memory_costs_the_worker_that_holds_it(
    monkeypatch: pytest.MonkeyPatch, held: int, available: int, total: int, killed: bool
) -> None:
    _, watching = _watch(held, Limits(), monkeypatch, available=available, total=total)
    if killed:
        with pytest.raises(Excess, match="the machine had"):
            watching.look()
    else:
        watching.look()


def test_looks_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    tree, watching = _watch(GIB, Limits(), monkeypatch)
    monkeypatch.setattr(watch, "LOOK_SECONDS", 60.0)
    for _ in range(10):
        watching.look()
    assert tree.looks == 0


def test_a_mark_lasts_until_the_next_one_and_names_itself() -> None:
    limits = Limits({Stage.LOAD: 5.0})
    assert (limits.seconds(Stage.LOAD), limits.seconds(Stage.RUN)) == (5.0, watch.TIMEOUTS[Stage.RUN])
    limits.mark({Stage.RUN: 1.0})
    assert (limits.seconds(Stage.LOAD), limits.seconds(Stage.RUN)) == (5.0, 1.0)
    assert "@pytest.mark.stage_timeout(run=" in limits.remedy(Stage.RUN)
    assert "--stage-timeout load=" in limits.remedy(Stage.LOAD)
    limits.mark({})
    assert limits.seconds(Stage.RUN) == watch.TIMEOUTS[Stage.RUN]


def test_memory_is_that_of_the_process_and_of_what_it_started() -> None:
    with psutil.Popen([sys.executable, "-c", "x = b'x' * (64 << 20); input()"], stdin=-1, stdout=-1) as child:
        try:
            whole = _peak(Tree(psutil.Process().pid, None), 64 << 20)
            assert whole > psutil.Process().memory_info().rss + (64 << 20)
        finally:
            child.kill()


def _peak(tree: Tree, more: int) -> int:
    """The memory of a tree once a child has grown."""
    own = psutil.Process().memory_info().rss
    found = 0
    for _ in range(1000):
        found = max(found, tree.memory())
        if found > own + more:
            break
    return found
