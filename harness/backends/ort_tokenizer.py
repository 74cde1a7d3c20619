"""ONNX Runtime GenAI's tokenizer, which reads the artifact's tokenizer.json by code of its own."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from harness.tokenization import Chat


class OrtTokenizer:
    """`Tokenizer` and `TokenizerStream` of a loaded model; see `harness.tokenization.Tokenizer`."""

    def __init__(self, og: Any, model: Any) -> None:
        self._tokenizer = og.Tokenizer(model)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids."""
        self._tokenizer.update_options(add_special_tokens=_word(special))
        return [int(token) for token in self._tokenizer.encode(text)]

    def decode(self, tokens: list[int], *, special: bool) -> str:
        """The text."""
        self._tokenizer.update_options(skip_special_tokens=_word(not special))
        return str(self._tokenizer.decode(np.asarray(tokens, dtype=np.int32)))

    def stream(self, tokens: list[int]) -> list[str]:
        """What the stream gives out. It has no end of its own: what it holds back then is lost."""
        self._tokenizer.update_options(skip_special_tokens=_word(True))
        stream = self._tokenizer.create_stream()
        return [*(str(stream.decode(token)) for token in tokens), ""]

    def render(self, chat: Chat, *, answer: bool) -> str:
        """The chat under the artifact's template."""
        return str(self._tokenizer.apply_chat_template(json.dumps(list(chat)), add_generation_prompt=answer))


def _word(value: bool) -> str:
    return "true" if value else "false"
