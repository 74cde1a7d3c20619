"""Goldens: what FP32 PyTorch answers to a prompt suite, with a manifest that ties it to its makings.

A golden is a folder `<root>/<suite>/`:

    manifest.json         schema, checkpoint, suite, cases, noise, versions, machine, hashes of the files below
    logits.safetensors    a case: `[n + m, V]` float32, teacher-forced over n prompt and m continuation tokens
    fresh.safetensors     where a case crosses LongRoPE's switch s while decoding: `[n + m - s, V]`, the rows past it
                          of one pass over all tokens (see `harness.longrope`)
    hidden.safetensors    for a few cases: `[L + 1, n + m, H]` float32, the embedding, then after each layer
    compact.safetensors   in place of logits and fresh rows: of both a compact form, see `harness.compact_plan`

Row i of the logits predicts token i + 1. Goldens are read here and nothing here computes: see
`harness.recording`. Everything read is checked against the manifest, and the manifest against the
checkpoint and the prompts of the run.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import platformdirs
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from harness.checkpoint import Checkpoint, Fingerprint, cached_sha256
from harness.compact import CompactRows, unpacked
from harness.compact_plan import Places, Plan, places_of
from harness.errors import GoldenError, ResourceError, is_full_disk
from harness.golden_manifest import (
    COMPACT,
    COMPACT_SCHEMA,
    FRESH,
    HIDDEN,
    LOGITS,
    SCHEMA,
    Case,
    File,
    Manifest,
    Noise,
    check,
)
from harness.longrope import crossed, recomputed, switch_of
from harness.prompts import PromptSuite
from harness.reference_rows import ReferenceRows, WholeRows
from harness.untrusted import all_printable, decode, printable, read_bounded

__all__ = [
    "COMPACT",
    "FRESH",
    "HIDDEN",
    "LOGITS",
    "MANIFEST",
    "SCHEMA",
    "TREE",
    "Case",
    "File",
    "Golden",
    "Manifest",
    "Noise",
    "golden_roots",
    "open_golden",
    "record_command",
    "user_root",
    "verify_files",
    "writing",
]

MANIFEST = "manifest.json"
TREE = Path(__file__).resolve().parent.parent
# What the library raises on a header or a dtype that it does not know.
_BROKEN = (SafetensorError, OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError)


class Golden:
    """An opened golden. Logits and hidden states are read when asked for."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest
        self._cases = {case.id: case for case in manifest.cases}
        self._places: dict[str, tuple[Places, Places]] = {}

    @property
    def plan(self) -> Plan | None:
        """How rows are kept; None where they are whole."""
        return self.manifest.compact or None

    def case(self, prompt_id: str) -> Case:
        """The case of a prompt. Raises GoldenError when the golden has none."""
        if prompt_id not in self._cases:
            raise GoldenError(f"{self.folder} has no case {prompt_id!r}", record_command(self.manifest.suite))
        return self._cases[prompt_id]

    def rows(self, prompt_id: str) -> ReferenceRows:
        """The n + m rows, in the form that they were kept in. Raises GoldenError as `logits` does."""
        if self.plan is None:
            return WholeRows(self.logits(prompt_id))
        return self._compact(prompt_id, self.plan)

    def fresh_rows(self, prompt_id: str) -> ReferenceRows:
        """The rows past LongRoPE's switch of one pass over all; see `fresh_logits`."""
        if self.plan is None:
            return WholeRows(self.fresh_logits(prompt_id))
        return self._compact(prompt_id, self.plan, fresh=True)

    def choosing_rows(self, prompt_id: str, *, cached: bool = False) -> ReferenceRows:
        """The rows that choose the continuation; see `choosing_logits`."""
        if self.plan is None:
            return WholeRows(self.choosing_logits(prompt_id, cached=cached))
        case, rows = self.case(prompt_id), self._compact(prompt_id, self.plan)
        if case.switch and not cached:
            rows = rows[: case.switch].joined(self._compact(prompt_id, self.plan, fresh=True))
        return rows[case.choosing]

    def logits(self, prompt_id: str) -> NDArray[np.float32]:
        """`[n + m, V]` float32. Raises GoldenError on a wrong shape or on NaN and Inf, or where rows are compact."""
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
        return rows[case.choosing]

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

    def _compact(self, prompt_id: str, plan: Plan, *, fresh: bool = False) -> CompactRows:
        case = self.case(prompt_id)
        if not self._places:
            cases = self.manifest.cases
            found = places_of([one.lengths for one in cases])
            self._places = {one.id: places for one, places in zip(cases, found, strict=True)}
        stored = self._tensor(COMPACT, compact_key(prompt_id, fresh=fresh))
        first = case.switch if fresh else 0
        try:
            return unpacked(stored, case.following[first:], self._places[prompt_id][fresh], plan)
        except ValueError as error:
            raise GoldenError(
                f"{self.folder / COMPACT}: {prompt_id} {error}", record_command(self.manifest.suite)
            ) from None

    def _rows(self, name: str, prompt_id: str, first: int = 0) -> NDArray[np.float32]:
        if self.plan is not None:
            remedy = f"{record_command(self.manifest.suite)} --form=full"
            raise GoldenError(f"{self.folder} is compact: it does not hold every logit", remedy)
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


def compact_key(prompt_id: str, *, fresh: bool = False) -> str:
    """What a prompt's rows are called in a compact file, or those past LongRoPE's switch; an id has no separator."""
    return f"{prompt_id}/fresh" if fresh else prompt_id


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
    home = user_root(checkpoint, fingerprint)
    if not found:
        remedy = record_command(prompts, path, "" if home in roots else str(roots[0]))
        where = " or ".join(str(root / suite.name) for root in roots)
        raise GoldenError(
            f"there is no golden of {checkpoint.name} for the prompts {suite.name!r}: no {MANIFEST} in {where}", remedy
        )
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
        # What lies there is somebody's; recording this checkpoint's in its place would lose it.
        raise GoldenError(
            f"{folder} is a golden of another checkpoint ({manifest.checkpoint}): {', '.join(parts)} differ",
            remedy if root == home else f"leave --golden out; if there is none yet: {record_command(prompts, path)}",
        )
    if manifest.part:
        number, count = manifest.part
        raise GoldenError(f"{folder} is part {number} of {count} of a golden", "phi3-conformance golden merge")
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
        if schema not in (SCHEMA, COMPACT_SCHEMA):
            raise GoldenError(f"{path} has schema {schema}; this version reads {SCHEMA}, {COMPACT_SCHEMA}", remedy)
        manifest = msgspec.convert(plain, Manifest)
        if all_printable(plain) != plain:
            raise ValueError("it holds control characters")
        check(manifest)
    except FileNotFoundError:
        within = sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}"))
        if within:
            raise GoldenError(f"{folder} holds goldens in folders: {', '.join(within)}", "name one of these") from None
        raise GoldenError(f"{folder} holds no golden: there is no {MANIFEST}", remedy) from None
    except (OSError, ValueError, msgspec.DecodeError, RecursionError) as error:
        raise GoldenError(f"{path} cannot be read: {printable(str(error))}", remedy) from None
    if manifest.sealed().own_sha256 != manifest.own_sha256:
        raise GoldenError(f"{path} was changed after it was recorded: its own hash differs", remedy)
    rows = COMPACT if manifest.compact else LOGITS
    if not manifest.cases or rows not in manifest.files:
        raise GoldenError(f"{path} lists no cases or no {rows}", remedy)
    for name, expected in manifest.files.items():
        _verify_file(folder, name, expected, remedy)
    return Golden(folder, manifest)


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around what writes a golden or keeps what is to become one.

    Raises ResourceError where the disk is full, GoldenError for any other error of the files.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full_disk(error):
            raise ResourceError(f"the disk of {out} is full", "free space, or give --golden another disk") from None
        problem = f"{out} cannot be written: {printable(str(error))}"
        raise GoldenError(problem, "give --golden a folder you may write to") from None


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
    if name not in (LOGITS, FRESH, HIDDEN, COMPACT):
        raise GoldenError(f"{folder / MANIFEST} names an unknown file {name!r}", remedy)
    path = folder / name
    if not path.is_file():
        raise GoldenError(f"{folder} is incomplete: {name} is missing", remedy)
    size = path.stat().st_size
    if size != expected.bytes:
        raise GoldenError(f"{path} is truncated or changed: {size} bytes, {expected.bytes} were recorded", remedy)
    if cached_sha256(path) != expected.sha256:
        raise GoldenError(f"{path} was changed after it was recorded: its SHA-256 differs", remedy)
