"""Two runs compared as wholes: what may be compared, what regressed, and the exit status that says so."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TypeVar

import msgspec

from harness.diff.cases import CaseChange, Change, compare_cases, side
from harness.diff.noise import TargetNoise, measure
from harness.diff.speed import SpeedChange, compare_speed, slower
from harness.diff.surroundings import Area, Surroundings, compare_surroundings
from harness.errors import RecordError, UsageError
from harness.localise import Localisation
from harness.record import CaseRecord, RunRecord, SessionRecord
from harness.target import Target, matches

SCHEMA = 1
Asked = dict[str, tuple[list[int], int]]
"""The prompts of a suite with the golden's answers, by their ids: token ids, and how many of them are the prompt's."""
Part = TypeVar("Part", SessionRecord, CaseRecord)
# What may differ between repeats of a run on one machine: what it was judged by, not what it computed.
_HARMLESS = {Area.POLICY, Area.WAIVERS}


class RunFacts(msgspec.Struct, frozen=True):
    """A run as a comparison names it: `name` is its file's; `judged` the number of its cases that were."""

    name: str
    started: str
    complete: bool
    exit_status: int
    judged: int


class TargetDiff(msgspec.Struct, frozen=True):
    """What became of a target: cases by class, where it breaks in the second run, and its measured noise."""

    target: str
    counts: dict[str, int]
    first_bad: str
    localisation: Localisation | None
    noise: TargetNoise


class Verdict(str, enum.Enum):
    """What a comparison concludes, worst first."""

    REGRESSED = "REGRESSED"
    MISSING = "MISSING"
    DIFFERS = "DIFFERS"
    NOTHING_REGRESSED = "NOTHING REGRESSED"


class Demands(msgspec.Struct, frozen=True):
    """What fails beside a regression: `missing` cases, with `strict` whatever is not the same or mended, and a latency
    that grew by more than the factor `slower`, None for any."""

    missing: bool = True
    strict: bool = False
    slower: float | None = None


class Diff(msgspec.Struct, frozen=True):
    """Two runs compared. `warnings` are what a reader must know before believing any of it."""

    schema: int
    before: RunFacts
    after: RunFacts
    surroundings: Surroundings
    cases: list[CaseChange]
    targets: list[TargetDiff]
    speed: list[SpeedChange]
    warnings: list[str]

    def of(self, change: Change) -> list[CaseChange]:
        """The cases of a class."""
        return [case for case in self.cases if case.change is change]

    @property
    def in_common(self) -> int:
        """How many cases were judged in both runs: without any, nothing has been compared."""
        return sum(case.change not in (Change.MISSING, Change.NEW) for case in self.cases)

    def verdict(self, demands: Demands) -> Verdict:
        """The worst of what was found and is demanded not to be."""
        if self.of(Change.REGRESSION) or self.too_slow(demands):
            return Verdict.REGRESSED
        if self.of(Change.MISSING) and (demands.missing or not self.in_common):
            return Verdict.MISSING
        new_failures = [case for case in self.of(Change.NEW) if case.after != "PASS"]
        if demands.strict and (self.of(Change.CHANGED) or self.of(Change.DIFFERENCE) or new_failures):
            return Verdict.DIFFERS
        return Verdict.NOTHING_REGRESSED

    def too_slow(self, demands: Demands) -> list[SpeedChange]:
        """The latencies that grew by more than is demanded."""
        return [] if demands.slower is None else slower(self.speed, demands.slower)

    def exit_status(self, demands: Demands) -> int:
        """0 where nothing regressed, 1 otherwise."""
        return int(self.verdict(demands) is not Verdict.NOTHING_REGRESSED)


def compare_runs(
    before: RunRecord, after: RunRecord, names: tuple[str, str], repeats: Sequence[tuple[str, RunRecord]] = ()
) -> Diff:
    """Compare two records; `repeats` are further runs, with their names, on the machine of either.

    Raises RecordError where the two cannot be compared, or a repeat is of another machine than both.
    """
    for name, record in zip(names, (before, after), strict=True):
        _check(name, record)
    _check_same_checkpoint(before, after)
    foreign = _foreign_subjects(before, after)
    groups = _groups(before, after, repeats)
    surroundings = compare_surroundings(before, after)
    noise = measure(before, after, groups)
    cases = compare_cases(side(before), side(after), noise, foreign)
    if all(case.change is Change.NEW for case in cases):
        raise RecordError(f"no case was judged in {names[0]}", "compare with a run that judged something")
    return Diff(
        schema=SCHEMA,
        before=_facts(names[0], before),
        after=_facts(names[1], after),
        surroundings=surroundings,
        cases=cases,
        targets=_targets(cases, after, noise),
        speed=compare_speed(before, after, groups),
        warnings=list(_warnings(before, after, _unmeasured(cases, noise), foreign)),
    )


def of_host(record: RunRecord, host: str) -> RunRecord:
    """The part of a record that one machine of a lab made, as if it had been that machine's own run.

    Raises RecordError where the record has no such host.
    """
    if host not in record.hosts:
        known = ", ".join(sorted(record.hosts)) or "none"
        raise RecordError(f"the record has no host {host!r}", f"its hosts: {known}")
    return msgspec.structs.replace(
        record,
        machine=record.hosts[host],
        hosts={},
        runtimes=[msgspec.structs.replace(r, host=None) for r in record.runtimes if r.host == host],
        sessions=[_without_host(s) for s in record.sessions if Target.parse(s.target).host == host],
        cases=[_without_host(c) for c in record.cases if Target.parse(c.target).host == host],
    )


def of_targets(record: RunRecord, patterns: Sequence[str]) -> RunRecord:
    """The part of a record whose targets match one of the globs; all of it where there are none."""
    if not patterns:
        return record

    def wanted(target: str) -> bool:
        return any(matches(Target.parse(target), pattern) for pattern in patterns)

    return msgspec.structs.replace(
        record,
        sessions=[session for session in record.sessions if wanted(session.target)],
        cases=[case for case in record.cases if wanted(case.target)],
    )


def _without_host(part: Part) -> Part:
    here = msgspec.structs.replace(Target.parse(part.target), host=None)
    return msgspec.structs.replace(part, target=str(here))


def _check(name: str, record: RunRecord) -> None:
    """Raises RecordError for a record that nothing can be compared with."""
    counts = Counter((case.target, case.case) for case in record.cases)
    twice = [key for key, count in counts.items() if count > 1]
    if twice:
        raise RecordError(
            f"{name} has {twice[0][1]} of {twice[0][0]} {counts[twice[0]]} times", "compare records of one run each"
        )


def _check_same_checkpoint(before: RunRecord, after: RunRecord) -> None:
    if before.checkpoint is None or after.checkpoint is None:
        raise RecordError("a record names no checkpoint: nothing was judged in its run", "compare runs that judged")
    one, other = before.checkpoint.fingerprint, after.checkpoint.fingerprint
    parts = [part for part in ("weights", "tokenizer", "config") if getattr(one, part) != getattr(other, part)]
    if parts:
        raise RecordError(
            f"the runs judged different checkpoints: {before.checkpoint.name} and {after.checkpoint.name} differ in "
            f"their {', '.join(parts)}",
            "compare runs of one checkpoint; candidates of one release are compared by phi3-conformance signoff",
        )


def _foreign_subjects(before: RunRecord, after: RunRecord) -> frozenset[str]:
    """Prompts that are others under the same name, and suites that hold one. Raises RecordError where none can tell."""
    edited = [name for name, sha256 in before.suites.items() if after.suites.get(name, sha256) != sha256]
    if not edited:
        return frozenset()
    old, new = _prompts(before), _prompts(after)
    if not old or not new:
        raise RecordError(
            f"the prompts of {', '.join(edited)} are not the same in both runs, and a record does not hold them",
            "run both with the same prompts",
        )
    others = {prompt for suite in edited for prompt in _others(old.get(suite, {}), new.get(suite, {}))}
    changed = {suite for suite in edited if old.get(suite) != new.get(suite)}
    return frozenset(others | changed)


def _others(old: Asked, new: Asked) -> set[str]:
    return {prompt for prompt in old.keys() & new.keys() if old[prompt] != new[prompt]}


def _prompts(record: RunRecord) -> dict[str, Asked]:
    found: dict[str, Asked] = {}
    for prompt in record.prompts:
        found.setdefault(prompt.suite, {})[prompt.id] = (prompt.tokens, prompt.prefill)
    return found


def _groups(
    before: RunRecord, after: RunRecord, repeats: Sequence[tuple[str, RunRecord]]
) -> tuple[list[RunRecord], list[RunRecord]]:
    """Each side with its repeats. Raises RecordError for one that is of neither."""
    groups: tuple[list[RunRecord], list[RunRecord]] = ([before], [after])
    for name, record in repeats:
        _check(name, record)
        _check_same_checkpoint(before, record)
        fits = [group for group in groups if not _altered(group[0], record)]
        if not fits:
            areas = ", ".join(area.value for area in _altered(before, record))
            raise RecordError(
                f"{name} is no repeat of either run: from the first it differs in {areas}",
                "repeat a run on the same machine with nothing changed",
            )
        fits[0].append(record)
    return groups


def _altered(run: RunRecord, repeat: RunRecord) -> list[Area]:
    return [area for area in compare_surroundings(run, repeat).areas if area not in _HARMLESS]


def _facts(name: str, record: RunRecord) -> RunFacts:
    judged = sum(case.outcome != "UNSUPPORTED" for case in record.cases)
    return RunFacts(name, record.started, record.complete, record.exit_status, judged)


def _targets(cases: Sequence[CaseChange], after: RunRecord, noise: dict[str, TargetNoise]) -> list[TargetDiff]:
    sessions = {session.target: session for session in after.sessions}
    found = []
    for target in dict.fromkeys(case.target for case in cases):
        counts = Counter(case.change.value for case in cases if case.target == target)
        session = sessions.get(target)
        measured = msgspec.structs.replace(noise.get(target, TargetNoise(target)), own={})
        first_bad = session.first_bad if session else ""
        found.append(TargetDiff(target, dict(counts), first_bad, session.localisation if session else None, measured))
    return found


def _unmeasured(cases: Sequence[CaseChange], noise: dict[str, TargetNoise]) -> list[str]:
    """The targets with numbers that moved and no noise to hold that against."""
    moved = dict.fromkeys(case.target for case in cases if case.moves)
    return [target for target in moved if not noise.get(target, TargetNoise(target)).measured]


def _warnings(before: RunRecord, after: RunRecord, unmeasured: Sequence[str], foreign: frozenset[str]) -> Iterator[str]:
    for which, record in (("first", before), ("second", after)):
        if not record.complete:
            yield f"the {which} run was cut short: what it did not reach is named incomplete"
    if unmeasured:
        yield (
            f"the noise of {_and_more(unmeasured)} was not measured: any change beyond float rounding counts as a "
            "difference; give further runs of the same machine with --repeat"
        )
    if foreign:
        yield f"other prompts under the same names: {_and_more(sorted(foreign))}; their cases were not compared"
    if before.policy_sha256 != after.policy_sha256:
        yield "the runs were judged by different policies: an outcome may have changed by its limit alone"
    if before.waivers_sha256 != after.waivers_sha256:
        yield "the runs had different waivers: see what is said of each case"


def _and_more(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def check_patterns(patterns: Sequence[str], records: Sequence[RunRecord]) -> None:
    """Raise UsageError for a glob that matches no target of any record."""
    targets = sorted({case.target for record in records for case in record.cases})
    for pattern in patterns:
        if not any(matches(Target.parse(target), pattern) for target in targets):
            raise UsageError(f"--targets {pattern!r} matches no target", f"in the records: {', '.join(targets)}")
