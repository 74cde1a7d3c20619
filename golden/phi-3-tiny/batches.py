"""Training batches: rows of whole conversations and of running text, some longer than the window.

Every token has a weight in the loss. What a user asks next cannot be known, so questions weigh less than answers.
"""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from tokenizers import Tokenizer

from corpus import Split
from tokenizer import ASSISTANT, END, END_OF_TEXT, PHI_3, Form, render

Row = list[tuple[int, float]]  # tokens and their weights


class Shape(NamedTuple):
    """The rows of a step, the tokens of a row, and the share of rows that are conversations."""

    rows: int
    tokens: int
    chat: float


SHORT = Shape(8, 192, 0.75)
LONG = Shape(3, 512, 0.5)  # twice the sliding window of Phi-3 tiny
SCHEDULE = (SHORT, SHORT, LONG)  # over and over
QUESTION_WEIGHT = 0.1
TEXT_SHARES = {"topics": 0.42, "licences": 0.08, "essays": 0.2, "stories": 0.3}


class Batches:
    """An endless, seeded supply of token batches."""

    def __init__(
        self,
        split: Split,
        tokenizer: Tokenizer,
        seed: int,
        form: Form = PHI_3,
        schedule: Sequence[Shape] = SCHEDULE,
    ) -> None:
        """Tokenise every document once."""
        self._rng = random.Random(seed)
        self._schedule = schedule
        end = _id(tokenizer, END_OF_TEXT)
        self._begins, self._ends = _id(tokenizer, ASSISTANT), _id(tokenizer, END)
        self._chat = [self._weighted(item) for item in _encode(tokenizer, [render(item, form) for item in split.chat])]
        self._texts = {
            name: [[(token, 1.0) for token in (*tokens, end)] for tokens in _encode(tokenizer, list(texts))]
            for name, texts in split.texts.items()
        }
        self._next_chat = self._shuffled_chat()
        self.tokens = {name: sum(map(len, texts)) for name, texts in self._texts.items()}
        self.tokens["chat"] = sum(map(len, self._chat))

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The token ids of one step and their weights in the loss, both [rows, tokens]."""
        shape = self._schedule[step % len(self._schedule)]
        rows = [self._row(shape.tokens, shape.chat) for _ in range(shape.rows)]
        tokens = torch.tensor([[token for token, _ in row] for row in rows])
        return tokens, torch.tensor([[weight for _, weight in row] for row in rows])

    def _weighted(self, tokens: list[int]) -> Row:
        """Full weight from an assistant's token to its end token, little elsewhere."""
        row, weight = [], QUESTION_WEIGHT
        for token in tokens:
            row.append((token, weight))
            if token == self._begins:
                weight = 1.0
            elif token == self._ends:
                weight = QUESTION_WEIGHT
        return row

    def _row(self, length: int, chat_share: float) -> Row:
        """A row of conversations, each from its beginning, or of texts."""
        row: Row = []
        if self._rng.random() < chat_share:
            while len(row) < length:
                row += next(self._next_chat)
        else:
            while len(row) < length:
                row += self._text(from_anywhere=not row)
        return row[:length]

    def _text(self, *, from_anywhere: bool) -> Row:
        """A text by the shares of the sources, long ones more often, from its start or the middle."""
        names, shares = list(TEXT_SHARES), list(TEXT_SHARES.values())
        texts = self._texts[self._rng.choices(names, shares)[0]]
        text = self._rng.choices(texts, [len(tokens) for tokens in texts])[0]
        if from_anywhere and self._rng.random() < 0.6:
            return text[self._rng.randrange(len(text)) :]
        return text

    def _shuffled_chat(self) -> Iterator[Row]:
        while True:
            yield from self._rng.sample(self._chat, len(self._chat))


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def _id(tokenizer: Tokenizer, token: str) -> int:
    found = tokenizer.token_to_id(token)
    if found is None:
        raise KeyError(f"the tokenizer has no {token}")
    return int(found)
