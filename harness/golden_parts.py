"""A golden recorded in parts, each by a machine of its own, and put together to what one machine would have recorded.

Part 2 of 3 holds the second prompt of a suite, the fifth, the eighth... Rows hang on their own text alone, so that the
files of the golden that is put together have the same bytes as those of a single recording on such a machine. Parts
whose machines may round differently are refused: see `_must_agree`.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.checkpoint import Checkpoint
from harness.errors import GoldenError, UsageError
from harness.golden import Case, Golden, verify_files
from harness.golden_compact import plan_of_form
from harness.golden_manifest import Manifest
from harness.golden_writing import conclude
from harness.prompts import PromptSuite

HIDDEN_CASES = 3
HIDDEN_MAX_TOKENS = 96
"""Hidden states are kept of the first few cases that are no longer than this."""


class Part(msgspec.Struct, frozen=True):
    """The `number`-th of `count` parts of a suite's prompts, counted from 1."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read `2/3`. Raises UsageError."""
        found = re.fullmatch(r"(\d{1,4})/(\d{1,4})", text)
        part = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 1 <= part.number <= part.count:
            raise UsageError(f"--part {text!r} is no part", "write --part 2/3 for the second of three")
        return part

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, suite: PromptSuite) -> PromptSuite:
        """The suite with this part of its prompts. Raises UsageError where that is none."""
        prompts = suite.prompts[self.number - 1 :: self.count]
        if not prompts:
            problem = f"{suite.name} has {len(suite.prompts)} prompts and no part {self}"
            raise UsageError(problem, f"record it in {len(suite.prompts)} parts at most")
        return msgspec.structs.replace(suite, prompts=prompts)

    def folder(self, root: Path, suite: PromptSuite) -> Path:
        """Where the part of a suite's golden is recorded."""
        return root / f"{suite.name}.part-{self.number}-of-{self.count}"


def find_parts(roots: Sequence[Path], suite: PromptSuite) -> list[Golden]:
    """The parts of a suite's golden, verified: `roots` are parts, or the folders that they lie in.

    Raises GoldenError where one is missing, broken, or there twice.
    """
    named = re.compile(rf"{re.escape(suite.name)}\.part-\d+-of-\d+")
    nested = [[root] if named.fullmatch(root.resolve().name) else _folders(root, named) for root in roots]
    folders = [path for some in nested for path in some]
    found = [verify_files(folder) for folder in folders]
    parts = {golden.manifest.part: golden for golden in found if golden.manifest.part}
    count = max((part[1] for part in parts), default=0)
    missing = [f"{number}/{count}" for number in range(1, count + 1) if (number, count) not in parts]
    if missing or not parts or len(parts) != count or len(found) != count:
        where = ", ".join(str(root) for root in roots)
        has = ", ".join(folder.name for folder in folders) or "none"
        lacks = f"; missing: {', '.join(missing)}" if missing else ""
        raise GoldenError(
            f"{where}: not the parts of one golden of {suite.name}: {has}{lacks}",
            f"record each with: phi3-conformance golden record --prompts={suite.path} --part K/N",
        )
    return [parts[number, count] for number in range(1, count + 1)]


def _folders(root: Path, named: re.Pattern[str]) -> list[Path]:
    """The folders in another that have such names: not what a recording works in, or was writing when it was cut."""
    found = [path for path in root.iterdir() if named.fullmatch(path.name)] if root.is_dir() else []
    return sorted(path for path in found if path.is_dir())


def merge_parts(
    checkpoint: Checkpoint, suite: PromptSuite, parts: Sequence[Golden], out: Path, *, form: str | None = None
) -> Manifest:
    """Put the parts of a golden together in the folder `out`, checked as a recording is, in the form asked for.

    Raises GoldenError where the parts do not belong together or to checkpoint and suite, ResourceError on a full disk.
    """
    plan = plan_of_form(checkpoint.vocabulary, form)
    first = parts[0].manifest
    if first.fingerprint != checkpoint.fingerprint() or first.suite_sha256 != suite.sha256:
        what = "another checkpoint" if first.fingerprint != checkpoint.fingerprint() else "other prompts"
        raise GoldenError(
            f"{parts[0].folder} is of {what}", "name checkpoint and prompts that the parts were recorded of"
        )
    for other in parts[1:]:
        _must_agree(parts[0], other)
    by_id = {case.id: part for part in parts for case in part.manifest.cases}
    cases = tuple(by_id[prompt.id].case(prompt.id) for prompt in suite.prompts if prompt.id in by_id)
    if len(cases) != len(suite.prompts):
        raise GoldenError(f"the parts hold {len(cases)} of the {len(suite.prompts)} prompts", "record the parts anew")
    recorded = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    manifest = msgspec.structs.replace(first, cases=cases, files={}, recorded=recorded, part=msgspec.UNSET)
    hidden = {case.id: by_id[case.id].hidden_states(case.id) for case in for_hidden(cases)}
    return conclude(
        checkpoint,
        out,
        manifest,
        _Rows({case.id: by_id[case.id] for case in cases}, Golden.logits),
        {name: states for name, states in hidden.items() if states is not None},
        _Rows({case.id: by_id[case.id] for case in cases if case.switch}, Golden.fresh_logits),
        plan,
    )


def for_hidden(cases: Sequence[Case]) -> list[Case]:
    """The cases whose hidden states are kept. A part keeps its own first few, among which are the whole's."""
    return [case for case in cases if len(case.sequence) <= HIDDEN_MAX_TOKENS][:HIDDEN_CASES]


def _must_agree(one: Golden, other: Golden) -> None:
    """Raises GoldenError unless both come of the same makings, by a machine that rounds alike."""
    a, b = one.manifest, other.manifest
    differ = [name for name in ("fingerprint", "suite_sha256", "load_options") if getattr(a, name) != getattr(b, name)]
    if _computing(a) != _computing(b):
        differ.append("versions")
    differ += [name for name in ("architecture", "processor") if getattr(a.machine, name) != getattr(b.machine, name)]
    if differ:
        said = "; ".join(f"{name}: {_said(a, name)} and {_said(b, name)}" for name in differ)
        raise GoldenError(
            f"{one.folder.name} and {other.folder.name} do not make one golden: {said}",
            "record all parts with the same versions, on the same kind of processor",
        )


def _computing(manifest: Manifest) -> dict[str, str]:
    """Versions of what computes a golden; NumPy stores it and counts nothing."""
    return {name: version for name, version in manifest.versions.items() if name != "numpy"}


def _said(manifest: Manifest, name: str) -> str:
    found = getattr(manifest, name, None)
    return str(getattr(manifest.machine, name) if found is None else found)


class _Rows(Mapping[str, NDArray[np.float32]]):
    """Rows of goldens by case, read when they are asked for: all at once may be more than memory holds."""

    def __init__(self, goldens: Mapping[str, Golden], read: Callable[[Golden, str], NDArray[np.float32]]) -> None:
        self._goldens, self._read = goldens, read

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._read(self._goldens[name], name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._goldens)

    def __len__(self) -> int:
        return len(self._goldens)
