"""What is covered: conformance tests by backend and by the capabilities they need, defects of the field by their tests.

The table is data, conformance/coverage.toml, written by people. Tests hold it against the suites, the adapters and
the planted faults; a run's record is held against it by `harness.coverage_check`.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from harness.errors import PolicyError
from harness.target import Target, matches

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


class Capability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Something that a session, its artifact or its backend may offer: `meaning` is a sentence."""

    id: str
    meaning: str


class Lack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why a backend does not offer something: `reason` is for people.

    `says` is a regular expression found in the message of a case that is UNSUPPORTED for it; empty where no case is.
    """

    reason: str
    says: str = ""


class Column(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A way of running Phi-3 that a column is given to: a backend, or one path through it.

    `targets` are globs; no target belongs to two columns. `lacks` are the capabilities that are not offered, by id.
    """

    id: str
    title: str
    targets: tuple[str, ...]
    lacks: dict[str, Lack] = {}

    def holds(self, target: Target) -> bool:
        """Whether a target is one of the column's, on whichever host."""
        here = msgspec.structs.replace(target, host=None)
        return any(matches(here, glob) for glob in self.targets)


class Suite(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file `test_<id>.py` of conformance/: what it asks in a sentence, and each test with the capabilities it needs.

    A test is named as `test_name`, or `test_name[subject]` where a subject needs others than the rest. `uses` are
    capabilities that make verdicts sharper where they are offered and are not needed.
    """

    id: str
    asks: str
    tests: dict[str, tuple[str, ...]]
    uses: tuple[str, ...] = ()


class Exemption(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Cases that are UNSUPPORTED in a column, or in any, though everything they need is offered, and why.

    `backends` are ids of columns, all where there are none, and `targets` globs that narrow them. `cases` are written
    `test_name` or `test_name[subject]`, the subject a glob; `says` as in `Lack`. `kind`: `design`, the runtime has no
    such thing to be judged; `length`, of the bundled checkpoint at the runtime's defaults: another may differ.
    """

    cases: tuple[str, ...]
    kind: Literal["design", "length"]
    says: str
    reason: str
    backends: tuple[str, ...] = ()
    targets: tuple[str, ...] = ("*",)

    def covers(self, column: Column, target: Target, case: str) -> bool:
        """Whether it is about a case, `test_name[subject]`, of a target of a column, on whichever host."""
        here = msgspec.structs.replace(target, host=None)
        return (
            self.covers_column(column)
            and any(matches(here, glob) for glob in self.targets)
            and any(_is_of(case, pattern) for pattern in self.cases)
        )

    def covers_column(self, column: Column) -> bool:
        """Whether it is about targets of a column."""
        return not self.backends or column.id in self.backends

    def covers_row(self, row: str) -> bool:
        """Whether it is about some cases of a row."""
        return any(_is_of(row, pattern) or _is_of(pattern, row) for pattern in self.cases)


def _is_of(case: str, pattern: str) -> bool:
    """Whether a case is one of a test, or of those of its subjects that a glob matches."""
    test, _, subject = case.partition("[")
    wanted, bracket, glob = pattern.partition("[")
    return test == wanted and (not bracket or fnmatch.fnmatchcase(subject.removesuffix("]"), glob.removesuffix("]")))


class Defect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A defect seen in the field, in a sentence, with where it was reported, or how it was measured.

    `caught_by` are conformance tests that fail on a device which has it. `proved_by` are tests of the harness in which
    a planted fault imitates it: `tests/...py::test_name[id]`, or `battery: name of a fault` of tests/detection/battery.
    """

    number: int
    what: str
    sources: tuple[str, ...]
    caught_by: tuple[str, ...]
    proved_by: tuple[str, ...]


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of coverage.toml."""

    schema: int
    capability: tuple[Capability, ...]
    backend: tuple[Column, ...]
    suite: tuple[Suite, ...]
    exemption: tuple[Exemption, ...] = ()
    defect: tuple[Defect, ...] = ()

    def column(self, target: Target) -> Column | None:
        """The column of a target; None for a backend that the table does not have, such as a third party's."""
        return next((column for column in self.backend if column.holds(target)), None)

    def rows(self) -> Iterator[tuple[Suite, str, tuple[str, ...]]]:
        """Every row: the suite, the test as it is named, and the capabilities it needs."""
        for suite in self.suite:
            for test, needs in suite.tests.items():
                yield suite, test, needs

    def row(self, case: str) -> str | None:
        """The row that a case `test_name[subject]` belongs to; None where the table does not have its test."""
        rows = {test for _, test, _ in self.rows()}
        return next((name for name in (case, case.split("[")[0]) if name in rows), None)

    def needs(self, row: str) -> tuple[str, ...]:
        """The capabilities that a row's test needs."""
        return next(needs for _, test, needs in self.rows() if test == row)

    def lacking(self, row: str, column: Column) -> dict[str, Lack]:
        """Why a column cannot run a row, by capability; empty where it can."""
        return {need: column.lacks[need] for need in self.needs(row) if need in column.lacks}


def read_coverage(path: Path) -> Table:
    """Read coverage.toml. Raises PolicyError naming what breaks the schema or names what is not there."""
    remedy = "mend the file"
    try:
        table = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Table)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise PolicyError(f"{path}: {error}", remedy) from None
    if table.schema != 1:
        raise PolicyError(f"{path} has schema {table.schema}; this version reads 1", remedy)
    for problem in (*_twice(table), *_unknown(table), *_empty(table), *_patterns(table)):
        raise PolicyError(f"{path}: {problem}", remedy)
    return table


def _twice(table: Table) -> Iterator[str]:
    kinds: Mapping[str, list[str]] = {
        "capability": [one.id for one in table.capability],
        "backend": [one.id for one in table.backend],
        "suite": [one.id for one in table.suite],
        "test": [test for _, test, _ in table.rows()],
        "defect": [str(one.number) for one in table.defect],
    }
    for kind, names in kinds.items():
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"the {kind} {name} is there twice"


def _unknown(table: Table) -> Iterator[str]:
    known = {one.id for one in table.capability}
    for owner, named in (
        *((column.id, set(column.lacks)) for column in table.backend),
        *((suite.id, set(suite.uses)) for suite in table.suite),
        *((test, set(needs)) for _, test, needs in table.rows()),
    ):
        for name in sorted(named - known):
            yield f"{owner} names the capability {name}, which is not there"
    asked = {need for _, _, needs in table.rows() for need in needs} | {u for suite in table.suite for u in suite.uses}
    for name in sorted(known - asked):
        yield f"no suite asks for the capability {name}"
    tests = {test.split("[")[0] for _, test, _ in table.rows()}
    for defect in table.defect:
        for name in defect.caught_by:
            if name.split("[")[0] not in tests:
                yield f"defect {defect.number} is caught by {name}, which is not there"

    columns = {one.id for one in table.backend}
    for one in table.exemption:
        for name in sorted({*one.backends} - columns):
            yield f"an exemption names the backend {name}, which is not there"


def _empty(table: Table) -> Iterator[str]:
    for defect in table.defect:
        for name in ("what", "sources", "caught_by", "proved_by"):
            if not getattr(defect, name):
                yield f"defect {defect.number} has no {name}"
    for column in table.backend:
        for capability, lack in column.lacks.items():
            if not lack.reason.strip():
                yield f"{column.id} lacks {capability} for no reason"


def _patterns(table: Table) -> Iterator[str]:
    lacks = [lack.says for column in table.backend for lack in column.lacks.values() if lack.says]
    for pattern in (*lacks, *(one.says for one in table.exemption)):
        try:
            if re.search(pattern, ""):
                yield f"{pattern!r} is found in any message"
        except re.error as error:
            yield f"{pattern!r} is no regular expression: {error}"
