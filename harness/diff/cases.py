"""What became of each case between two runs.

A case is *good* (PASS), *known* (fails as a waiver says), *bad* (FAIL, ERROR, UNATTESTED, NOT_RUN), *not judged*
(UNSUPPORTED) or not in the record at all. A waiver that only expired, or whose case passes now, is looked through.

    before \\ after   good              known        bad          not judged   absent
    good             SAME, DIFFERENCE  REGRESSION   REGRESSION   MISSING      MISSING
    known            FIX               SAME, CHANGED  REGRESSION*  MISSING      MISSING
    bad              FIX               CHANGED        SAME, CHANGED  MISSING      MISSING
    not judged       NEW               NEW          NEW          -            -
    absent           NEW               NEW          NEW          -            -

    * CHANGED where the failure is the same and only the waiver is gone

A waiver does not make a defect of the second run less of a regression: it says that somebody knows. What failed before
and fails otherwise now is CHANGED, for neither is right. A case that failed and is gone is MISSING like one that
passed: a driver under which it cannot be run has not mended it.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping

import msgspec

from harness.diff.noise import Key, TargetNoise, compared
from harness.record import CaseRecord, RunRecord

# Numbers of which more is better; of all others less is.
_MORE_IS_BETTER = ("top1", "match", "level", "kept")


class Change(str, enum.Enum):
    """What became of a case, worst first."""

    REGRESSION = "REGRESSION"
    MISSING = "MISSING"
    CHANGED = "CHANGED"
    DIFFERENCE = "DIFFERENCE"
    FIX = "FIX"
    NEW = "NEW"
    SAME = "SAME"


class Sameness(str, enum.Enum):
    """Why a case is called the same, strongest first."""

    LOGITS = "bit-identical logits"
    TOKENS = "the same tokens"
    NUMBERS = "equal numbers"
    ROUNDING = "within float rounding"
    NOISE = "within the noise"
    OUTCOME = "the same outcome, without numbers"


_BY_BITS = (Sameness.LOGITS, Sameness.TOKENS)


class Move(msgspec.Struct, frozen=True):
    """A number that moved by more than `allowed`, all in its own unit. `limit`: what the second run was judged by."""

    name: str
    before: float
    after: float
    allowed: float
    limit: float | None

    @property
    def worse(self) -> bool:
        """Whether it moved away from what is best."""
        more = self.after > self.before or math.isnan(self.after)
        return more != any(word in self.name for word in _MORE_IS_BETTER)

    @property
    def weight(self) -> float:
        """What to sort by: the share of its limit that it is at, or, far less, how far beyond the noise it moved."""
        if self.limit:
            return self.after / self.limit if math.isfinite(self.after) else math.inf
        return 1e-6 * min(abs(self.after - self.before) / self.allowed, 1e3) if self.allowed else 0.0


class CaseChange(msgspec.Struct, frozen=True):
    """What became of a case. `before` and `after` are outcomes, such as PASS or ERROR(run), empty where it was absent.

    `moves` are the numbers beyond noise, weightiest first. `message` is the second run's, of a FIX or a MISSING case
    the first's. `why` says what the class rests on where the outcomes do not.
    """

    change: Change
    target: str
    case: str
    before: str
    after: str
    why: str = ""
    same: Sameness | None = None
    moves: tuple[Move, ...] = ()
    message: str = ""


class Side(msgspec.Struct, frozen=True):
    """The cases of a record, with what identifies a device's answers.

    `logits` are hashes and `tokens` greedy answers, by target and prompt.
    """

    cases: dict[Key, CaseRecord]
    logits: dict[Key, str]
    tokens: dict[Key, list[int]]
    artifacts: dict[str, str]
    complete: bool


def side(record: RunRecord) -> Side:
    """Index a record."""
    logits: dict[Key, str] = {}
    tokens: dict[Key, list[int]] = {}
    for case in record.cases:
        if case.detail is not None:
            subject = (case.target, _subject(case.case))
            if case.detail.logits_sha256:
                logits[subject] = case.detail.logits_sha256
            if case.detail.tokens:
                tokens[subject] = case.detail.tokens
    cases = {(case.target, case.case): case for case in record.cases}
    artifacts = {session.target: session.artifact.sha256 for session in record.sessions}
    return Side(cases, logits, tokens, artifacts, record.complete)


def compare_cases(
    before: Side, after: Side, noise: Mapping[str, TargetNoise], foreign: frozenset[str] = frozenset()
) -> list[CaseChange]:
    """Every case that either run judged, in the order of the records, the first's before the second's.

    `foreign` are prompts and suites that are not the same in both under the same name.
    """
    keys = [*before.cases, *(key for key in after.cases if key not in before.cases)]
    changes = [_compare(key, before, after, noise.get(key[0], TargetNoise(key[0]))) for key in keys]
    return [_unless_foreign(change, foreign) for change in changes if change is not None]


def _unless_foreign(change: CaseChange, foreign: frozenset[str]) -> CaseChange:
    if _subject(change.case) not in foreign or not change.before or not change.after:
        return change
    why = "the second run has other prompts under this name"
    return CaseChange(Change.MISSING, change.target, change.case, change.before, change.after, why)


def _compare(key: Key, before: Side, after: Side, noise: TargetNoise) -> CaseChange | None:
    old, new = before.cases.get(key), after.cases.get(key)
    if not _was_judged(old) and not _was_judged(new):
        return None
    if old is None or new is None or not _was_judged(new) or not _was_judged(old):
        return _one_sided(key, old, new, before, after)
    was, now = standing(old), standing(new)
    moves = () if _identical(key, old, new, before, after) in _BY_BITS else _moves(old, new, before, after, noise)
    if was is Standing.KNOWN and now is Standing.BAD and not _fails_alike(old, new, moves):
        why = f"another failure than waiver {old.waiver!r} knows"
        return _change(Change.REGRESSION, old, new, why=why, moves=moves)
    if (was is Standing.GOOD) == (now is Standing.GOOD):
        return _both_alike(old, new, moves, _identical(key, old, new, before, after) or _nearness(old, noise))
    if now is Standing.GOOD:
        why = f"waiver {new.waiver!r} can be deleted" if new.waiver else ""
        return _change(Change.FIX, old, new, why=why, message=old.message)
    why = f"waived in the second run, {new.waiver!r}: a known defect" if now is Standing.KNOWN else ""
    return _change(Change.REGRESSION, old, new, why=why, moves=moves)


def _one_sided(key: Key, old: CaseRecord | None, new: CaseRecord | None, before: Side, after: Side) -> CaseChange:
    if _was_judged(old):
        if new is not None:
            why = f"not judged in the second run: {_first_line(new.message)}"
        else:
            why = "not in the second run" if after.complete else "the second run was cut short"
        message = old.message if old is not None else ""
        return CaseChange(Change.MISSING, *key, label(old), label(new), why, message=message)
    why = "" if old is None else f"not judged in the first run: {_first_line(old.message)}"
    if old is None and not before.complete:
        why = "the first run was cut short"
    return CaseChange(Change.NEW, *key, label(old), label(new), why, message=new.message if new is not None else "")


def _both_alike(old: CaseRecord, new: CaseRecord, moves: tuple[Move, ...], same: Sameness) -> CaseChange:
    """Both pass, or neither does."""
    if standing(new) is Standing.GOOD:
        if moves:
            return _change(Change.DIFFERENCE, old, new, moves=moves)
        return _change(Change.SAME, old, new, same=same)
    if _judged(old) != _judged(new):
        why = f"failed as {_judged(old)}, fails as {_judged(new)}"
    elif standing(old) is not standing(new):
        why = f"fails as before, waived as {new.waiver!r}" if new.waiver else "fails as before, waived no more"
    elif moves:
        why = "fails as before, with other numbers"
    else:
        return _change(Change.SAME, old, new, same=same)
    return _change(Change.CHANGED, old, new, why=why, moves=moves)


def _fails_alike(old: CaseRecord, new: CaseRecord, moves: tuple[Move, ...]) -> bool:
    """Whether a failure is the one that was waived, so that the waiver and not the device has changed."""
    if old.judged and old.judged != _judged(new):
        return False
    return not moves if old.numbers and new.numbers else _first_line(old.message) == _first_line(new.message)


def _identical(key: Key, old: CaseRecord, new: CaseRecord, before: Side, after: Side) -> Sameness | None:
    """Equal bits of the device's answer, or equal numbers: both without any tolerance."""
    subject = (key[0], _subject(key[1]))
    if old.test == "test_logits" and subject in before.logits and subject in after.logits:
        if before.logits[subject] == after.logits[subject]:
            return Sameness.LOGITS
    elif old.test.startswith("test_greedy") and subject in before.tokens and subject in after.tokens:  # noqa: SIM102
        if before.tokens[subject] == after.tokens[subject]:
            return Sameness.TOKENS
    names = _compared(old, new, before, after)
    if not names:
        return Sameness.OUTCOME
    equal = all(_equal(old.numbers.get(name, math.nan), new.numbers.get(name, math.nan)) for name in names)
    return Sameness.NUMBERS if equal else None


def _nearness(old: CaseRecord, noise: TargetNoise) -> Sameness:
    return Sameness.NOISE if noise.any and old.numbers else Sameness.ROUNDING


def _moves(old: CaseRecord, new: CaseRecord, before: Side, after: Side, noise: TargetNoise) -> tuple[Move, ...]:
    """Numbers beyond noise, weightiest first; one that only one side has moved from or to NaN."""
    found = []
    for name in _compared(old, new, before, after):
        values = old.numbers.get(name, math.nan), new.numbers.get(name, math.nan)
        allowed = noise.allowed(old.case, name, *values, old.numbers) if all(map(math.isfinite, values)) else 0.0
        if not _equal(*values) and not abs(values[1] - values[0]) <= allowed:
            found.append(Move(name, *values, allowed, _limit(name, new)))
    return tuple(sorted(found, key=lambda move: -move.weight))


def _compared(old: CaseRecord, new: CaseRecord, before: Side, after: Side) -> list[str]:
    """The numbers of a case that tell something of the device."""
    same = before.artifacts.get(old.target) == after.artifacts.get(old.target)
    return [name for name in {**old.numbers, **new.numbers} if compared(name, same_artifact=same)]


def _limit(name: str, case: CaseRecord) -> float | None:
    """What a number was judged by: its own limit, or that on its ratio to the yardstick."""
    if name in case.limits:
        return case.limits[name]
    if name.startswith("implementation_"):
        ratio, unit = case.limits.get(f"ratio_{name.rpartition('_')[2]}"), case.numbers.get(f"yardstick{name[14:]}")
    elif name == "regret_worst_logits":
        ratio, unit = case.limits.get("regret_ratio"), case.numbers.get("regret_yardstick")
    else:
        return None
    return None if ratio is None or unit is None else ratio * unit


class Standing(enum.Enum):
    """Where a judged case stands: see the module's table."""

    GOOD = enum.auto()
    KNOWN = enum.auto()
    BAD = enum.auto()


def standing(case: CaseRecord) -> Standing:
    """Good, known or bad: by what the device did, where a waiver only expired or is no longer needed."""
    if case.outcome == "WAIVED":
        return Standing.KNOWN
    if _judged(case) == "PASS":
        return Standing.GOOD
    return Standing.KNOWN if case.waiver is not None else Standing.BAD


def label(case: CaseRecord | None) -> str:
    """`FAIL`, `ERROR(run)` and so on; empty for no case."""
    if case is None:
        return ""
    return f"{case.outcome}({case.stage})" if case.stage else case.outcome


def _judged(case: CaseRecord) -> str:
    """The outcome before waivers."""
    return case.judged or label(case)


def _was_judged(case: CaseRecord | None) -> bool:
    return case is not None and case.outcome != "UNSUPPORTED"


def _subject(case: str) -> str:
    """The prompt or suite in a case's name."""
    return case.partition("[")[2].removesuffix("]")


def _equal(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


def _first_line(text: str) -> str:
    return text.partition("\n")[0]


def _change(
    change: Change,
    old: CaseRecord,
    new: CaseRecord,
    *,
    why: str = "",
    same: Sameness | None = None,
    moves: tuple[Move, ...] = (),
    message: str | None = None,
) -> CaseChange:
    text = new.message if message is None else message
    return CaseChange(change, new.target, new.case, label(old), label(new), why, same, moves, text)
