"""The tokenizer of transformers, for the runtimes that bring none of their own: PyTorch and the NPU library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.tokenization import Chat


class HfTokenizer:
    """AutoTokenizer of a checkpoint folder, and transformers' TextStreamer; see `harness.tokenization.Tokenizer`."""

    def __init__(self, checkpoint: Path, *, trust_remote_code: bool) -> None:
        from transformers import AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(
            checkpoint, trust_remote_code=trust_remote_code, local_files_only=True
        )

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Token ids, by calling the tokenizer."""
        return [int(token) for token in self._tokenizer(text, add_special_tokens=special)["input_ids"]]

    def decode(self, tokens: list[int], *, special: bool) -> str:
        """The text, without the English spacing that `clean_up_tokenization_spaces` would mend."""
        text = self._tokenizer.decode(tokens, skip_special_tokens=not special, clean_up_tokenization_spaces=False)
        return str(text)

    def stream(self, tokens: list[int]) -> list[str]:
        """What TextStreamer gives out, which it does at ends of words and lines."""
        import torch
        from transformers import TextStreamer

        given: list[str] = []

        class Collector(TextStreamer):  # type: ignore[misc]
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:  # noqa: ARG002
                given.append(text)

        streamer: Any = Collector(self._tokenizer, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        for token in tokens:
            streamer.put(torch.tensor([token]))
        streamer.end()
        return given

    def tokens(self, messages: list[dict[str, str]] | None, text: str | None, continuation: str = "") -> list[int]:
        """Token ids of a chat under the checkpoint's own template, or of raw text as the tokenizer gives it.

        A continuation is tokenised with what it continues, as one text.
        """
        if messages is not None:
            return self.encode(self.render(messages, answer=True) + continuation, special=False)
        return self.encode((text or "") + continuation, special=True)

    def render(self, chat: Chat, *, answer: bool) -> str:
        """The chat under the checkpoint's template."""
        return str(self._tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=answer))
