"""The options of a run: as they are given, where files lie by default, and what is read out of their text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from harness.backend import Backend
from harness.errors import Stage, UsageError
from harness.golden import TREE
from harness.target import Target, matches
from harness.watch import GIB

DEFAULT_CHECKPOINT = TREE / "golden" / "phi-3-tiny" / "checkpoint"
PROMPTS = TREE / "conformance" / "prompts"
POLICY = TREE / "conformance" / "policy.toml"
WAIVERS = TREE / "conformance" / "waivers.toml"


class Options(msgspec.Struct, frozen=True):
    """The plugin's options, as given; the methods read those that have a form. All raise UsageError."""

    checkpoint: str
    golden: Path | None
    prompts: tuple[Path, ...]
    targets: tuple[str, ...]
    require: tuple[str, ...]
    artifacts: tuple[str, ...]
    recipes: tuple[str, ...]
    load_options: tuple[str, ...]
    interpreters: tuple[str, ...]
    hosts: tuple[str, ...]
    device_wait: float
    stage_timeouts: tuple[str, ...]
    worker_memory: float | None
    memory: str | None
    policy: Path
    waivers: Path
    record: Path
    trust_remote_code: bool

    def chosen_artifacts(self) -> tuple[tuple[str, str], ...]:
        """`--artifact`: target or glob, and folder or name on the hub; see `harness.ready_made.find_artifact`."""
        return tuple(_pairs("--artifact", self.artifacts))

    def chosen_recipes(self) -> tuple[tuple[str, str], ...]:
        """`--recipe`: target or glob, and name."""
        return tuple(_pairs("--recipe", self.recipes))

    def chosen_load_options(self) -> tuple[tuple[str, str, str], ...]:
        """`--load-option`: target or glob, name and value."""
        return tuple(_triples("--load-option", self.load_options))


def select_targets(
    declared: Sequence[Target], patterns: Sequence[str], backends: Mapping[str, Backend]
) -> list[Target]:
    """The declared targets that match a pattern, and indexed devices that are written out in full.

    Raises UsageError when a pattern selects nothing.
    """
    if not patterns:
        return list(declared)
    chosen: list[Target] = []
    for pattern in patterns:
        found = [target for target in declared if matches(target, pattern)]
        if not found and not any(character in pattern for character in "*?["):
            target = Target.parse(pattern)
            base = msgspec.structs.replace(target, device=target.base_device)
            found = [target] if base in declared and target.backend in backends else []
        if not found:
            raise UsageError(
                f"--targets {pattern!r} selects no target", "one of: " + ", ".join(str(target) for target in declared)
            )
        chosen.extend(target for target in found if target not in chosen)
    return [*(t for t in declared if t in chosen), *(t for t in chosen if t not in declared)]


def parse_timeouts(texts: Sequence[str]) -> dict[Stage, float]:
    """Read `STAGE=SECONDS` options. Raises UsageError where the form is another."""
    timeouts = {}
    for text in texts:
        stage, _, seconds = text.partition("=")
        try:
            timeouts[Stage(stage)] = float(seconds)
            if stage == Stage.COMPARE.value or not 0 < float(seconds) < math.inf:
                raise ValueError(text)
        except ValueError:
            stages = ", ".join(s.value for s in Stage if s is not Stage.COMPARE)
            raise UsageError(f"--stage-timeout {text!r} is not STAGE=SECONDS", f"stages: {stages}") from None
    return timeouts


def parse_memory(gib: float | None) -> int | None:
    """Bytes for `--worker-memory GIB`. Raises UsageError for what is no amount of memory."""
    if gib is None:
        return None
    if not 0 < gib < math.inf:
        raise UsageError(f"--worker-memory {gib:g} is no amount of memory", "give GiB: --worker-memory 8")
    return int(gib * GIB)


def parse_size(text: str) -> int:
    """Bytes of a size such as 6GB, 512MiB or 7.5 GiB. Raises UsageError for what is none."""
    found = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([MG])(i?)B", text.strip())
    if found is None or not float(found[1]):
        raise UsageError(f"{text!r} is no size of memory", "give a number and MB, MiB, GB or GiB: --memory 6GB")
    exponent = {"M": 2, "G": 3}[found[2]]
    return int(float(found[1]) * (1024 if found[3] else 1000) ** exponent)


def _pairs(option: str, texts: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    for text in texts:
        target, equals, value = text.partition("=")
        if not equals or not target or not value:
            raise UsageError(f"{option} {text!r} is not TARGET=VALUE", f"write {option} openvino:cpu:int4=VALUE")
        pairs.append((target, value))
    return pairs


def _triples(option: str, texts: Sequence[str]) -> list[tuple[str, str, str]]:
    triples = []
    for text in texts:
        target, _, setting = text.partition("=")
        name, equals, value = setting.partition("=")
        if not equals or not target or not name:
            raise UsageError(
                f"{option} {text!r} is not TARGET=NAME=VALUE",
                f"write {option}='openvino:npuw-cpu:*=whole-prompt=yes'",
            )
        triples.append((target, name, value))
    return triples
