"""The oracle: the checkpoint's tokenizer.json as Hugging Face's `tokenizers` reads it, in the controller."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from harness.errors import Unsupported
from harness.texts.promise import RoundTrip, read_round_trip
from harness.texts.single_bytes import byte_tokens, sentencepiece_reading
from harness.texts.template import ChatTemplate


class Oracle:
    """What a checkpoint's own tokenizer makes of texts, tokens and chats.

    Raises Unsupported where the checkpoint has no tokenizer.json that `tokenizers` can read.
    """

    def __init__(self, checkpoint: Path) -> None:
        from tokenizers import Tokenizer

        path = checkpoint / "tokenizer.json"
        remedy = "write one with transformers: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
        if not path.is_file():
            raise Unsupported("the checkpoint has no tokenizer.json to judge tokenizers by", remedy)
        try:
            self._tokenizer: Any = Tokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise Unsupported(f"the checkpoint's tokenizer.json cannot be read: {error}", remedy) from None
        # Files may ask for texts to be cut or filled up, which is for training: nobody's prompt is.
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.round_trip: RoundTrip = read_round_trip(path)
        added = self._tokenizer.get_added_tokens_decoder()
        self.added_tokens: tuple[str, ...] = tuple(token.content for token in added.values())
        """The texts that stand for one token each, such as `<|end|>`."""
        self._special = {index for index, token in added.items() if token.special}
        self.bytes: dict[int, int] = byte_tokens(self._tokenizer)
        """The tokens that stand for one byte each, by byte."""
        self._falls_back = self._tokenizer.token_to_id("<0x00>") is not None
        self.vocabulary: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self._checkpoint = checkpoint
        # Every target is asked the same.
        self._encoded: dict[tuple[str, bool], tuple[int, ...]] = {}
        self._decoded: dict[tuple[tuple[int, ...], bool], str] = {}
        self._template: ChatTemplate | None = None

    def pieces(self) -> list[str]:
        """The texts of the tokens that are whole characters, in the order of their ids; added tokens are left out."""
        added = set(self._tokenizer.get_added_tokens_decoder())
        single = set(self.bytes.values())
        ids = sorted(set(self._tokenizer.get_vocab(with_added_tokens=False).values()) - added - single)
        return [text for text in self._tokenizer.decode_batch([[i] for i in ids]) if text and "\ufffd" not in text]

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids of a text; with `special`, those around it that the tokenizer adds by itself."""
        known = self._encoded.get((text, special))
        if known is None:
            known = tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)
            self._encoded[text, special] = known
        return list(known)

    def decode(self, tokens: list[int], *, special: bool) -> str:
        """The text of tokens; with `special`, special tokens are shown, otherwise left out."""
        key = (tuple(tokens), special)
        if key not in self._decoded:
            self._decoded[key] = str(self._tokenizer.decode(tokens, skip_special_tokens=not special))
        return self._decoded[key]

    def readings(self, tokens: list[int], *, special: bool) -> tuple[str, ...]:
        """The texts that tokens may be decoded to, `decode`'s first, where bytes among them may be no text.

        Of a vocabulary with byte fallback that is SentencePiece's own reading as well.
        """
        first = self.decode(tokens, special=special)
        if not self._falls_back or "\ufffd" not in first:
            return (first,)
        left_out = set() if special else self._special

        def piece(token: int) -> str:
            return "" if token in left_out else str(self._tokenizer.id_to_token(token) or "")

        return first, sentencepiece_reading(tokens, {token: byte for byte, token in self.bytes.items()}, piece)

    def render(self, chat: list[dict[str, str]], *, answer: bool) -> str | None:
        """A chat under the checkpoint's template, None where that refuses it. Raises Unsupported without one."""
        if self._template is None:
            self._template = ChatTemplate(self._checkpoint)
        return self._template.render(chat, answer=answer)


@lru_cache(maxsize=2)
def oracle_of(checkpoint: Path) -> Oracle:
    """The oracle of a checkpoint folder, read once."""
    return Oracle(checkpoint)
