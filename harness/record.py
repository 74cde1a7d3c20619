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
from harness.localise import Localisation
from harness.target import DeviceKind, Evidence, Precision

SCHEMA = 2
"""2 added what reports and comparisons of runs need: prompts, details of cases, timings, noise, environment."""


class ArtifactRecord(msgspec.Struct, frozen=True):
    """The artifact of a session: `origin` is exported, checkpoint or given; the size is in bytes."""

    origin: str
    recipe: str | None
    sha256: str
    bytes: int
    versions: dict[str, str]
    command: list[str]


class Speed(msgspec.Struct, frozen=True):
    """How fast a session is at one length of prompt: a figure for each repeat after warming up, in ms.

    `first_token_ms`: from giving the prompt to the first token; `token_ms`: the mean for each further one, of
    `new_tokens` in all. Measured in the worker, greedy, batch of one.
    """

    prompt_tokens: int
    new_tokens: int
    first_token_ms: tuple[float, ...]
    token_ms: tuple[float, ...]


class Repeat(msgspec.Struct, frozen=True):
    """How far a session's answer to a prompt lies from its own first answer to it, the state reset in between.

    `logits_sha256` of both are equal where the two are bit-identical. In logits: centred RMS, mean and worst over
    positions. `kl_mean` in nat.
    """

    case: str
    identical: bool
    centred_rms_mean: float
    centred_rms_worst: float
    kl_mean: float


class Timings(msgspec.Struct, frozen=True):
    """Seconds that a session took: exporting (0 where it was in the cache), and loading with compiling."""

    prepare: float
    load: float


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
    localisation: Localisation | None = None
    """Errors by sublayer behind `first_bad`."""
    timings: Timings | None = None
    speed: tuple[Speed, ...] = ()
    peak_memory_bytes: int = 0
    """The most that the worker's process held, its runtime included; 0 where it was not read."""
    repeats: tuple[Repeat, ...] = ()


class Tops(msgspec.Struct, frozen=True):
    """The likeliest tokens at n positions, `[n][k]`, with their probabilities; token ids into the record's `words`."""

    tokens: list[list[int]]
    probabilities: list[list[float]]


class Detail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device gave for a case position by position; lists are `[n]`, rounded to 4 digits.

    `first` is the position in the prompt's sequence of the first row. `kl`: golden against device, nat. `quantisation`:
    golden against the reference on the artifact's exact weights; `implementation`: that reference against the device;
    `yardstick`: the largest of the honest variants there; these in centred RMS logits. Empty where the error was not
    taken apart. `tokens`: a greedy answer.
    """

    logits_sha256: str = ""
    """Of the device's logits as little-endian float32, row by row: equal where they are bit-identical."""
    first: int = 0
    kl: list[float] = []
    quantisation: list[float] = []
    implementation: list[float] = []
    yardstick: list[float] = []
    top: Tops | None = None
    tokens: list[int] = []


class PromptRecord(msgspec.Struct, frozen=True):
    """A prompt with the golden's answer: `tokens` are both, the first `prefill` of them the prompt.

    `top`: the golden's likeliest tokens after each position, `[n]` rows; `margins`: best minus second-best logit.
    """

    suite: str
    id: str
    about: str
    tokens: list[int]
    prefill: int
    top: Tops
    margins: list[float]


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
    detail: Detail | None = None
    judged: str = ""
    """The outcome that a waiver changed, such as `FAIL` or `ERROR(run)` under WAIVED, or PASS where none was due."""


class CheckpointRecord(msgspec.Struct, frozen=True):
    """The checkpoint's name and hashes."""

    name: str
    fingerprint: Fingerprint


class WaiverRecord(msgspec.Struct, frozen=True):
    """A waiver as a report lists it; `expires` is an ISO date."""

    id: str
    reason: str
    url: str
    owner: str
    expires: str


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
    prompts: list[PromptRecord] = []
    words: dict[str, str] = {}
    """The text of every token id in the record, by the id as a string: JSON has no other keys."""
    environment: dict[str, str] = {}
    """Environment variables that change what runtimes compute, of a list of allowed ones."""
    waivers: list[WaiverRecord] = []
    """Every waiver that covers a case of the run."""


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
        if schema not in (1, SCHEMA):
            raise RecordError(f"{path} has schema {schema}; this version reads 1 to {SCHEMA}", "record the run again")
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
