"""Prompts as token ids, under the checkpoint's own tokenizer and chat template."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from harness.checkpoint import Checkpoint
from harness.errors import PromptError
from harness.prompts import Prompt

Tokenise = Callable[..., list[int]]
"""Called with `messages`, `text` and perhaps `continuation`: see `HfTokenizer.tokens`."""


def longest(prompt: Prompt, checkpoint: Checkpoint) -> int:
    """The most tokens that prompt and answer can come to, before it is tokenised."""
    if prompt.length is not None:
        return prompt.length.tokens(checkpoint.window) + prompt.new_tokens
    text = prompt.text or "".join(message.content for message in prompt.messages or ())
    text += prompt.continuation or ""
    return len(text.encode()) + prompt.new_tokens  # a byte-level tokenizer gives no more tokens than bytes


def split(
    checkpoint: Checkpoint, prompt: Prompt, alone: Sequence[int], tokenise: Tokenise
) -> tuple[list[int], list[int]]:
    """Prompt and given continuation, tokenised as the one text that they are.

    Where a token spans the border it belongs to the continuation. Raises PromptError when nothing is left of one.
    """
    whole = _tokens(prompt, tokenise, prompt.continuation or "")
    n = next((i for i, pair in enumerate(zip(whole, alone, strict=False)) if pair[0] != pair[1]), len(alone))
    if not 0 < n < len(whole):
        raise PromptError(
            f"{prompt.id!r} has no token of its own before, or in, its continuation", "lengthen the shorter of the two"
        )
    if len(whole) > checkpoint.max_tokens:
        raise PromptError(
            f"{prompt.id!r} has {len(whole)} tokens; the context is {checkpoint.max_tokens}", "shorten the prompt"
        )
    return whole[:n], whole[n:]


def render(checkpoint: Checkpoint, prompt: Prompt, tokenise: Tokenise) -> list[int]:
    """Token ids of a prompt under the checkpoint's tokenizer and chat template, brought to its length.

    Raises PromptError when it renders to nothing, or leaves no room for new tokens.
    """
    tokens = _tokens(prompt, tokenise)
    if not tokens:
        raise PromptError(f"{prompt.id!r} renders to no tokens", "give the prompt some text")
    room = checkpoint.max_tokens - prompt.new_tokens
    if prompt.length is not None:
        # Twice the window of Phi-3-mini-4k and the new tokens pass its context by a few tokens.
        wanted = min(prompt.length.tokens(checkpoint.window), room)
        if wanted < 1:
            raise PromptError(
                f"{prompt.id!r} comes to a length of {wanted} tokens", "raise its length or lower its new_tokens"
            )
        tokens = (tokens * (wanted // len(tokens) + 1))[:wanted]
    if len(tokens) > room:
        raise PromptError(
            f"{prompt.id!r} has {len(tokens)} tokens; with {prompt.new_tokens} new ones the context of "
            f"{checkpoint.max_tokens} is passed",
            "shorten the prompt or lower its new_tokens",
        )
    return tokens


def _tokens(prompt: Prompt, tokenise: Tokenise, continuation: str = "") -> list[int]:
    messages = None if prompt.messages is None else [msgspec.to_builtins(message) for message in prompt.messages]
    more = {"continuation": continuation} if continuation else {}
    return tokenise(messages=messages, text=prompt.text, **more)
