"""The candidates of a sign-off, as a TOML file names them: a target each, and how its artifact is made.

    schema = 1
    must_pass = ["int4"]

    [[candidate]]
    name = "int4"
    target = "openvino:cpu:int4"
    recipe = "int4-sym-g128-r0.6"

Instead of a `recipe` of the backend's, `options` are the exporter's own, all of them; `artifact` is a ready-made
folder, relative to the file. With none of the three the target's default recipe is taken.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from harness.backend import Backend, Recipe
from harness.errors import UsageError
from harness.target import Target

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCHEMA = 1
_NAME = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One artifact to be judged; see the module's docstring. `artifact` is a folder."""

    name: str
    target: str
    about: str = ""
    recipe: str | None = None
    options: tuple[str, ...] = ()
    artifact: str | None = None


class Plan(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What is to be signed off: candidates in order, the names of those that must pass, and how many items are asked.

    Where `must_pass` is empty all must. `items` is 0 for the whole suite.
    """

    schema: int
    candidate: tuple[Candidate, ...]
    must_pass: tuple[str, ...] = ()
    items: int = 0

    def to_pass(self) -> tuple[str, ...]:
        """The names of those that must pass."""
        return self.must_pass or tuple(candidate.name for candidate in self.candidate)

    def public(self) -> Plan:
        """The plan to pass on: of a ready-made folder its name alone, since where it lay is nobody's business."""
        return msgspec.structs.replace(self, candidate=tuple(map(_public, self.candidate)))


def _public(candidate: Candidate) -> Candidate:
    name = None if candidate.artifact is None else Path(candidate.artifact).name
    return msgspec.structs.replace(candidate, artifact=name)


def read_plan(path: Path) -> Plan:
    """Read a file of candidates. Raises UsageError naming what is wrong with it."""
    try:
        plan = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), Plan)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"{path}: {error}", "see docs/sign-off.md for the fields") from None
    check_plan(plan, str(path))
    placed = [
        msgspec.structs.replace(c, artifact=str((path.parent / c.artifact).resolve())) if c.artifact else c
        for c in plan.candidate
    ]
    return msgspec.structs.replace(plan, candidate=tuple(placed))


def with_ready_made(plan: Plan, texts: Sequence[str], only: Sequence[str] = ()) -> Plan:
    """The plan with candidates of the form `NAME=TARGET=FOLDER` added; of its own those in `only`, if any are.

    Raises UsageError.
    """
    known = [candidate.name for candidate in plan.candidate]
    for name in only:
        if name not in known:
            raise UsageError(f"there is no candidate {name!r}", f"one of {', '.join(known)}")
    kept = [candidate for candidate in plan.candidate if not only or candidate.name in only]
    added = []
    for text in texts:
        name, _, rest = text.partition("=")
        target, _, folder = rest.partition("=")
        if not (name and target and folder):
            raise UsageError(
                f"--ready-made {text!r} is not NAME=TARGET=FOLDER",
                "write --ready-made vendor=openvino:cpu:int4=path/to/folder",
            )
        if not Path(folder).is_dir():
            raise UsageError(f"--ready-made {name}: there is no folder {folder}", "name an exported folder")
        added.append(Candidate(name, target, about="a ready-made folder", artifact=str(Path(folder).resolve())))
    plan = msgspec.structs.replace(plan, candidate=(*kept, *added))
    check_plan(plan, "--ready-made")
    return plan


def check_plan(plan: Plan, where: str) -> None:
    """Raise UsageError where a plan contradicts itself."""
    if plan.schema != SCHEMA:
        raise UsageError(f"{where} has schema {plan.schema}; this version reads {SCHEMA}", "update the file")
    if not plan.candidate:
        raise UsageError(f"{where} names no candidates", "add a table [[candidate]]")
    seen: set[str] = set()
    for candidate in plan.candidate:
        problem = _problem(candidate, seen)
        if problem:
            raise UsageError(f"{where}: candidate {candidate.name!r} {problem}", "see docs/sign-off.md for the fields")
        Target.parse(candidate.target)
        seen.add(candidate.name)


def _problem(candidate: Candidate, seen: set[str]) -> str:
    if not _NAME.fullmatch(candidate.name):
        return "is not named in lower case, digits, dots and hyphens"
    if candidate.name in seen:
        return "is there twice"
    if sum(map(bool, (candidate.recipe, candidate.options, candidate.artifact))) > 1:
        return "has more than one of recipe, options and artifact"
    return ""


def recipe_of(candidate: Candidate, backends: Mapping[str, Backend]) -> str | Recipe | None:
    """The recipe of a candidate: a name, one made of the exporter's options, or None for the target's default.

    Raises UsageError where the target's backend is not known, has no such recipe, or exports nothing.
    """
    target = Target.parse(candidate.target)
    backend = backends.get(target.backend)
    if backend is None:
        raise UsageError(
            f"candidate {candidate.name!r}: no backend {target.backend!r}", f"one of {', '.join(backends)}"
        )
    if not candidate.options:
        backend.recipe(target, candidate.recipe)
        return candidate.recipe
    usual = backend.recipe(target, None)
    if usual is None:
        raise UsageError(f"candidate {candidate.name!r}: nothing is exported for {target}", "leave its options out")
    key = hashlib.sha256("\0".join(candidate.options).encode()).hexdigest()[:8]
    # The name ends like the backend's own, from whose end an adapter may read the device.
    end = usual.name.rpartition("-")[2]
    return Recipe(f"options-{key}-{end}", target.precision, candidate.options, usual.exporter)
