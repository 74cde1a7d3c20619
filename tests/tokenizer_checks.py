"""Every check of the tokenizer suite, to be carried out on whatever answers as a worker does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from harness.compare import Verdict
from harness.golden import TREE
from harness.prompts import read_suite
from harness.sessions import TargetSession
from harness.texts import corpus, suite

CHECKS: dict[str, Callable[[TargetSession], Verdict]] = {
    **{f"encode-{kind}": partial(suite.encoding, kind=kind) for kind in corpus.KINDS},
    **{f"decode-{kind}": partial(suite.decoding, kind=kind) for kind in (*corpus.KINDS, suite.ANY_TOKENS)},
    **{f"stream-{kind}": partial(suite.streaming, kind=kind) for kind in (*corpus.KINDS, suite.ANY_TOKENS)},
    **{f"round-trip-{kind}": partial(suite.round_trips, kind=kind) for kind in corpus.KINDS},
    "chat-template": suite.templates,
    "lone-surrogates": suite.lone_surrogates,
}


def target_of(call: Callable[..., Any], checkpoint: Path) -> TargetSession:
    """What the checks ask of a target: its `call`, the checkpoint's folder and the prompt suites."""
    suites = tuple(read_suite(TREE / "conformance" / "prompts" / f"{name}.jsonl") for name in ("core", "long"))
    settings = SimpleNamespace(checkpoint=SimpleNamespace(path=checkpoint), suites=suites)
    return cast(TargetSession, SimpleNamespace(call=call, run=SimpleNamespace(settings=settings)))
