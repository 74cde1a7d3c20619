"""Tokens that stand for a single byte, and what SentencePiece makes of them where they are no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# SentencePiece's sign for a space.
SPACE = "\u2581"


def byte_tokens(tokenizer: Any) -> dict[int, int]:
    """Token ids of single bytes by byte, of a `tokenizers.Tokenizer`; those that its vocabulary lacks are left out.

    Byte-level tokenizers write a byte as a printable character (GPT-2, encoder.py, `bytes_to_unicode`): as itself where
    it is one in Latin-1, else as the next one from U+0100 on. SentencePiece's kind writes `<0x0A>`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {byte: chr(byte) for byte in printable}
    characters |= {byte: chr(0x100 + index) for index, byte in enumerate(others)}
    escaped = {byte: tokenizer.token_to_id(f"<0x{byte:02X}>") for byte in range(256)}
    plain = {byte: tokenizer.token_to_id(character) for byte, character in characters.items()}
    found = escaped if escaped[0] is not None else plain
    return {byte: token for byte, token in found.items() if token is not None}


def sentencepiece_reading(tokens: Sequence[int], bytes_of: dict[int, int], piece: Callable[[int], str]) -> str:
    """The text of tokens as SentencePiece reads them: all pieces in bytes, and U+FFFD for what of that is no text.

    `bytes_of` maps token ids to bytes, `piece` gives other tokens' pieces, "" where one is left out. `tokenizers`'
    ByteFallback reads a run of byte tokens another way: where any byte of the run is no text, U+FFFD stands for each.
    """
    pieces = [bytes([bytes_of[t]]) if t in bytes_of else piece(t).replace(SPACE, " ").encode() for t in tokens]
    return b"".join(pieces).decode("utf-8", "replace").removeprefix(" ")
