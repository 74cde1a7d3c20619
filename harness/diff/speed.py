"""Speed and memory of two runs as ratios, beside the noise that was measured.

Nothing here makes a regression of itself: a speed is judged where a policy or an option says how much slower is too
slow, and then only beyond the noise.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence

import msgspec

from harness.record import RunRecord, SessionRecord

Quantities = dict[tuple[str, int], tuple[float, ...]]
"""Repeats of every quantity of a session, by its name and the prompt's tokens, 0 where there is no prompt."""

FIRST_TOKEN, TOKEN = "time to first token", "time per token"
LOAD, MEMORY, SIZE = "load and compile", "peak memory", "artifact size"
UNITS = {FIRST_TOKEN: "ms", TOKEN: "ms", LOAD: "s", MEMORY: "bytes", SIZE: "bytes"}


class SpeedChange(msgspec.Struct, frozen=True):
    """A quantity of a target in both runs, medians in `unit`; less is better for all of them.

    `noise` is the quotient up to which two measurements of the same differ, at least 1; None where it was not
    measured, since there was one figure only. `prompt_tokens` is 0 for what has no prompt.
    """

    target: str
    what: str
    prompt_tokens: int
    unit: str
    before: float
    after: float
    noise: float | None

    @property
    def ratio(self) -> float:
        """After over before: above 1 is slower or larger."""
        return self.after / self.before

    @property
    def beyond(self) -> bool:
        """Whether it moved by more than the noise; never where the noise is unknown."""
        if self.noise is None:
            return False
        return self.after > self.noise * self.before or self.before > self.noise * self.after

    @property
    def is_time(self) -> bool:
        """Whether it is one of the two latencies, which are all that a limit on slowing down concerns."""
        return self.what in (FIRST_TOKEN, TOKEN)


def compare_speed(before: RunRecord, after: RunRecord, runs: Sequence[Sequence[RunRecord]]) -> list[SpeedChange]:
    """Every quantity that both records have; `runs` are groups of records of one machine, for their noise."""
    new = {session.target: quantities(session) for session in after.sessions}
    groups = [[{s.target: quantities(s) for s in record.sessions} for record in group] for group in runs]
    found: list[SpeedChange] = []
    for session in before.sessions:
        old, other = quantities(session), new.get(session.target, {})
        for key in old.keys() & other.keys():
            between = [[run.get(session.target, {}).get(key, ()) for run in group] for group in groups]
            medians = statistics.median(old[key]), statistics.median(other[key])
            noise = _noise(key[0], [old[key], other[key]], between)
            found.append(SpeedChange(session.target, *key, UNITS[key[0]], *medians, noise))
    order = list(UNITS)
    return sorted(found, key=lambda change: (change.target, order.index(change.what), change.prompt_tokens))


def slower(changes: Sequence[SpeedChange], factor: float) -> list[SpeedChange]:
    """The latencies that grew by more than a factor, and by more than their noise."""
    return [change for change in changes if change.is_time and change.beyond and change.ratio > factor]


def quantities(session: SessionRecord) -> Quantities:
    """Every quantity that was measured of a session; what is zero was not."""
    found: Quantities = {}
    for speed in session.speed:
        found[FIRST_TOKEN, speed.prompt_tokens] = tuple(speed.first_token_ms)
        found[TOKEN, speed.prompt_tokens] = tuple(speed.token_ms)
    if session.timings is not None:
        found[LOAD, 0] = (session.timings.load,)
    found[MEMORY, 0] = (float(session.peak_memory_bytes),)
    found[SIZE, 0] = (float(session.artifact.bytes),)
    return {key: values for key, values in found.items() if values and all(value > 0 for value in values)}


def _noise(what: str, repeats: Sequence[Sequence[float]], runs: Sequence[Sequence[Sequence[float]]]) -> float | None:
    """The square of the largest quotient seen: of the repeats' quartiles in a session, and of medians between runs.

    Of what a run has one figure of, two runs are too few to tell.
    """
    if what == SIZE:
        return 1.0
    seen = [quotient for values in repeats for quotient in _spread(values)]
    enough = 2 if seen else 3
    for group in runs:
        medians = [statistics.median(values) for values in group if values]
        if len(medians) >= enough:
            seen.append(max(medians) / min(medians))
    return max(seen) ** 2 if seen else None


def _spread(values: Sequence[float]) -> Iterator[float]:
    if len(values) >= 3:
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        yield high / low
