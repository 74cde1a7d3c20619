"""Which cases of a run are soaks, and for how long: none, unless they are asked for.

A test marked `soak` is left out unless `-m` names the mark, `--minutes` is given, or its case is named in full. It is
deselected then and not skipped: pytest counts it as such, and no outcome claims that it ran.
"""

from __future__ import annotations

import math
import re

import pytest

from harness.errors import UsageError

DEFAULT_MINUTES = 1.0
MEANING = "soak: cases that go on for --minutes each; left out unless asked for, by -m soak or --minutes"


def pytest_configure(config: pytest.Config) -> None:
    """Register the mark; refuse a time that is none."""
    config.addinivalue_line("markers", MEANING)
    try:
        minutes(config)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out soaks that nobody has asked for."""
    if config.getoption("minutes") is not None or re.search(r"\bsoak\b", config.getoption("markexpr")):
        return
    left_out = [item for item in items if item.get_closest_marker("soak") is not None and not _named(config, item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def minutes(config: pytest.Config) -> float:
    """How long each soak goes on. Raises UsageError for what is no time."""
    given: float | None = config.getoption("minutes")
    found = DEFAULT_MINUTES if given is None else given
    if not 0 < found < math.inf:
        raise UsageError(f"--minutes {found:g} is no time", "give each soak some minutes: --minutes 10")
    return found


def _named(config: pytest.Config, item: pytest.Item) -> bool:
    """Whether a case is named on the command line, as a report of it tells to."""
    name = item.nodeid.partition("::")[2]
    return any(argument.partition("::")[2] == name for argument in config.args)
