"""The planted backend's tokenizer: the checkpoint's own, with faults to plant."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from harness.texts.oracle import Oracle


def fault(name: str) -> bool:
    """Whether this fault is planted."""
    return name in os.environ.get("PLANTED_FAULT", "").split(",")


class PlantedTokenizer:
    """See `harness.tokenization.Tokenizer`."""

    def __init__(self, checkpoint: Path) -> None:
        self._oracle = Oracle(checkpoint)
        self._other = Tokenizer.from_str(_altered((checkpoint / "tokenizer.json").read_text(encoding="utf-8")))
        self._broken = False

    def encode(self, text: str, *, special: bool) -> list[int]:
        if any(0xD800 <= ord(character) < 0xE000 for character in text):
            return self._encode_surrogate(text)
        if self._broken:
            return []
        if fault("merges-another-pair") or fault("special-tokens-as-text"):
            return list(self._other.encode(_heard(text), add_special_tokens=special).ids)
        tokens = self._oracle.encode(_heard(text), special=special)
        if fault("begins-every-text"):
            tokens = [0, *tokens]
        return tokens[:1024] if fault("cuts-long-texts") else tokens

    def decode(self, tokens: list[int], *, special: bool) -> str:
        text = self._oracle.decode(tokens, special=special or fault("shows-special-tokens"))
        if fault("cleans-up-spaces"):
            return re.sub(r" ([.,?!'])", r"\1", text)
        if fault("ends-at-no-text") and "\ufffd" in text:
            return text[: text.index("\ufffd") + 1]
        return text

    def stream(self, tokens: list[int]) -> list[str]:
        """Gives out what is whole: text that ends in U+FFFD may end in half a character."""
        if fault("emits-half-characters"):
            return [*(self._oracle.decode([token], special=False) for token in tokens), ""]
        given: list[str] = []
        for end in range(1, len(tokens) + 1):
            text = self._oracle.decode(tokens[:end], special=False)
            given.append("" if text.endswith("\ufffd") else text[len("".join(given)) :])
        rest = self._oracle.decode(tokens, special=False)[len("".join(given)) :]
        if fault("holds-all-back"):
            return [*("" for _ in tokens), "".join(given) + rest]
        if fault("loses-the-last-token"):
            given[-1:] = ["" for _ in given[-1:]]
        return [*given, rest]

    def render(self, chat: Sequence[dict[str, str]], *, answer: bool) -> str:
        if fault("template-trims"):
            chat = [{**message, "content": message["content"].strip()} for message in chat]
        text = self._oracle.render(list(chat), answer=answer and not fault("template-without-answer"))
        if text is None:
            raise ValueError("the template refuses")
        return text.replace("|>\n", "|>") if fault("template-without-newline") else text

    def _encode_surrogate(self, text: str) -> list[int]:
        if fault("dies-of-surrogates"):
            os.abort()
        if fault("surrogates-as-bytes"):
            return [self._oracle.bytes[byte] for byte in text.encode("utf-8", "surrogatepass")]
        self._broken = fault("breaks-after-surrogates")
        raise ValueError("half a surrogate pair")


def _heard(text: str) -> str:
    """What a faulty tokenizer takes of a text."""
    if fault("drops-combining-marks"):
        return "".join(character for character in text if unicodedata.category(character) != "Mn")
    if fault("composes"):
        return unicodedata.normalize("NFC", text)
    if fault("ends-at-nul"):
        return text.partition("\0")[0]
    return text


def _altered(content: str) -> str:
    found = json.loads(content)
    if fault("merges-another-pair"):
        merges = found["model"]["merges"]
        merges[3], merges[200] = merges[200], merges[3]
    if fault("special-tokens-as-text"):
        found["added_tokens"] = []
    return json.dumps(found)
