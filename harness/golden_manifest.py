"""The manifest of a golden: what it was made from, by what and where, and what its cases are."""

from __future__ import annotations

import hashlib

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.checkpoint import Fingerprint
from harness.compact_plan import Lengths, Plan
from harness.devices import Machine
from harness.untrusted import is_plain_name

SCHEMA, COMPACT_SCHEMA = 1, 2
LOGITS = "logits.safetensors"
HIDDEN = "hidden.safetensors"
FRESH = "fresh.safetensors"
COMPACT = "compact.safetensors"
_MOST_TOKENS = 1 << 31


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

    @property
    def lengths(self) -> Lengths:
        """Of prompt and of all, and the switch."""
        return Lengths(len(self.tokens), len(self.sequence), self.switch)

    @property
    def following(self) -> NDArray[np.int64]:
        """`[n + m]`: the token after each, -1 after the last."""
        return np.asarray([*self.sequence[1:], -1], dtype=np.int64)

    @property
    def choosing(self) -> slice:
        """The positions that choose the continuation."""
        start = len(self.tokens) - 1
        return slice(start, start + len(self.continuation))


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
    compact: Plan | msgspec.UnsetType = msgspec.UNSET
    """How rows are kept that are not whole. Left out of the JSON where they are: schema 1 knows nothing of it."""
    part: tuple[int, int] | msgspec.UnsetType = msgspec.UNSET
    """Of a golden that is recorded in parts: which of how many, counted from 1. Left out of the JSON of whole ones."""

    def sealed(self) -> Manifest:
        """The manifest with its own hash: SHA-256 of its JSON with the field for the hash empty."""
        empty = msgspec.structs.replace(self, own_sha256="")
        return msgspec.structs.replace(self, own_sha256=hashlib.sha256(msgspec.json.encode(empty)).hexdigest())


def check(manifest: Manifest) -> None:
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
    if manifest.part and not 1 <= manifest.part[0] <= manifest.part[1]:
        raise ValueError(f"it is part {manifest.part[0]} of {manifest.part[1]}")
    plan = manifest.compact or None
    if (plan is None) != (manifest.schema == SCHEMA):
        raise ValueError(f"schema {manifest.schema} does not go with {'whole' if plan is None else 'compact'} rows")
    if plan is not None and (problem := plan.problem()):
        raise ValueError(problem)
    if plan is not None and plan.vocabulary != manifest.vocabulary:
        raise ValueError(f"its compact rows are of {plan.vocabulary} entries, its vocabulary of {manifest.vocabulary}")
    if plan is None and any(case.switch for case in manifest.cases) and FRESH not in manifest.files:
        raise ValueError(f"it has cases that cross a switch, and no {FRESH}")
