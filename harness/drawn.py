"""Cases drawn by hypothesis, the same ones every time: driver A and driver B are asked the same.

Nothing is drawn from a database of earlier failures, and the seed is fixed, so that cases depend on the strategy and
on hypothesis' version alone, which the record has.
"""

from __future__ import annotations

from typing import TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis.strategies import SearchStrategy

T = TypeVar("T")


def fixed_settings(examples: int, phases: tuple[Phase, ...] = (Phase.generate,), steps: int = 50) -> settings:
    """Settings under which hypothesis draws the same `examples` examples, a state machine's of so many steps."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=False,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        stateful_step_count=steps,
    )


def examples(strategy: SearchStrategy[T], count: int) -> list[T]:
    """At most `count` examples of a strategy, in the order in which hypothesis tries them."""
    found: list[T] = []

    @hypothesis.seed(0)
    @fixed_settings(count)
    @hypothesis.given(strategy)
    def collect(example: T) -> None:
        found.append(example)

    collect()
    return found
