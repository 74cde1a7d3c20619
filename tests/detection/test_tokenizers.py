"""Faults planted in a tokenizer: each is found by the test that is there for it."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import pytest

import tokenizer_files
from harness.checkpoint import open_checkpoint
from harness.compare import Outcome
from harness.options import DEFAULT_CHECKPOINT
from harness.prompts import read_suite
from harness.sessions import TargetSession
from harness.tokenization import Tokenization
from support import PLANTED, Tiny, golden_of, write_checkpoint
from tokenizer_checks import CHECKS, target_of

# A fault, the check that finds it, and what its message says.
FAULTS = (
    ("drops-combining-marks", "encode-unicode", "gives tokens [], where"),
    ("drops-combining-marks", "round-trip-unicode", "gives '', where"),
    ("composes", "encode-unicode", "U+"),
    ("merges-another-pair", "encode-vocabulary", "are due"),
    ("special-tokens-as-text", "encode-special-tokens", "'<|end|>': gives tokens ["),
    ("special-tokens-as-text", "encode-prompts", "gives tokens ["),
    ("begins-every-text", "encode-words", "'': gives tokens [0], where [] are due"),
    ("ends-at-nul", "encode-control-characters", "'\\x00' (U+0000): gives tokens [], where"),
    ("cuts-long-texts", "encode-long-words", "from place 1021 of 1024"),
    ("shows-special-tokens", "decode-special-tokens", "gives '<|end|>', where '' is due, special tokens left out"),
    ("cleans-up-spaces", "decode-words", "where ' ?' is due, special tokens left out"),
    ("ends-at-no-text", "decode-any-tokens", "where '\\ufffd"),
    ("emits-half-characters", "stream-unicode", "gives out half a character, '\\ufffd' (U+FFFD) after token 1 of"),
    ("holds-all-back", "stream-words", "the stream gives nothing out before its end"),
    ("loses-the-last-token", "stream-words", "in all"),
    ("template-without-newline", "chat-template", "chat user"),
    ("template-without-answer", "chat-template", ", up to the answer"),
    ("template-trims", "chat-template", "user ' '"),
    ("surrogates-as-bytes", "lone-surrogates", "neither a refusal nor a replacement"),
    ("breaks-after-surrogates", "lone-surrogates", "asked after them, gives tokens [], where"),
)


def planted_tokenizer() -> ModuleType:
    """The module of the planted tokenizer. Its folder is not left on the path, where it would register backends."""
    sys.path.append(str(PLANTED))
    try:
        return importlib.import_module("planted_tokenizer")
    finally:
        sys.path.remove(str(PLANTED))


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TargetSession]:
    def with_fault(fault: str) -> TargetSession:
        monkeypatch.setenv("PLANTED_FAULT", fault)
        checkpoint = Path(DEFAULT_CHECKPOINT)
        session = SimpleNamespace(tokenizer=lambda: planted_tokenizer().PlantedTokenizer(checkpoint))
        tokenization = Tokenization(lambda: cast(Any, session))

        def call(operation: str, **arguments: Any) -> Any:
            return getattr(tokenization, f"do_{operation}")(**arguments)

        return target_of(call, checkpoint)

    return with_fault


@pytest.mark.parametrize("check", CHECKS)
def test_a_right_tokenizer_passes(planted: Any, check: str) -> None:
    verdict = CHECKS[check](planted(""))
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert max(verdict.numbers.values()) > 5


@pytest.mark.parametrize(("fault", "check", "words"), FAULTS, ids=[f"{fault}-{check}" for fault, check, _ in FAULTS])
def test_a_fault_is_found(planted: Any, fault: str, check: str, words: str) -> None:
    verdict = CHECKS[check](planted(fault))
    assert verdict.outcome is Outcome.FAIL
    assert words in verdict.message, verdict.message


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A tiny checkpoint with a tokenizer of Phi-4's kind."""
    root = tmp_path_factory.mktemp("spoken")
    made = Tiny(root / "spoken", root / "one.jsonl", root / "golden")
    write_checkpoint(made.checkpoint)
    config = (made.checkpoint / "config.json").read_text(encoding="utf-8")
    tokenizer_files.split(made.checkpoint)
    (made.checkpoint / "config.json").write_text(config, encoding="utf-8")
    line = {"id": "first", "text": "abcdefghij", "new_tokens": 2, "about": "plain"}
    made.prompts.write_text(json.dumps(line) + "\n", encoding="utf-8")
    golden_of(open_checkpoint(made.checkpoint), read_suite(made.prompts), made.golden / "one")
    return made


def test_a_run_asks_for_no_evidence_of_a_device_and_lives_on_where_surrogates_end_the_process(
    conform: Any, spoken: Tiny
) -> None:
    result = conform(options=spoken.options, suites=("test_tokenizers",), fault="no-evidence,dies-of-surrogates")
    assert result.outcomes() == {"PASS": len(CHECKS) - 1, "ERROR(run)": 1}, result.text
