"""Judging a tokenizer's answers: where they are not the oracle's, and the sentence that says so.

Pure: it takes what was asked, what was due and what came, and gives a `Verdict`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from harness.compare import Outcome, Verdict

# Disagreements that a message spells out.
_SPELLED_OUT = 6
# A text of up to so many characters is shown with its code points.
_FEW = 12
# What a message shows of a longer one.
_SHOWN = 60


class Reply(NamedTuple):
    """What a runtime answered to one input: a value, or the message of what it raised."""

    value: Any
    raised: str | None = None

    @classmethod
    def of(cls, answer: Sequence[Any]) -> Reply:
        """A worker's answer, see `harness.tokenization.Tokenization`."""
        word, value = answer
        return cls(None, str(value)) if word == "raised" else cls(value)


class Due(NamedTuple):
    """What tokens are due to be decoded to: any of some readings.

    With `loose`, a run of U+FFFD counts as one. How many of them stand for bytes that are no text is left open: section
    3.9 of the Unicode standard recommends a number and does not require it.
    """

    readings: tuple[str, ...]
    loose: bool = False


class Disagreement(NamedTuple):
    """One input, already made small, of which the runtime made something else than was due.

    `problem` says what, in words that follow the input.
    """

    given: str | list[int] | list[dict[str, str]]
    problem: str


def judge_agreement(
    count: int, wrong: int, found: Sequence[Disagreement], unit: str, *, unexplained: int = 0
) -> Verdict:
    """Whether none of `count` inputs was answered wrongly; `found` are the smallest of those that were.

    `unexplained` of them have another cause than those of `found`, as far as is known.
    `unit` is what an input is called, in the plural. No inputs at all fail. There is no limit: tokens and texts are
    equal or they are not.
    """
    numbers = {unit.replace(" ", "_"): float(count), "differing": float(wrong)}
    if not count:
        return Verdict(Outcome.FAIL, numbers, {}, f"zero {unit} were compared")
    if not wrong:
        return Verdict(Outcome.PASS, numbers, {})
    lines = [f"{wrong} of {count} {unit} differ from the checkpoint's own; made small:"]
    lines += [f"  {shown(one.given)}: {one.problem}" for one in found[:_SPELLED_OUT]]
    if len(found) > _SPELLED_OUT:
        lines.append(f"  and {len(found) - _SPELLED_OUT} more")
    if unexplained:
        lines.append(f"  {unexplained} have causes that these do not explain")
    return Verdict(Outcome.FAIL, numbers, {}, "\n".join(lines))


def tokens_problem(due: list[int], reply: Reply) -> str:
    """How token ids differ from those that were due; empty where they do not."""
    if reply.raised is not None:
        return f"refused ({reply.raised}), where {shown(due)} is due"
    if reply.value == due:
        return ""
    at = next((i for i, (a, b) in enumerate(zip(due, reply.value, strict=False)) if a != b), None)
    at = min(len(due), len(reply.value)) if at is None else at
    return f"gives tokens {_around(reply.value, at)}, where {_around(due, at)} are due"


def text_problem(due: str, reply: Reply) -> str:
    """How a text differs from the one that was due; empty where it does not."""
    if reply.raised is not None:
        return f"refused ({reply.raised}), where {shown(due)} is due"
    return "" if reply.value == due else f"gives {_at_difference(reply.value, due)}"


def first_problem(problem: Callable[[str, Reply], str], due: Due, reply: Reply) -> str:
    """What is wrong with a reply by its first reading; empty where it is right by any of them."""
    if due.loose and reply.raised is None:
        pieces = isinstance(reply.value, list)
        reply = Reply(_pieces_one_each(reply.value) if pieces else _one_each(reply.value))
        due = Due(tuple(map(_one_each, due.readings)))
    found = [problem(reading, reply) for reading in due.readings]
    return found[0] if all(found) else ""


def rendering_problem(due: str | None, reply: Reply) -> str:
    """As `text_problem`, where what was due may be a refusal, None."""
    if due is None:
        return "" if reply.raised is not None else f"gives {shown(reply.value)}, where the template refuses"
    return text_problem(due, reply)


def stream_problem(due: str, reply: Reply) -> str:
    """What is wrong with the pieces that a stream gave out, one after each token and one at the end.

    Joined they must be `due`, and at no moment may they hold what `due` does not begin with, such as half a character.
    """
    if reply.raised is not None:
        return text_problem(due, reply)
    given, count = "", len(reply.value) - 1
    for token, piece in enumerate(reply.value):
        given += piece
        if not due.startswith(given):
            half = "half a character, " if "\ufffd" in piece and "\ufffd" not in due else ""
            when = f"after token {token + 1} of {count}" if token < count else "at the end"
            return f"gives out {half}{shown(piece)} {when}: {_at_difference(given, due)}"
    return "" if given == due else f"gives out {_at_difference(given, due)} in all"


def of_tokens(tokens: list[int], problem: str) -> str:
    """A problem of the tokens of a text, with the tokens; empty where there is none."""
    return problem and f"of its tokens {_around(tokens, 0)}, {problem}"


def gives_early(replies: Sequence[Reply]) -> bool:
    """Whether any of some streams gave out anything before it ended."""
    return any(any(reply.value[:-1]) for reply in replies if reply.raised is None)


def _one_each(text: str) -> str:
    return re.sub("\ufffd+", "\ufffd", text)


def _pieces_one_each(pieces: Sequence[str]) -> list[str]:
    """Pieces that joined have one U+FFFD for each run of them, though the run be spread over several pieces."""
    until = [_one_each("".join(pieces[: index + 1])) for index in range(len(pieces))]
    return [text[len(before) :] for before, text in zip(["", *until], until, strict=False)]


def _at_difference(found: str, due: str) -> str:
    """Both texts, or what of both is around the first difference."""
    if max(len(found), len(due)) <= _SHOWN:
        return f"{shown(found)}, where {shown(due)} is due"
    at = next((i for i, (a, b) in enumerate(zip(found, due, strict=False)) if a != b), min(len(found), len(due)))
    start = max(0, at - _FEW)
    end = at + _FEW
    lengths = f" ({len(found)} characters, {len(due)} due)"
    return f"...{shown(found[start:end])} at character {at}, where ...{shown(due[start:end])} is due{lengths}"


def shown(given: Any) -> str:
    """An input or an answer as a message shows it: in ASCII, a short text with its code points."""
    if isinstance(given, str):
        if len(given) > _SHOWN:
            return f"{given[:_SHOWN]!a}... ({len(given)} characters)"
        points = " ".join(f"U+{ord(character):04X}" for character in given)
        plain = given.isascii() and given.isprintable()
        return f"{given!a} ({points})" if given and len(given) <= _FEW and not plain else f"{given!a}"
    if isinstance(given, list) and given and isinstance(given[0], dict):
        return f"chat {' '.join('{role} {content!a}'.format(**message) for message in given)}"
    return f"tokens {_around(given, 0)}" if isinstance(given, list) else f"{given!a}"


def _around(tokens: list[int], at: int) -> str:
    """Token ids around a place."""
    if len(tokens) <= _FEW:
        return str(tokens)
    start = max(0, at - 3)
    some = ", ".join(map(str, tokens[start : start + 8]))
    return f"[{'..., ' if start else ''}{some}, ...] from place {start} of {len(tokens)}"
