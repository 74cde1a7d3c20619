"""The run record: what a run saw, as versioned JSON with raw numbers.

A record is made to be passed on: it names no user, no host and no folder of the machine.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec

from harness.backend import SessionInfo
from harness.checkpoint import Fingerprint
from harness.compare import Outcome
from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.errors import RecordError, UsageError
from harness.journal import SUFFIX, journal_of, replay
from harness.localise import Localisation
from harness.not_finite import with_nan
from harness.target import DeviceKind, Evidence, Precision, Target
from harness.untrusted import all_printable, decode, is_plain_name, printable, read_bounded

SCHEMA = 2
"""2 added what reports and comparisons of runs need: prompts, details of cases, timings, noise, environment."""
_MOST_TOKENS = 1 << 31


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
    others: float = 0.0
    """The share of the machine's processors that other processes used meanwhile; they make everything slower."""


class Repeat(msgspec.Struct, frozen=True):
    """How far a session's answer to a prompt lies from its own first answer to it, the state reset in between.

    `case` is the prompt's id; `identical` where the two are equal to the last bit. In logits: centred RMS, mean and
    worst over positions. `kl_mean` in nat.
    """

    case: str
    identical: bool
    centred_rms_mean: float
    centred_rms_worst: float
    kl_mean: float


class Timings(msgspec.Struct, frozen=True):
    """Seconds that a session took: exporting (0 where it was in the cache), loading with compiling, its process."""

    prepare: float
    load: float
    start: float = 0.0


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

    def __post_init__(self) -> None:
        """Raises ValueError where the two differ in length, or what is no id of a token is among them."""
        if list(map(len, self.tokens)) != list(map(len, self.probabilities)):
            raise ValueError("likeliest tokens and their probabilities differ in number")
        for row in self.tokens:
            _check_tokens(row)


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

    def __post_init__(self) -> None:
        """Raises ValueError where lists that go by position differ in length."""
        by_position = (self.kl, self.quantisation, self.implementation, self.yardstick, self.top and self.top.tokens)
        if len({len(found) for found in by_position if found}) > 1 or self.first < 0:
            raise ValueError("the lists of a detail differ in length, or begin before the prompt")
        _check_tokens(self.tokens)


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

    def __post_init__(self) -> None:
        """Raises ValueError where the golden has more or fewer rows than tokens, or the prompt is longer than both."""
        length = len(self.tokens)
        if not len(self.top.tokens) == len(self.margins) == length or not 0 < self.prefill <= length:
            raise ValueError("tokens, likeliest tokens and margins of a prompt differ in number")
        _check_tokens(self.tokens)


class CaseRecord(msgspec.Struct, frozen=True, omit_defaults=True):
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
    """The checkpoint's name and hashes; `window` in tokens, after which attention is another (`Checkpoint.window`)."""

    name: str
    fingerprint: Fingerprint
    window: int | None = None


class WaiverRecord(msgspec.Struct, frozen=True):
    """A waiver as a report lists it; `expires` is an ISO date."""

    id: str
    reason: str
    url: str
    owner: str
    expires: str


class RunRecord(msgspec.Struct, frozen=True):
    """Everything a run saw. `complete` is false where it was cut short; times are UTC.

    `exit_status` is pytest's, and -1 where the run was killed and its journal is read.

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
    goldens: dict[str, str] = {}
    """By suite the hash in the golden's manifest, which covers its files; of the goldens that the run verified."""
    prompts: list[PromptRecord] = []
    words: dict[str, str] = {}
    """The text of every token id in the record, by the id as a string: JSON has no other keys."""
    environment: dict[str, str] = {}
    """Environment variables that change what runtimes compute, of a list of allowed ones."""
    waivers: list[WaiverRecord] = []
    """Every waiver that covers a case of the run."""


def as_json(record: RunRecord) -> bytes:
    """A record as JSON text: a line for each of its fields, and one for each part of a list."""
    fields = [f'"{name}": '.encode() + _lines(getattr(record, name)) for name in RunRecord.__struct_fields__]
    return b"{\n" + b",\n".join(fields) + b"\n}\n"


def _lines(value: Any) -> bytes:
    if not isinstance(value, list) or not value:
        return msgspec.json.encode(value)
    return b"[\n" + b",\n".join(map(msgspec.json.encode, value)) + b"\n]"


def write_record(path: Path, record: RunRecord) -> None:
    """Write a record beside its place and move it there. Raises RecordError."""
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(as_json(record))
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise RecordError(
            f"the run record {path} cannot be written: {error}", "give another with --record FILE"
        ) from None


def read_record(path: Path) -> RunRecord:
    """Read a record, or the journal that a run left which did not live to write one.

    Whoever made it is not trusted. Raises RecordError when it is none, of another schema, or contradicts itself.
    """
    journal = path if path.suffix == SUFFIX else journal_of(path)
    try:
        replayed = _is_later(journal, path)
        content = read_bounded(journal if replayed else path)
        plain = replay(content) if replayed else decode(content)
        schema = msgspec.convert(plain, _SchemaOnly).schema
        if schema not in (1, SCHEMA):
            later = schema > SCHEMA
            raise RecordError(
                f"{path} has schema {schema}; this version reads 1 to {SCHEMA}",
                "read it with the newer version of the harness that wrote it" if later else "record the run again",
            )
        record = msgspec.convert(with_nan(all_printable(plain)), RunRecord)
        _check(record)
        return record
    except (OSError, ValueError, msgspec.DecodeError, RecursionError, AttributeError, LookupError, TypeError) as error:
        problem = printable(f"{path} is no run record: {error}")
        raise RecordError(problem, "name the .json file that a run wrote") from None


def _is_later(journal: Path, path: Path) -> bool:
    """Whether the last run to this path was killed: a run that ends writes the record and deletes its journal."""
    if journal == path or not journal.is_file():
        return journal == path
    return not path.is_file() or journal.stat().st_mtime_ns > path.stat().st_mtime_ns


class _SchemaOnly(msgspec.Struct):
    schema: int


def _check_tokens(tokens: list[int]) -> None:
    if tokens and not 0 <= min(tokens) <= max(tokens) < _MOST_TOKENS:
        raise ValueError("among the ids of tokens are impossible ones")


def _check(record: RunRecord) -> None:
    """Raises ValueError where something is there twice, or a name is none; a report may make file names of them."""
    _check_distinct("case", [case.id for case in record.cases])
    _check_distinct("session", [session.target for session in record.sessions])
    _check_distinct("prompt", [f"{prompt.suite}/{prompt.id}" for prompt in record.prompts])
    names = [*record.suites, *(name for prompt in record.prompts for name in (prompt.suite, prompt.id))]
    names += [record.checkpoint.name] if record.checkpoint is not None else []
    for case in record.cases:
        Outcome(case.outcome)
        names += [case.test, case.case.removeprefix(f"{case.test}[").removesuffix("]")]
    for target in {*(case.target for case in record.cases), *(session.target for session in record.sessions)}:
        _check_target(target)
    for name in names:
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is no name")
    if not all(token.isdecimal() for token in record.words):
        raise ValueError("among the words are some of no token")


def _check_target(text: str) -> None:
    try:
        Target.parse(text)
    except UsageError as error:
        raise ValueError(error.problem) from None


def _check_distinct(what: str, keys: list[str]) -> None:
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(f"it has the {what} {twice!r} more than once")
