"""The prompts of a sign-off: the sample whose given texts are scored, and the prompts that are answered."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from harness.backend import load_backend
from harness.devices import find_interpreter
from harness.errors import UsageError
from harness.golden import MANIFEST, TREE, user_root
from harness.prompts import Prompt, PromptSuite
from harness.recording import record_golden
from harness.run import Settings
from harness.worker import Worker

SUITE = TREE / "conformance" / "signoff" / "signoff.jsonl"
CANDIDATES = TREE / "conformance" / "signoff" / "candidates.toml"
CORE = TREE / "conformance" / "prompts" / "core.jsonl"
MIN_ITEMS = 100
"""Items below which nothing is decided. Of 95 % intervals over 30 prompts 84 to 86 in 100 hold the truth, over 100
about 90 and over 300 some 93: see `tests/benchmarks/coverage.py`."""


def check_scored(suite: PromptSuite) -> None:
    """Raise UsageError unless every prompt of the suite has a given continuation."""
    without = [prompt.id for prompt in suite.prompts if prompt.continuation is None]
    if without:
        raise UsageError(
            f"{suite.path}: {without[0]!r} has no continuation to be scored",
            "give every item of a sign-off suite a continuation instead of new_tokens",
        )


def stratum(prompt_id: str) -> str:
    """The stratum of an item: its id without the number at its end."""
    return prompt_id.rpartition("-")[0] or prompt_id


def choose(suite: PromptSuite, count: int) -> list[Prompt]:
    """`count` items, of every stratum in its turn, in the suite's order; all of them for 0."""
    if count <= 0 or count >= len(suite.prompts):
        return list(suite.prompts)
    places: dict[str, int] = {}
    ranks = {}
    for prompt in suite.prompts:
        key = stratum(prompt.id)
        ranks[prompt.id] = places[key] = places.get(key, -1) + 1
    chosen = {prompt.id for prompt in sorted(suite.prompts, key=lambda prompt: ranks[prompt.id])[:count]}
    return [prompt for prompt in suite.prompts if prompt.id in chosen]


def text_of(prompt: Prompt) -> str:
    """What a prompt gives, as a person reads it: the text, or the turns of the chat, one a line."""
    if prompt.text is not None:
        return prompt.text
    return "\n".join(f"{message.role}: {message.content}" for message in prompt.messages or ())


def ensure_golden(
    settings: Settings, suite: PromptSuite, root: Path | None, progress: Callable[[str, int, int], None]
) -> bool:
    """Record the golden of a suite if there is none, into `root` or the user's data folder; whether it was recorded.

    One that is there is left alone, whatever it is like. Raises GoldenError, ResourceError and StageError.
    """
    if any((folder / suite.name / MANIFEST).is_file() for folder in settings.golden_roots):
        return False
    checkpoint = settings.checkpoint
    python = find_interpreter(load_backend("pytorch"), settings.interpreters, TREE)
    out = (root or user_root(checkpoint, settings.fingerprint)) / suite.name
    with tempfile.TemporaryDirectory(prefix="phi3-conformance-") as scratch:
        worker = Worker("golden-recorder", Path(scratch), interpreter=python)
        trust = settings.trust_remote_code
        try:
            record_golden(checkpoint, suite, out, worker, progress=progress, trust_remote_code=trust)
        finally:
            worker.stop()
    return True
