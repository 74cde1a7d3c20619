"""Does the runtime's tokenizer agree with the checkpoint's own tokenizer.json? No device has a part in it."""

import pytest

from harness.judge import Judge
from harness.sessions import TargetSession
from harness.texts import suite
from harness.texts.corpus import KINDS, PROMPTS, SPECIAL_TOKENS

QUICK = (PROMPTS, SPECIAL_TOKENS)
TEXTS = [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
TOKENS = [*TEXTS, pytest.param(suite.ANY_TOKENS, marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", TEXTS)
def test_encode(session: TargetSession, judge: Judge, kind: str) -> None:
    """Every text becomes the tokens that tokenizer.json makes of it."""
    judge.tokenizer(suite.encoding(session, kind))


@pytest.mark.parametrize("kind", TOKENS)
def test_decode(session: TargetSession, judge: Judge, kind: str) -> None:
    """Tokens become the text that tokenizer.json makes of them, with special tokens and without."""
    judge.tokenizer(suite.decoding(session, kind))


@pytest.mark.parametrize("kind", TOKENS)
def test_stream(session: TargetSession, judge: Judge, kind: str) -> None:
    """Decoded token by token, the text is the same, and half a character is never given out."""
    judge.tokenizer(suite.streaming(session, kind))


@pytest.mark.parametrize("kind", TEXTS)
def test_round_trip(session: TargetSession, judge: Judge, kind: str) -> None:
    """Where tokenizer.json promises it, a text that is encoded and decoded comes back as it was."""
    judge.tokenizer(suite.round_trips(session, kind))


def test_chat_template(session: TargetSession, judge: Judge) -> None:
    """A chat becomes the text that the checkpoint's template makes of it."""
    judge.tokenizer(suite.templates(session))


def test_lone_surrogates(session: TargetSession, judge: Judge) -> None:
    """Half a surrogate pair is refused or replaced, and the process lives on."""
    judge.tokenizer(suite.lone_surrogates(session))
