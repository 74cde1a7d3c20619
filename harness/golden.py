"""Goldens: what FP32 PyTorch answers to a prompt suite, with a manifest that ties it to its makings.

A golden is a folder `<root>/<suite>/`:

    manifest.json         schema, checkpoint, suite, cases, noise, versions, machine, hashes of the files below
    logits.safetensors    a case: `[n + m, V]` float32, teacher-forced over n prompt and m continuation tokens
    fresh.safetensors     where a case crosses LongRoPE's switch s while decoding: `[n + m - s, V]`, the rows past it
                          of one pass over all tokens (see `harness.longrope`)
    hidden.safetensors    for a few cases: `[L + 1, n + m, H]` float32, the embedding, then after each layer

Row i of the logits predicts token i + 1. Goldens are read here and nothing here computes: see
`harness.recording`. Everything read is checked against the manifest, and the manifest against the
checkpoint and the prompts of the run.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import platformdirs
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from harness.checkpoint import Checkpoint, Fingerprint, cached_sha256
from harness.devices import Machine
from harness.errors import GoldenError
from harness.longrope import crossed, recomputed, switch_of
from harness.prompts import PromptSuite
from harness.untrusted import all_printable, decode, is_plain_name, printable, read_bounded

SCHEMA = 1
MANIFEST = "manifest.json"
LOGITS = "logits.safetensors"
HIDDEN = "hidden.safetensors"
FRESH = "fresh.safetensors"
TREE = Path(__file__).resolve().parent.parent
_MOST_TOKENS = 1 << 31
# What the library raises on a header or a dtype that it does not know.
_BROKEN = (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


class Case(msgspec.Struct, frozen=True, omit_defaults=True):
    """One prompt's golden: its tokens, the greedy continuation, and the margin of each continuation token.

    `ended` is true when the last continuation token is an end token. `margins` are best minus second-best
    logit at the positions that chose the continuation. `given`: the continuation is the suite's, to be scored, and not
    what the golden answers. `switch`: LongRoPE's, where prompt and continuation pass it after the prompt (see
    `harness.longrope`), else 0. `near_ties`: the tokens of a greedy continuation that rounding might have chosen
    otherwise, by their number: their margin is at most twice the golden's own noise.
    """

    id: str
    tokens: tuple[int, ...]
    continuation: tuple[int, ...]
    new_tokens: int
    ended: bool
    margins: tuple[float, ...]
    given: bool = False
    switch: int = 0
    near_ties: tuple[int, ...] = ()

    @property
    def sequence(self) -> tuple[int, ...]:
        """Prompt and continuation."""
        return self.tokens + self.continuation


class Noise(msgspec.Struct, frozen=True):
    """The golden's own rounding noise: FP32 PyTorch against the float64 oracle, over the checked cases.

    Centred RMS logit error (mean over positions, and worst position) and largest absolute difference, all
    in logits; `cases` are the ids checked.
    """

    cases: tuple[str, ...]
    centred_rms_mean: float
    centred_rms_worst: float
    max_abs: float


class File(msgspec.Struct, frozen=True):
    """A file of the golden: SHA-256 and size in bytes."""

    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a golden was made from, by what and where."""

    schema: int
    checkpoint: str
    fingerprint: Fingerprint
    suite: str
    suite_sha256: str
    vocabulary: int
    window: int
    end_tokens: tuple[int, ...]
    cases: tuple[Case, ...]
    noise: Noise
    files: dict[str, File]
    versions: dict[str, str]
    load_options: dict[str, str]
    machine: Machine
    recorded: str
    own_sha256: str = ""

    def sealed(self) -> Manifest:
        """The manifest with its own hash: SHA-256 of its JSON with the field for the hash empty."""
        empty = msgspec.structs.replace(self, own_sha256="")
        return msgspec.structs.replace(self, own_sha256=hashlib.sha256(msgspec.json.encode(empty)).hexdigest())


class Golden:
    """An opened golden. Logits and hidden states are read when asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._cases = {case.id: case for case in manifest.cases}

    def case(self, prompt_id: str) -> Case:
        """The case of a prompt. Raises GoldenError when the golden has none."""
        if prompt_id not in self._cases:
            raise GoldenError(f"{self.folder} has no case {prompt_id!r}", record_command(self.manifest.suite))
        return self._cases[prompt_id]

    def logits(self, prompt_id: str) -> NDArray[np.float32]:
        """`[n + m, V]` float32. Raises GoldenError on a wrong shape or on NaN and Inf."""
        return self._rows(LOGITS, prompt_id)

    def fresh_logits(self, prompt_id: str) -> NDArray[np.float32]:
        """`[n + m - s, V]` float32: the rows past LongRoPE's switch s of one pass over all. Raises GoldenError.

        There are some of cases that cross it while decoding only: see `Case.switch`.
        """
        return self._rows(FRESH, prompt_id, self.case(prompt_id).switch)

    def choosing_logits(self, prompt_id: str, *, cached: bool = False) -> NDArray[np.float32]:
        """`[m, V]` float32: at the positions that choose the m tokens of the continuation. Raises GoldenError.

        As transformers' `generate` computes them, by which the golden answers; `cached`: as generation does that keeps
        its cache across LongRoPE's switch.
        """
        case = self.case(prompt_id)
        rows = self.logits(prompt_id)
        if case.switch and not cached:
            rows = recomputed(rows, self.fresh_logits(prompt_id), case.switch)
        start = len(case.tokens) - 1
        return rows[start : start + len(case.continuation)]

    def hidden_states(self, prompt_id: str) -> NDArray[np.float32] | None:
        """`[L + 1, n + m, H]` float32 where they were kept for this case, else None. Raises GoldenError otherwise."""
        if HIDDEN not in self.manifest.files or prompt_id not in self._keys(HIDDEN):
            return None
        found = self._tensor(HIDDEN, prompt_id)
        rows = len(self.case(prompt_id).sequence)
        if found.ndim != 3 or found.shape[1] != rows or found.dtype != np.float32:
            raise GoldenError(
                f"{self.folder / HIDDEN}: {prompt_id} is {found.dtype} {found.shape}, "
                f"not float32 [layers, {rows}, width]",
                record_command(self.manifest.suite),
            )
        return found

    def _rows(self, name: str, prompt_id: str, first: int = 0) -> NDArray[np.float32]:
        expected = (len(self.case(prompt_id).sequence) - first, self.manifest.vocabulary)
        found = self._tensor(name, prompt_id)
        remedy = record_command(self.manifest.suite)
        if found.shape != expected or found.dtype != np.float32:
            said = f"{prompt_id} is {found.dtype} {found.shape}, not float32 {expected}"
            raise GoldenError(f"{self.folder / name}: {said}", remedy)
        if not np.isfinite(found).all():
            raise GoldenError(f"{self.folder / name}: {prompt_id} has NaN or Inf", remedy)
        return found

    def _keys(self, name: str) -> list[str]:
        try:
            with safe_open(self.folder / name, framework="np") as file:
                return list(file.keys())
        except _BROKEN as error:
            raise self._unreadable(name, error) from None

    def _tensor(self, name: str, key: str) -> NDArray[Any]:
        try:
            with safe_open(self.folder / name, framework="np") as file:
                tensor: NDArray[Any] = file.get_tensor(key)
                return tensor
        except _BROKEN as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: Exception) -> GoldenError:
        remedy = record_command(self.manifest.suite)
        return GoldenError(f"{self.folder / name} cannot be read: {printable(str(error))}", remedy)


def record_command(suite: str, checkpoint: str = "", golden: str = "") -> str:
    """The command that records a golden anew, as a remedy."""
    options = {"prompts": suite, "checkpoint": checkpoint, "golden": golden}
    given = [shlex.quote(f"--{name}={value}") for name, value in options.items() if value]
    return " ".join(["phi3-conformance golden record", *given])


def golden_roots(checkpoint: Checkpoint, fingerprint: Fingerprint) -> tuple[Path, ...]:
    """Where a golden of the checkpoint may lie, in order: beside a bundled checkpoint, the user's data folder."""
    bundled = checkpoint.path.parent
    roots = (bundled,) if bundled.parent == TREE / "golden" else ()
    return (*roots, user_root(checkpoint, fingerprint))


def user_root(checkpoint: Checkpoint, fingerprint: Fingerprint) -> Path:
    """The folder for goldens of one checkpoint in the user's data folder."""
    data = platformdirs.user_data_path("phi3-conformance", appauthor=False)
    return data / "goldens" / f"{checkpoint.name}-{fingerprint.key}"


def open_golden(roots: Sequence[Path], checkpoint: Checkpoint, fingerprint: Fingerprint, suite: PromptSuite) -> Golden:
    """Open and verify the golden of a suite from the first root that has one.

    Raises GoldenError, with the command that records anew, when there is none, or the one found is
    truncated, tampered with, of another schema, or of another checkpoint or other prompts.
    """
    prompts, path = str(suite.path), str(checkpoint.path)
    found = [root for root in roots if (root / suite.name / MANIFEST).is_file()]
    if not found:
        remedy = record_command(prompts, path)
        raise GoldenError(f"there is no golden of {checkpoint.name} for the prompts {suite.name!r}", remedy)
    root = next((root for root in found if _suite_hash(root / suite.name) == suite.sha256), found[0])
    folder = root / suite.name
    # A user's own suite may have the name of a bundled one, whose golden must not be overwritten.
    foreign = root.is_relative_to(TREE) and not suite.path.resolve().is_relative_to(TREE)
    remedy = record_command(prompts, path, "" if foreign else str(root))
    golden = verify_files(folder, remedy)
    manifest = golden.manifest
    if manifest.fingerprint != fingerprint:
        parts = [
            n for n in ("weights", "tokenizer", "config") if getattr(manifest.fingerprint, n) != getattr(fingerprint, n)
        ]
        raise GoldenError(
            f"{folder} is a golden of another checkpoint ({manifest.checkpoint}): {', '.join(parts)} differ", remedy
        )
    if manifest.suite_sha256 != suite.sha256:
        raise GoldenError(f"{folder} is stale: {suite.path} has changed since it was recorded", remedy)
    switch = switch_of(checkpoint.config)
    if any(case.switch != crossed(switch, len(case.tokens), len(case.sequence)) for case in manifest.cases):
        raise GoldenError(f"{folder} knows nothing of the switch of LongRoPE, which its answers pass", remedy)
    return golden


def verify_files(folder: Path, remedy: str = "") -> Golden:
    """Open a golden and check its manifest and the hashes of its files. Raises GoldenError."""
    remedy = remedy or record_command("FILE", "CHECKPOINT", str(folder.parent))
    path = folder / MANIFEST
    try:
        plain = decode(read_bounded(path))
        schema = msgspec.convert(plain, _SchemaOnly).schema
        if schema != SCHEMA:
            raise GoldenError(f"{path} has schema {schema}; this version reads {SCHEMA}", remedy)
        manifest = msgspec.convert(plain, Manifest)
        if all_printable(plain) != plain:
            raise ValueError("it holds control characters")
        _check(manifest)
    except FileNotFoundError:
        raise GoldenError(f"{folder} holds no golden: there is no {MANIFEST}", remedy) from None
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise GoldenError(f"{path} cannot be read: {printable(str(error))}", remedy) from None
    if manifest.sealed().own_sha256 != manifest.own_sha256:
        raise GoldenError(f"{path} was changed after it was recorded: its own hash differs", remedy)
    if not manifest.cases or LOGITS not in manifest.files:
        raise GoldenError(f"{path} lists no cases or no {LOGITS}", remedy)
    for name, expected in manifest.files.items():
        _verify_file(folder, name, expected, remedy)
    return Golden(folder, manifest)


def _check(manifest: Manifest) -> None:
    """Raises ValueError where the manifest contradicts itself, or names what may be no name."""
    ids = [case.id for case in manifest.cases]
    for name in (manifest.suite, *ids):
        if not is_plain_name(name):
            raise ValueError(f"{name!r} is no name")
    if len(set(ids)) < len(ids):
        raise ValueError("it has a case more than once")
    if not 0 < manifest.vocabulary <= _MOST_TOKENS or not 0 < manifest.window <= _MOST_TOKENS:
        raise ValueError(f"it has a vocabulary of {manifest.vocabulary} and a window of {manifest.window}")
    for case in manifest.cases:
        if not case.tokens or not case.continuation or len(case.margins) != len(case.continuation):
            raise ValueError(f"the case {case.id!r} lacks tokens or margins")
        if not all(0 <= token < manifest.vocabulary for token in case.sequence):
            raise ValueError(f"the case {case.id!r} has tokens outside the vocabulary")
        if not all(0 <= token < len(case.continuation) for token in case.near_ties):
            raise ValueError(f"the case {case.id!r} has near ties at tokens that it does not have")
        if case.switch and not len(case.tokens) <= case.switch < len(case.sequence):
            raise ValueError(f"the case {case.id!r} does not cross {case.switch} tokens after its prompt")
    if any(case.switch for case in manifest.cases) and FRESH not in manifest.files:
        raise ValueError(f"it has cases that cross a switch, and no {FRESH}")


class _SchemaOnly(msgspec.Struct):
    schema: int


class _SuiteOnly(msgspec.Struct):
    suite_sha256: str


def _suite_hash(folder: Path) -> str | None:
    """The hash of the suite that a golden was recorded on, None where its manifest cannot be read."""
    try:
        return msgspec.json.decode(read_bounded(folder / MANIFEST), type=_SuiteOnly).suite_sha256
    except (OSError, ValueError, msgspec.DecodeError, RecursionError):
        return None


def _verify_file(folder: Path, name: str, expected: File, remedy: str) -> None:
    if name not in (LOGITS, FRESH, HIDDEN):
        raise GoldenError(f"{folder / MANIFEST} names an unknown file {name!r}", remedy)
    path = folder / name
    if not path.is_file():
        raise GoldenError(f"{folder} is incomplete: {name} is missing", remedy)
    size = path.stat().st_size
    if size != expected.bytes:
        raise GoldenError(f"{path} is truncated or changed: {size} bytes, {expected.bytes} were recorded", remedy)
    if cached_sha256(path) != expected.sha256:
        raise GoldenError(f"{path} was changed after it was recorded: its SHA-256 differs", remedy)
