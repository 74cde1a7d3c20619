"""The run record: what a run saw, as versioned JSON with raw numbers.

A record is made to be passed on: it names no user, no host and no folder of the machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from harness.backend import SessionInfo
from harness.checkpoint import Fingerprint
from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.errors import RecordError
from harness.target import DeviceKind, Evidence, Precision

SCHEMA = 1


class ArtifactRecord(msgspec.Struct, frozen=True):
    """The artifact of a session: `origin` is exported, checkpoint or given; the size is in bytes."""

    origin: str
    recipe: str | None
    sha256: str
    bytes: int
    versions: dict[str, str]
    command: list[str]


class SessionRecord(msgspec.Struct, frozen=True):
    """A session as it was loaded, and the evidence of where it computed."""

    target: str
    kind: DeviceKind
    compute_class: Precision
    info: SessionInfo
    artifact: ArtifactRecord
    evidence: Evidence | None
    arithmetic: str = ""
    """The arithmetic inferred to be in effect; empty where the total error was not taken apart."""
    distances: dict[str, float] = {}
    """Mean centred RMS logit error of every arithmetic that was permitted, in logits."""
    undecomposed: str = ""
    first_bad: str = ""
    """The first bad sublayer on the first prompt that failed by its implementation error."""


class CaseRecord(msgspec.Struct, frozen=True):
    """One case: a test on a target with a prompt, a suite or neither.

    `stage` is set where the outcome is ERROR. `numbers` and `limits` have the units of `harness.compare`;
    `seconds` is the wall time of the test.
    """

    id: str
    test: str
    target: str
    case: str
    outcome: str
    stage: str | None
    numbers: dict[str, float]
    limits: dict[str, float]
    message: str
    waiver: str | None
    seconds: float


class CheckpointRecord(msgspec.Struct, frozen=True):
    """The checkpoint's name and hashes."""

    name: str
    fingerprint: Fingerprint


class RunRecord(msgspec.Struct, frozen=True):
    """Everything a run saw. `complete` is false where it was cut short; times are UTC.

    `machine` is where the controller ran, `hosts` the other machines; `runtimes` what their interpreters were
    asked for and found.
    """

    schema: int
    harness: str
    started: str
    finished: str
    complete: bool
    exit_status: int
    command: list[str]
    machine: Machine
    checkpoint: CheckpointRecord | None
    suites: dict[str, str]
    policy_sha256: str
    waivers_sha256: str
    sessions: list[SessionRecord]
    cases: list[CaseRecord]
    hosts: dict[str, Machine] = {}
    runtimes: list[RuntimeReport] = []


def without_folders(words: Sequence[str], root: Path) -> list[str]:
    """A command line without this machine's folders."""
    home = Path.home()
    short = [word.replace(str(root), ".") for word in words]
    return short if home == Path(home.anchor) else [word.replace(str(home), "~") for word in short]


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record beside its place and move it there. Raises RecordError."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise RecordError(
            f"the run record {path} cannot be written: {error}", "give another with --record FILE"
        ) from None


def read_record(path: Path) -> RunRecord:
    """Read a record. Raises RecordError when it is none, or of another schema."""
    try:
        text = path.read_bytes()
        schema = msgspec.json.decode(text, type=_SchemaOnly).schema
        if schema != SCHEMA:
            raise RecordError(f"{path} has schema {schema}; this version reads {SCHEMA}", "record the run again")
        return msgspec.convert(_with_nan(msgspec.json.decode(text)), RunRecord)
    except (OSError, msgspec.DecodeError, RecursionError, AttributeError, LookupError, TypeError) as error:
        raise RecordError(f"{path} is no run record: {error}", "name the .json file that a run wrote") from None


class _SchemaOnly(msgspec.Struct):
    schema: int


def _with_nan(plain: Any) -> Any:
    """JSON has no NaN and no Inf: a number that is either is written as null and read as NaN."""
    for case in plain.get("cases") or ():
        for part in ("numbers", "limits"):
            case[part] = {name: math.nan if value is None else value for name, value in case[part].items()}
    return plain
