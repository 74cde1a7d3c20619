"""Prompt suites: `*.jsonl` files, one prompt a line, checked against a schema and hashed."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from harness.errors import PromptError, UsageError

_ID = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class Length(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A prompt length in tokens, relative to the checkpoint's sliding window: windows x window + offset."""

    windows: int
    offset: int

    def tokens(self, window: int) -> int:
        """The length for a sliding window of `window` tokens."""
        return self.windows * window + self.offset


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One prompt: a chat rendered by the checkpoint's own template, or raw text that is continued.

    With `length` the tokenised text is repeated and cut to that many tokens. `new_tokens` is the most
    tokens that greedy decoding may add; `continuation`, instead of it, is a text that is scored and not generated.
    `about` says why the prompt is in the suite.
    """

    id: str
    about: str
    new_tokens: int = 0
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    length: Length | None = None
    continuation: str | None = None


QUICK = "quick.toml"


class PromptSuite(msgspec.Struct, frozen=True):
    """The prompts of one file, in its order, with the file's SHA-256 (line ends normalised)."""

    name: str
    path: Path
    prompts: tuple[Prompt, ...]
    sha256: str


def read_suite(path: Path) -> PromptSuite:
    """Read and check a suite; its name is the file's stem.

    Raises PromptError naming file, line and field when anything is wrong.
    """
    try:
        text = path.read_bytes().decode("utf-8").replace("\r\n", "\n")
    except FileNotFoundError:
        raise PromptError(f"there is no prompt suite {path}", "name a .jsonl file with --prompts FILE") from None
    except (OSError, UnicodeDecodeError) as error:
        raise PromptError(f"{path} cannot be read: {error}", "give a UTF-8 .jsonl file") from None
    if not _ID.fullmatch(path.stem):
        raise PromptError(f"{path.name} names no suite", "name the file in lower case, digits and hyphens")
    prompts = tuple(_read_line(path, number, line) for number, line in _lines(text))
    if not prompts:
        raise PromptError(f"{path} holds no prompts", "write one JSON object a line")
    _check_unique(path, prompts)
    return PromptSuite(path.stem, path, prompts, hashlib.sha256(text.encode("utf-8")).hexdigest())


def _lines(text: str) -> list[tuple[int, str]]:
    return [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]


def _read_line(path: Path, number: int, line: str) -> Prompt:
    where = f"{path}, line {number}"
    try:
        prompt = msgspec.json.decode(line, type=Prompt)
    except (msgspec.DecodeError, RecursionError) as error:
        raise PromptError(f"{where}: {error}", "see docs in conformance/prompts/README.md for the fields") from None
    problem = _problem(prompt)
    if problem:
        raise PromptError(f"{where}: {problem}", "see docs in conformance/prompts/README.md for the fields")
    return prompt


def _problem(prompt: Prompt) -> str | None:
    if not _ID.fullmatch(prompt.id):
        return f"id {prompt.id!r} is not lower-case words joined by hyphens"
    if (prompt.messages is None) == (prompt.text is None):
        return f"{prompt.id!r} must have either messages or text"
    if prompt.messages is not None and not prompt.messages:
        return f"{prompt.id!r} has no messages"
    if prompt.text == "":
        return f"{prompt.id!r} has an empty text"
    if prompt.length is not None and prompt.text is None:
        return f"{prompt.id!r} has a length but no text"
    if prompt.length is not None and prompt.length.windows < 1:
        return f"{prompt.id!r} has a length of {prompt.length.windows} windows; at least 1 is needed"
    if prompt.continuation is not None:
        return _continuation_problem(prompt)
    if prompt.new_tokens < 1:
        return f"{prompt.id!r} asks for {prompt.new_tokens} new tokens; new_tokens must be 1 or more"
    return None


def _continuation_problem(prompt: Prompt) -> str | None:
    if not prompt.continuation:
        return f"{prompt.id!r} has an empty continuation"
    if prompt.new_tokens or prompt.length is not None:
        return f"{prompt.id!r} has a continuation, which goes with neither new_tokens nor a length"
    return None


def _check_unique(path: Path, prompts: tuple[Prompt, ...]) -> None:
    seen: set[str] = set()
    for prompt in prompts:
        if prompt.id in seen:
            raise PromptError(f"{path}: the id {prompt.id!r} occurs twice", "give every prompt an id of its own")
        seen.add(prompt.id)


def check_names(suites: Sequence[PromptSuite]) -> None:
    """Raise UsageError where two suites have one name: a golden lies in a folder of the suite's name."""
    seen: dict[str, Path] = {}
    for suite in suites:
        if suite.name in seen:
            problem = f"{seen[suite.name]} and {suite.path} are both suites of the name {suite.name!r}"
            raise UsageError(problem, "rename one of the files")
        seen[suite.name] = suite.path


def quick_prompts(suite: PromptSuite) -> frozenset[str]:
    """The ids of a suite's prompts that a quick run keeps, as quick.toml beside it says; all where it says nothing.

    Raises PromptError where that file names a prompt that the suite does not have, or is none.
    """
    every = frozenset(prompt.id for prompt in suite.prompts)
    path = suite.path.parent / QUICK
    try:
        named = msgspec.toml.decode(path.read_bytes(), type=dict[str, list[str]]) if path.is_file() else {}
    except (OSError, msgspec.DecodeError) as error:
        raise PromptError(f"{path} cannot be read: {error}", 'write lines such as: core = ["greeting"]') from None
    chosen = frozenset(named.get(suite.name, every))
    if not chosen <= every:
        unknown = ", ".join(sorted(chosen - every))
        raise PromptError(f"{path} names {unknown}, which {suite.path.name} does not have", f"mend {path.name}")
    return chosen
