"""Where the time of a run went: by suite, with preparing and loading apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from rich.table import Table

from harness.record import CaseRecord, RunRecord

PREPARING, LOADING = "(preparing artifacts)", "(loading)"


class SuiteTime(NamedTuple):
    """A suite, which is a file of `conformance/`: cases that ran, their seconds, and the target that took longest."""

    suite: str
    cases: int
    seconds: float
    slowest: str
    slowest_seconds: float


def suite_of(case: CaseRecord) -> str:
    """The suite of a case: `cache` for a case of test_cache.py."""
    return case.id.partition("::")[0].rpartition("/")[2].removeprefix("test_").removesuffix(".py")


def suite_times(record: RunRecord) -> list[SuiteTime]:
    """Every suite, and preparing and loading, which took most first. What was not run here is left out.

    A suite's first case on a target has in it what that target needs once: the inference of its arithmetic, say.
    """
    by_suite: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    cases: Counter[str] = Counter()
    ran = {session.target for session in record.sessions}
    for case in (case for case in record.cases if case.target in ran):
        by_suite[suite_of(case)][case.target] += case.seconds
        cases[suite_of(case)] += 1
    for session in (s for s in record.sessions if s.timings is not None):
        assert session.timings is not None
        loading = session.timings.start + session.timings.load
        for name, seconds in ((PREPARING, session.timings.prepare), (LOADING, loading)):
            by_suite[name][session.target] += seconds
            cases[name] += 1
    found = []
    for suite, by_target in by_suite.items():
        target, most = max(by_target.items(), key=lambda item: item[1])
        found.append(SuiteTime(suite, cases[suite], sum(by_target.values()), target, most))
    return sorted(found, key=lambda time: -time.seconds)


def times_table(times: Sequence[SuiteTime]) -> Table:
    """The table that is printed."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("suite", no_wrap=True)
    for name in ("cases", "seconds", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("slowest target", no_wrap=True)
    total = sum(time.seconds for time in times) or 1.0
    for time in times:
        share = f"{100 * time.seconds / total:.0f} %"
        slowest = f"{time.slowest} ({time.slowest_seconds:.1f} s)"
        table.add_row(time.suite, str(time.cases), f"{time.seconds:.1f}", share, slowest)
    return table


def in_a_line(times: Sequence[SuiteTime], most: int = 6) -> str:
    """The suites that took most, for the end of a run."""
    shown = ", ".join(f"{time.suite} {time.seconds:.0f} s" for time in times[:most] if time.seconds >= 1)
    return f"time by suite: {shown}" if shown else ""
