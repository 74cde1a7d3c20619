"""Known defects of runtimes: cases that are run, expected to fail in a stated way, and reported apart."""

from __future__ import annotations

import datetime
import fnmatch
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from harness.errors import PolicyError
from harness.target import Precision, Target, matches

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_OUTCOME = re.compile(r"FAIL|UNATTESTED|NOT_RUN|ERROR\((?:discover|prepare|load|run|compare)\)")


class Waiver(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One known defect.

    `targets` is a glob over targets, `cases` are globs over `test_name[suite-or-prompt]`, `checkpoints` over
    names of checkpoints; `versions` maps distributions to the version ranges that have the defect.
    `outcomes` are the only outcomes that are waived, such as `FAIL` or `ERROR(run)`, and `message` is a
    regular expression found in the message of the defect: another failure of the same case is not the known
    one. `expires` is the first day on which the waiver no longer counts.
    """

    id: str
    targets: str
    cases: tuple[str, ...]
    outcomes: tuple[str, ...]
    message: str
    checkpoints: tuple[str, ...]
    versions: dict[str, str]
    reason: str
    url: str
    owner: str
    expires: datetime.date
    computes: tuple[Precision, ...] = ()
    """The precisions, as the runtime reports them, in which it has the defect; empty where that does not matter."""

    def applies(
        self, target: Target, case: str, checkpoint: str, versions: Mapping[str, str], computes: Precision | None = None
    ) -> bool:
        """Whether target, case, checkpoint, the installed versions and what is computed in are those of the defect."""
        known = any(fnmatch.fnmatchcase(checkpoint, glob) for glob in self.checkpoints)
        return (
            known
            and (not self.computes or computes in self.computes)
            and self.covers(target, case)
            and all(
                name in versions and SpecifierSet(wanted).contains(versions[name], prereleases=True)
                for name, wanted in self.versions.items()
            )
        )

    def expects(self, outcome: str, message: str) -> bool:
        """Whether a failure is the known one: its outcome, such as `ERROR(run)`, and its message."""
        return outcome in self.outcomes and re.search(self.message, message) is not None

    def covers(self, target: Target, case: str) -> bool:
        """Whether the globs match, whatever is installed. A defect is the same on a host as on this machine."""
        return self.covers_target(target) and any(fnmatch.fnmatchcase(case, glob) for glob in self.cases)

    def covers_target(self, target: Target) -> bool:
        """Whether the glob over targets matches, with its host or without."""
        here = msgspec.structs.replace(target, host=None)
        return matches(target, self.targets) or matches(here, self.targets)

    def expired(self, today: datetime.date) -> bool:
        """Whether the waiver no longer counts."""
        return today >= self.expires


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    schema: int
    waiver: tuple[Waiver, ...] = ()


def read_waivers(path: Path) -> tuple[Waiver, ...]:
    """Read waivers.toml. Raises PolicyError naming what breaks the schema."""
    remedy = "mend the file, or name another with --waivers FILE"
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), _File)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PolicyError(f"{path}: {error}", remedy) from None
    if found.schema != 1:
        raise PolicyError(f"{path} has schema {found.schema}; this version reads 1", remedy)
    for waiver in found.waiver:
        problem = _problem(waiver)
        if problem:
            raise PolicyError(f"{path}: waiver {waiver.id!r} {problem}", remedy)
    if len({waiver.id for waiver in found.waiver}) < len(found.waiver):
        raise PolicyError(f"{path}: two waivers have the same id", remedy)
    return found.waiver


def _problem(waiver: Waiver) -> str | None:
    for name in ("id", "targets", "reason", "owner"):
        if not getattr(waiver, name).strip():
            return f"has an empty {name}"
    if not waiver.url.startswith("https://"):
        return f"has the url {waiver.url!r}, which does not begin with https://"
    if not waiver.outcomes or not waiver.cases or not waiver.checkpoints:
        return "waives no outcome, no case or no checkpoint"
    try:
        if not waiver.message or re.compile(waiver.message).search(""):
            return f"has the message {waiver.message!r}, which is found in any"
    except re.error as error:
        return f"has {waiver.message!r} as its message, which is no regular expression: {error}"
    for outcome in waiver.outcomes:
        if not _OUTCOME.fullmatch(outcome):
            return f"waives {outcome!r}, which is no outcome that fails"
    for name, wanted in waiver.versions.items():
        try:
            SpecifierSet(wanted)
        except InvalidSpecifier:
            return f"has {wanted!r} as the versions of {name}, which is no version range"
    return None


def applying_waivers(
    waivers: tuple[Waiver, ...],
    target: Target,
    case: str,
    checkpoint: str,
    versions: Mapping[str, str],
    computes: Precision | None = None,
) -> list[Waiver]:
    """The waivers that apply, expired or not: an expired one fails its case by name."""
    return [waiver for waiver in waivers if waiver.applies(target, case, checkpoint, versions, computes)]
