"""Marks of tests: other timeouts, and which cases are slow.

`@pytest.mark.stage_timeout(run=60)`, on a test, a class or a module, and `@pytest.mark.slow_but(member="phi-4-mini")`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from harness.errors import Stage, UsageError
from harness.state import STATE

MEANING = "stage_timeout(discover=S, prepare=S, load=S, run=S): seconds that a stage may take in this test"

SLOW_BUT = "slow_but(argument=value): slow, but for the cases with this value of an argument; of several, with all"


def pytest_configure(config: pytest.Config) -> None:
    """Register the marks."""
    config.addinivalue_line("markers", MEANING)
    config.addinivalue_line("markers", SLOW_BUT)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark as slow what `slow_but` does not except, before `-m` selects."""
    given = getattr(getattr(item, "callspec", None), "params", {})
    for mark in item.iter_markers("slow_but"):
        if any(str(given.get(name)) != value for name, value in mark.kwargs.items()):
            item.add_marker("slow")


def pytest_collection_modifyitems(config: pytest.Config, items: Sequence[pytest.Item]) -> None:
    """Refuse a mark that cannot be understood before anything runs.

    Not in an xdist worker, whose usage errors xdist takes for defects of its own: there each test with such a
    mark is an error.
    """
    if hasattr(config, "workerinput"):
        return
    for item in items:
        try:
            stage_timeouts(item)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Apply the marks of a test, or that it has none, before its fixtures load anything."""
    item.config.stash[STATE].mark(stage_timeouts(item))


def stage_timeouts(item: pytest.Item) -> dict[Stage, float]:
    """Seconds by stage, as the marks of a test have it; the nearest mark that names a stage decides.

    Raises UsageError for a mark that is not of the form.
    """
    found: dict[Stage, float] = {}
    for mark in item.iter_markers("stage_timeout"):
        if mark.args or not mark.kwargs:
            raise _misused(item, "it takes stages by name")
        for name, seconds in mark.kwargs.items():
            stage = next((stage for stage in Stage if stage.value == name and stage is not Stage.COMPARE), None)
            if stage is None:
                raise _misused(item, f"{name!r} is no stage")
            if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
                raise _misused(item, f"{name}={seconds!r} is no number of seconds")
            found.setdefault(stage, float(seconds))
    return found


def _misused(item: pytest.Item, problem: str) -> UsageError:
    stages = ", ".join(stage.value for stage in Stage if stage is not Stage.COMPARE)
    test = f"{item.path.name}::{getattr(item, 'originalname', item.name)}"
    return UsageError(
        f"{test}: the mark stage_timeout cannot be understood: {problem}",
        f"write @pytest.mark.stage_timeout(run=60), in seconds; stages: {stages}",
    )
