"""The texts that tokenizers are asked for, by kind: some written down, the rest drawn by hypothesis.

Each kind aims at what tokenizers get wrong in a way of their own, so that a failure names its kind. The drawn ones are
the same in every run: see `harness.drawn`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from harness.drawn import examples

DRAWN = 40
"""Texts that hypothesis draws of each kind, but for long words, which take a tokenizer's time."""
_DRAWN_LONG = 10

SPECIAL_TOKENS = "special-tokens"
"""The kind of texts with special tokens written out."""
LONG_WORDS = "long-words"
"""The kind of words and runs of thousands of characters."""

# Pieces of a vocabulary to a text.
_ROW = 32
_WORDS = (
    "Hello",
    "world",
    "'s",
    "I'LL",
    "don\u2019t",
    "na\u00efve",
    "Stra\u00dfe",
    "3.14",
    "1,000",
    "2026-11-22",
    "foo_bar",
    "x==y",
    "https://a.b/c?d=e#f",
    "...",
    "?!",
    "\\n",
    '"',
    "\u20ac5",
)
_SPACES = (" ", "  ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u2003", "\u3000", "\u2028", "\u1680", "\u205f")
_MARKS = ("\u0300", "\u0301", "\u0323", "\u0338", "\u0483", "\u05bc", "\u0651", "\u093f", "\u0e34", "\u20dd", "\ufe0f")
# Bytes that are no UTF-8, in each of the ways there are (Unicode standard, table 3-7).
_NO_TEXT = (
    b"\x80",  # a continuation of nothing
    b"\xc3",  # characters that end too soon
    b"\xe4\xb8",
    b"\xf0\x9f\x98",
    b"\xc0\x80",  # written longer than need be
    b"\xe0\x80\x80",
    b"\xf0\x80\x80\x80",
    b"\xed\xa0\x80",  # half a surrogate pair
    b"\xf4\x90\x80\x80",  # past the last character
    b"\xf5\x80\x80\x80",
    b"\xf8\x88\x80\x80\x80",
    b"\xfe",
    b"\xff",
)
# All of Unicode but control characters, which are a kind of their own, and halves of surrogate pairs. Each is as likely
# as another, where characters drawn from all would be unassigned ones for the most part.
_CATEGORIES: tuple[Any, ...] = (
    *("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po"),
    *("Sm", "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cf", "Co", "Cn"),
)
_JOINED = (
    "\U0001f469\u200d\U0001f469\u200d\U0001f467",  # a family, joined
    "\U0001f1e9\U0001f1ea",  # a flag, of two letters
    "\U0001f44b\U0001f3fd",  # a hand with a colour of skin
    "\u1112\u1161\u11ab",  # a Hangul syllable in its parts
    "\u0915\u094d\u0937",  # a conjunct of Devanagari
    "\ufb01",  # a ligature that compatibility forms take apart
    "\u212b",  # the angstrom sign, which canonical forms replace
    "\u0130",  # lower case of which has a mark of its own
)


def _of_words(added: Sequence[str]) -> tuple[list[str], SearchStrategy[str]]:  # noqa: ARG001 - each kind takes them
    written = ["", " ", "a", "The quick brown fox jumps over the lazy dog.", "  two  spaces ", "\ttab\r\nline\n"]
    written += [
        "wait , what ? yes ! ' no ' .",
        "I'm, you'll, we've; he'd 'twas",
        "if x<3:\n    return [1,2,3]\n\n\n# done",
        *_WORDS,
        *_SPACES,
    ]
    return written, _joined(st.sampled_from(_WORDS + _SPACES), 12)


def _of_unicode(added: Sequence[str]) -> tuple[list[str], SearchStrategy[str]]:  # noqa: ARG001
    written = ["caf\u00e9 cafe\u0301", "\u4e2d\u6587\u5b57", "\u041f\u0440\u0438\u0432\u0435\u0442", "\u0645\u0631"]
    written += ["\u0661\u0662 \u00bd \u2167 \u00b2", "\ufffd", "\u2581a", "\U0001d400", "\ue000", "\U0010ffff"]
    written += ["a" + "".join(_MARKS), *_MARKS, *_JOINED]
    anything = st.one_of([st.characters(categories=(category,)) for category in _CATEGORIES])
    parts = st.one_of(anything, anything, st.sampled_from(_MARKS + _JOINED), st.sampled_from("ae \u0928\u4e2d"))
    return written, _joined(parts, 16)


def _of_control(added: Sequence[str]) -> tuple[list[str], SearchStrategy[str]]:  # noqa: ARG001
    codes = [*range(0x20), *range(0x7F, 0xA0)]
    written = [f"a{chr(code)}b" for code in codes] + ["\0", "\0\0 x", "\x1b[31mred\x1b[0m", "\ufeffmarked"]
    written += ["a\u202eright to left\u202c", "soft\u00adhyphen", "zero\u200bwidth", "\x08\x08", "\x7f"]
    parts = st.one_of(st.characters(categories=("Cc", "Cf")), st.sampled_from(("word", " ", "\n")))
    return written, _joined(parts, 12)


def _of_special_tokens(added: Sequence[str]) -> tuple[list[str], SearchStrategy[str]]:
    known = tuple(added) or ("<|end|>",)
    some = known[:16]
    written = [*known, *(f"a{token}b" for token in some), *(f" {token} b" for token in some)]
    written += [f"{token}\n\n x" for token in some] + [token[:-1] for token in some] + [token.upper() for token in some]
    written += [2 * token for token in some] + [token[0] + token for token in some] + ["".join(known)]
    parts = st.one_of(st.sampled_from(known), st.sampled_from((" ", "\n", "a", "<|", "|>", "<", ">", "\u00e9", "end")))
    return written, _joined(parts, 10)


def _of_long_words(added: Sequence[str]) -> tuple[list[str], SearchStrategy[str]]:  # noqa: ARG001
    repeated = ("a", "ab", "\u00e9", "\U0001f600", "\u0301", " ", "\n", "1", "!?", "a\u0301", "word ", "\u4e2d")
    written = [part * (3000 // len(part)) for part in repeated]
    word = st.text(st.sampled_from("abcdefghijklmnopqrstuvwxyz"), min_size=100, max_size=600)
    run = st.builds(lambda part, count: part * count, st.sampled_from(repeated), st.integers(100, 1500))
    return written, st.one_of(word, run)


_KINDS: dict[str, Callable[[Sequence[str]], tuple[list[str], SearchStrategy[str]]]] = {
    "words": _of_words,
    "unicode": _of_unicode,
    "control-characters": _of_control,
    SPECIAL_TOKENS: _of_special_tokens,
    LONG_WORDS: _of_long_words,
}
PROMPTS = "prompts"
"""The kind of the texts of the prompt suites, which are the caller's to bring."""
VOCABULARY = "vocabulary"
"""The kind of the texts of the vocabulary's own tokens: see `of_vocabulary`."""
KINDS = (PROMPTS, VOCABULARY, *_KINDS)
"""Every kind of text."""


@lru_cache(maxsize=64)
def texts(kind: str, added: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of one of the other kinds, each once; `added` are the tokenizer's added tokens as texts."""
    written, drawn = _KINDS[kind](added)
    return tuple(dict.fromkeys((*written, *examples(drawn, _DRAWN_LONG if kind == LONG_WORDS else DRAWN))))


def of_vocabulary(pieces: Sequence[str]) -> list[str]:
    """Texts in which every piece of a vocabulary occurs, side by side with others and by itself.

    Every merge that makes a token is used, so that tables of merges in another order, or with one missing, show.
    """
    rows = [pieces[start : start + _ROW] for start in range(0, len(pieces), _ROW)]
    return list(dict.fromkeys(text for row in rows for text in ("".join(row), " ".join(reversed(row)))))


def token_lists(vocabulary: int, single_bytes: Mapping[int, int]) -> list[list[int]]:
    """Lists of any tokens of a vocabulary, as a model may choose them: bytes that are no text among them.

    `single_bytes` are the tokens of single bytes; see `harness.texts.oracle.Oracle`.
    """
    return [list(tokens) for tokens in _token_lists(vocabulary, tuple(single_bytes.items()))]


@lru_cache(maxsize=2)
def _token_lists(vocabulary: int, single_bytes: tuple[tuple[int, int], ...]) -> tuple[tuple[int, ...], ...]:
    token = st.integers(0, vocabulary - 1)
    token_of = dict(single_bytes)
    if token_of:
        token = st.one_of(token, st.sampled_from(list(token_of.values())))
    drawn = examples(st.lists(token, min_size=1, max_size=10), 3 * DRAWN)
    sequences = [part for hard in _NO_TEXT for part in (hard, b"a" + hard + b"b")]
    written = [[token_of[byte] for byte in part] for part in sequences if token_of.keys() >= set(part)]
    return tuple(dict.fromkeys(map(tuple, [*written, *drawn])))


def chats(added: Sequence[str]) -> list[list[dict[str, str]]]:
    """Chats whose contents a template must neither read, trim nor escape, in the orders of roles that occur."""
    contents = ["", " ", "hi", "\n a \n", '"quoted" \\ \'', "{{ 7 * 7 }} {% if x %}", "\u00e9\u4e2d\U0001f600 &amp;<b>"]
    contents += ["\t\r\n", "null", "{}", *(f"a{token}b" for token in added[:4])]
    found = [[_said("user", content)] for content in contents]
    found += [[_said("system", content), _said("user", "hi")] for content in contents]
    exchange = [_said("user", "one"), _said("assistant", "two"), _said("user", "three")]
    return [*found, exchange, [_said("system", "be brief"), *exchange], [*exchange, _said("assistant", "four")]]


def has_control(text: str) -> bool:
    """Whether a text has control characters other than tabs and ends of lines."""
    return any(unicodedata.category(character) == "Cc" for character in text if character not in "\t\n\r")


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _joined(parts: SearchStrategy[str], most: int) -> SearchStrategy[str]:
    return st.lists(parts, min_size=1, max_size=most).map("".join)
