"""What a tokenizer.json promises of round trips: which texts come back from their tokens exactly as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from harness.texts.single_bytes import SPACE


class RoundTrip(msgspec.Struct, frozen=True):
    """Which texts come back as they were.

    `promised` is false where the tokenizer changes texts in a way that is not looked into, and `reason` says which.
    `lost` are texts of which any occurrence may change what is around it.
    """

    promised: bool
    reason: str = ""
    lost: tuple[str, ...] = ()

    def covers(self, text: str) -> bool:
        """Whether the promise is made of this text."""
        return self.promised and not any(part in text for part in self.lost)


def read_round_trip(path: Path) -> RoundTrip:
    """The promise of a tokenizer.json, read from its parts.

    Byte-level tokenizers without a normaliser (GPT-2's kind, as Phi-4's) keep every byte. SentencePiece's kind with
    byte fallback (as Phi-3-mini's) puts a space before the text, writes spaces as U+2581 and takes both back. Added
    tokens that swallow the spaces around them lose those; after each, SentencePiece's kind puts a space.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        added = [token for token in found.get("added_tokens") or () if isinstance(token, dict)]
        swallowing = tuple(str(t["content"]) for t in added if t.get("lstrip") or t.get("rstrip"))
        if _byte_level(found):
            return RoundTrip(True, lost=swallowing)
        if _sentence_piece(found):
            return RoundTrip(True, lost=(SPACE, *(str(token["content"]) for token in added)))
        normaliser = (found.get("normalizer") or {}).get("type", "no normaliser")
        return RoundTrip(False, f"tokenizer.json has {normaliser} and is of no kind known to keep texts")
    except (OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        return RoundTrip(False, f"tokenizer.json cannot be read: {type(error).__name__}")


def _byte_level(found: dict[str, Any]) -> bool:
    """No normaliser, bytes in and bytes out, no space put before."""
    before = _flat(found.get("pre_tokenizer"), "pretokenizers")
    levels = [step for step in before if step.get("type") == "ByteLevel"]
    splits = all(step.get("type") == "ByteLevel" or _keeps(step) for step in before)
    decoder = _flat(found.get("decoder"), "decoders")
    return (
        not found.get("normalizer")
        and splits
        and len(levels) == 1
        and not levels[0].get("add_prefix_space")
        and [step.get("type") for step in decoder] == ["ByteLevel"]
    )


def _keeps(step: dict[str, Any]) -> bool:
    """A step that splits a text and leaves nothing out."""
    return (step.get("type") == "Split" and step.get("behavior") != "Removed") or step.get("type") == "Digits"


def _sentence_piece(found: dict[str, Any]) -> bool:
    """A space put before, spaces written as U+2581, bytes for what the vocabulary lacks; all of it taken back."""
    model = found.get("model") or {}
    normaliser = _flat(found.get("normalizer"), "normalizers")
    decoder = [step.get("type") for step in _flat(found.get("decoder"), "decoders")]
    kinds = [step.get("type") for step in normaliser]
    return (
        model.get("type") == "BPE"
        and bool(model.get("byte_fallback"))
        and not found.get("pre_tokenizer")
        and kinds == ["Prepend", "Replace"]
        and normaliser[0].get("prepend") == SPACE
        and (normaliser[1].get("pattern"), normaliser[1].get("content")) == ({"String": " "}, SPACE)
        and decoder == ["Replace", "ByteFallback", "Fuse", "Strip"]
    )


def _flat(step: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The steps of a sequence, or the one step."""
    if not step:
        return []
    return list(step[inner]) if step.get("type") == "Sequence" else [step]
