"""The tokenizer that a session's users get, as a worker offers it: texts to tokens, tokens to texts, chats to texts.

Every runtime brings a tokenizer of its own. A session that gives it has it judged against the checkpoint's
`tokenizer.json`; one whose runtime has none gives Hugging Face's, in the version that the runtime is bound to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from harness.backend import Session
from harness.errors import HarnessError, Unsupported

Chat = Sequence[dict[str, str]]
"""Messages, each with `role` and `content`."""


OPERATIONS = ("encode_texts", "decode_tokens", "stream_tokens", "render_chats")
"""The operations of `Tokenization`, after which the device has computed no more than before."""


class Tokenizer(Protocol):
    """A runtime's tokenizer. What the runtime lacks raises Unsupported; else a method may raise as the runtime does."""

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text; with `special`, those around it that the tokenizer adds by itself."""
        ...

    def decode(self, tokens: list[int], *, special: bool) -> str:
        """The text of tokens; with `special`, special tokens are shown, otherwise left out."""
        ...

    def stream(self, tokens: list[int]) -> list[str]:
        """What is given out after each of `n` tokens, then what is given out at the end: n + 1 texts.

        Special tokens are left out.
        """
        ...

    def render(self, chat: Chat, *, answer: bool) -> str:
        """A chat under the artifact's own template; with `answer`, up to where the model's answer begins."""
        ...


@runtime_checkable
class GivesTokenizer(Protocol):
    """A session that gives the tokenizer of its artifact."""

    def tokenizer(self) -> Tokenizer:
        """The tokenizer, read anew. Raises Unsupported where what it needs is not installed."""
        ...


class Tokenization:
    """The operations of a worker on its session's tokenizer.

    Each takes many inputs and answers each of them with `["gave", value]` or, where the runtime raised,
    `["raised", message]`: one input that is refused says nothing of the others.
    """

    def __init__(self, loaded: Callable[[], Session]) -> None:
        self._loaded = loaded
        self._of: Session | None = None
        self._tokenizer: Tokenizer | None = None

    def do_encode_texts(self, texts: list[bytes], special: bool) -> list[list[Any]]:
        """Token ids of each text, given as UTF-8 in which halves of surrogate pairs may stand alone."""
        tokenizer = self._open()
        return [
            _attempt(lambda text: list(map(int, tokenizer.encode(text, special=special))), _text(encoded))
            for encoded in texts
        ]

    def do_decode_tokens(self, tokens: list[list[int]], special: bool) -> list[list[Any]]:
        """The text of each list of token ids."""
        tokenizer = self._open()
        return [_attempt(lambda some: _sendable(tokenizer.decode(some, special=special)), one) for one in tokens]

    def do_stream_tokens(self, tokens: list[list[int]]) -> list[list[Any]]:
        """What is given out token by token, for each list of token ids."""
        tokenizer = self._open()
        return [_attempt(lambda some: list(map(_sendable, tokenizer.stream(some))), one) for one in tokens]

    def do_render_chats(self, chats: list[list[dict[str, str]]], answer: bool) -> list[list[Any]]:
        """The text of each chat."""
        tokenizer = self._open()
        return [_attempt(lambda chat: _sendable(tokenizer.render(chat, answer=answer)), one) for one in chats]

    def _open(self) -> Tokenizer:
        """The tokenizer of the session that is loaded now. Raises Unsupported where it gives none."""
        session = self._loaded()
        if self._tokenizer is None or self._of is not session:
            if not isinstance(session, GivesTokenizer):
                raise Unsupported("the backend gives no tokenizer of its artifact")
            self._tokenizer, self._of = session.tokenizer(), session
        return self._tokenizer


def _attempt(ask: Callable[[Any], Any], given: Any) -> list[Any]:
    try:
        return ["gave", ask(given)]
    except HarnessError:
        raise
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # noqa: BLE001 - a panic of tokenizers' Rust is no Exception
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        return ["raised", message.encode("utf-8", "replace").decode("utf-8")]


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")


def _sendable(text: str) -> str:
    """The text itself. Raises ValueError where it holds half a surrogate pair, which is no text and cannot be sent."""
    text.encode("utf-8")
    return text
