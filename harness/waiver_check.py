"""Whether waivers are in date, match anything that there is, and are still needed by the runs at hand."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec

from harness.record import CaseRecord, RunRecord
from harness.target import Target
from harness.waivers import Waiver

# So long before it expires, a waiver is mentioned.
_SOON = datetime.timedelta(days=30)


class Found(msgspec.Struct, frozen=True):
    """One finding about a waiver: `wrong` ones fail the check, others are for people to know."""

    waiver: str
    wrong: bool
    sentence: str


class DeclaredCase(Protocol):
    """A case that could be run: its target and `test_name[prompt-or-suite]`."""

    @property
    def target(self) -> Target:
        """Its target."""
        ...

    @property
    def case(self) -> str:
        """Its name."""
        ...


def check_declared(waivers: Sequence[Waiver], cases: Sequence[DeclaredCase], today: datetime.date) -> list[Found]:
    """Hold waivers against the calendar and against every case that is declared.

    Hosts and indices of devices are not declared, so a waiver for one is held against the device without them.
    """
    targets = sorted({case.target for case in cases})
    found: list[Found] = []
    for waiver in waivers:
        found += _dates(waiver, today)
        general = msgspec.structs.replace(waiver, targets=_general(waiver.targets))
        matched = [target for target in targets if general.covers_target(target)]
        if not matched:
            found.append(Found(waiver.id, True, f"no declared target matches {waiver.targets!r}"))
            continue
        names = {case.case for case in cases if case.target in set(matched)}
        for glob in waiver.cases:
            if not any(msgspec.structs.replace(general, cases=(glob,)).covers(matched[0], name) for name in names):
                found.append(Found(waiver.id, True, f"no case matches {glob!r}: mend the glob or delete it"))
    return found


def _dates(waiver: Waiver, today: datetime.date) -> Iterator[Found]:
    if waiver.expired(today):
        yield Found(waiver.id, True, f"expired on {waiver.expires}: look at {waiver.url}, then extend or delete it")
    elif waiver.expired(today + _SOON):
        yield Found(waiver.id, False, f"expires on {waiver.expires}; owner: {waiver.owner}")


def _general(targets: str) -> str:
    """A glob over targets without a device's index and without a host."""
    parts = targets.split(":")[:3]
    if len(parts) > 1:
        parts[1] = re.sub(r"\.\d+$", "", parts[1])
    return ":".join(parts)


def check_records(waivers: Sequence[Waiver], records: Sequence[tuple[str, RunRecord]]) -> list[Found]:
    """Hold waivers against runs, each given with its name: still needed, passing now, or not tried by any of them."""
    return [found for waiver in waivers for found in _of_waiver(waiver, records)]


def _of_waiver(waiver: Waiver, records: Sequence[tuple[str, RunRecord]]) -> Iterator[Found]:
    needed, judged, other_versions = False, False, False
    for name, record in records:
        covered = [case for case in record.cases if _covers(waiver, case)]
        applying = [case for case in covered if _applies(waiver, case, record)]
        other_versions |= len(applying) < len(covered)
        judged |= bool(applying)
        needed |= any(_is_known(waiver, case) for case in applying)
        passing = [case for case in applying if (case.judged or case.outcome) == "PASS"]
        if passing:
            yield Found(waiver.id, True, f"{_cases(passing)} now in {name}: delete or narrow the waiver")
    if not judged:
        why = (
            "other checkpoints or versions than the defect's were run" if other_versions else "its targets were not run"
        )
        yield Found(waiver.id, False, f"says nothing of these runs: {why}")
    elif not needed:
        yield Found(waiver.id, True, "no case of these runs failed as it says: delete it or mend its pattern")


def _covers(waiver: Waiver, case: CaseRecord) -> bool:
    return case.outcome != "UNSUPPORTED" and waiver.covers(Target.parse(case.target), case.case)


def _applies(waiver: Waiver, case: CaseRecord, record: RunRecord) -> bool:
    """Whether checkpoint, versions and what is computed in are the defect's.

    A session that never loaded tells neither of the latter: as in a run.
    """
    checkpoint = record.checkpoint.name if record.checkpoint else ""
    info = next((session.info for session in record.sessions if session.target == case.target), None)
    versions, computes = ({}, None) if info is None else (info.versions, info.arithmetic)
    return waiver.applies(Target.parse(case.target), case.case, checkpoint, versions, computes)


def _is_known(waiver: Waiver, case: CaseRecord) -> bool:
    """Whether a case failed as the waiver says, waived in its run or not."""
    if case.outcome == "WAIVED":
        return case.waiver == waiver.id or waiver.expects(case.judged, case.message)
    label = f"{case.outcome}({case.stage})" if case.stage else case.outcome
    return waiver.expects(case.judged or label, case.message)


def _cases(cases: Sequence[CaseRecord]) -> str:
    first = f"{cases[0].target} {cases[0].case}"
    return f"{first} passes" if len(cases) == 1 else f"{first} and {len(cases) - 1} more cases pass"
