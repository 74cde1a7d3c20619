"""What the tokenizer suite asks of a target: its runtime's tokenizer held against the checkpoint's own.

Every question is put to the worker for all inputs at once. Of those that are answered wrongly, the shortest are made
smaller by further questions, until nothing can be left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from harness.compare import Outcome, Verdict
from harness.errors import Unsupported
from harness.prompts import Message
from harness.sessions import TargetSession
from harness.texts import corpus
from harness.texts.agreement import (
    Disagreement,
    Due,
    Reply,
    first_problem,
    gives_early,
    judge_agreement,
    of_tokens,
    rendering_problem,
    stream_problem,
    text_problem,
    tokens_problem,
)
from harness.texts.oracle import Oracle, oracle_of
from harness.texts.shrink import causes

S = TypeVar("S", str, list[int])

ANY_TOKENS = "any-tokens"
"""Beside the kinds of text: tokens as a model may choose them, which need not be those of a text."""
# Wrong answers that are made small, each with a dozen calls to the worker.
_CAUSES = 32
# Characters of a text that is streamed: what streams hold back they decode again at each token.
_STREAMED = 60
# What half a surrogate pair may be replaced by: U+FFFD once, for each of its three bytes, or a question mark.
_REPLACEMENTS = ("\ufffd", "\ufffd\ufffd\ufffd", "?")
_LONE = ("\ud800", "a\ud83d", "\ude00b", "a\udfff b", "\ud83d\ud83d", "\ude00\ud83d")


def encoding(session: TargetSession, kind: str) -> Verdict:
    """Texts of a kind become the tokens that are due, with those that the tokenizer adds by itself and without."""
    oracle = _oracle(session)

    def problems(texts: Sequence[str]) -> list[str]:
        return _with_flag(
            texts,
            lambda special: _encoded(session, texts, special=special),
            lambda text, special, reply: tokens_problem(oracle.encode(text, special=special), reply),
            ("", " with those that are added to every text"),
        )

    return _judge(_texts(session, oracle, kind), problems, "texts")


def decoding(session: TargetSession, kind: str) -> Verdict:
    """Tokens become the text that is due, special tokens shown and left out."""
    oracle = _oracle(session)

    def problems(tokens: Sequence[list[int]]) -> list[str]:
        return _with_flag(
            tokens,
            lambda special: _ask(session, "decode_tokens", tokens=tokens, special=special),
            lambda one, special, reply: first_problem(text_problem, _due(oracle, kind, one, special=special), reply),
            (", special tokens left out", ", special tokens shown"),
        )

    return _judge_tokens(session, oracle, kind, problems)


def streaming(session: TargetSession, kind: str) -> Verdict:
    """Token by token, the same text comes out as of all tokens at once, and never half a character."""
    oracle = _oracle(session)
    early = False

    def problems(tokens: Sequence[list[int]]) -> list[str]:
        nonlocal early
        replies = _ask(session, "stream_tokens", tokens=tokens)
        early = early or gives_early(replies)
        return [
            first_problem(stream_problem, _due(oracle, kind, one, special=False), reply)
            for one, reply in zip(tokens, replies, strict=True)
        ]

    verdict = _judge_tokens(session, oracle, kind, problems, most=_STREAMED)
    if verdict.outcome is Outcome.PASS and not early:
        return Verdict(Outcome.FAIL, verdict.numbers, verdict.limits, "the stream gives nothing out before its end")
    return verdict


def round_trips(session: TargetSession, kind: str) -> Verdict:
    """Where tokenizer.json promises it, tokens that the runtime made of a text are by the runtime made that text again.

    Raises Unsupported where no text of the kind is promised that.
    """
    oracle = _oracle(session)
    promise = oracle.round_trip
    promised = [text for text in _texts(session, oracle, kind) if promise.covers(text)]
    if not promised:
        raise Unsupported(promise.reason or f"tokenizer.json keeps no text of the kind {kind} as it is")

    def problems(texts: Sequence[str]) -> list[str]:
        encoded = _encoded(session, texts, special=False)
        decoded = _ask(session, "decode_tokens", tokens=[reply.value or [] for reply in encoded], special=True)
        replies = [first if first.raised else second for first, second in zip(encoded, decoded, strict=True)]
        return [text_problem(text, reply) for text, reply in zip(texts, replies, strict=True)]

    return _judge(promised, problems, "texts")


def templates(session: TargetSession) -> Verdict:
    """Chats become what the checkpoint's own template makes of them, up to the answer's beginning and without it."""
    oracle = _oracle(session)
    prompts = [prompt for suite in session.run.settings.suites for prompt in suite.prompts]
    chats = [_chat(prompt.messages) for prompt in prompts if prompt.messages] + corpus.chats(oracle.added_tokens)
    found = _with_flag(
        chats,
        lambda answer: _ask(session, "render_chats", chats=chats, answer=answer),
        lambda chat, answer, reply: rendering_problem(oracle.render(chat, answer=answer), reply),
        ("", ", up to the answer"),
    )
    wrong = [Disagreement(chat, problem) for chat, problem in zip(chats, found, strict=True) if problem]
    return judge_agreement(len(chats), len(wrong), sorted(wrong, key=lambda one: len(str(one.given))), "chats")


def lone_surrogates(session: TargetSession) -> Verdict:
    """Half a surrogate pair, which is no text, is refused or replaced, and the tokenizer goes on working."""
    oracle = _oracle(session)
    replies = _encoded(session, _LONE, special=False)
    wrong = [
        Disagreement(text, f"gives tokens {reply.value}, which are neither a refusal nor a replacement")
        for text, reply in zip(_LONE, replies, strict=True)
        if reply.raised is None and reply.value not in _replaced(oracle, text)
    ]
    after = _encoded(session, ["still here"], special=False)[0]
    problem = tokens_problem(oracle.encode("still here", special=False), after)
    if problem:
        wrong.append(Disagreement("still here", f"asked after them, {problem}"))
    return judge_agreement(len(_LONE) + 1, len(wrong), wrong, "texts")


def _replaced(oracle: Oracle, text: str) -> list[list[int]]:
    """The tokens of a text with each half of a surrogate pair replaced in one of the ways that are honest."""
    tables = [dict.fromkeys(range(0xD800, 0xE000), replacement) for replacement in _REPLACEMENTS]
    return [oracle.encode(text.translate(table), special=False) for table in tables]


def _due(oracle: Oracle, kind: str, tokens: list[int], *, special: bool) -> Due:
    """What tokens are due to be decoded to; where they are any, in every reading of bytes that are no text."""
    if kind == ANY_TOKENS:
        return Due(oracle.readings(tokens, special=special), loose=True)
    return Due((oracle.decode(tokens, special=special),))


def _oracle(session: TargetSession) -> Oracle:
    return oracle_of(session.run.settings.checkpoint.path)


def _texts(session: TargetSession, oracle: Oracle, kind: str) -> list[str]:
    """The texts of a kind; those of the prompt suites with their chats as the checkpoint's template renders them.

    A prompt with control characters is left to the kind of these, so that what fails by them fails there only.
    """
    if kind == corpus.VOCABULARY:
        return corpus.of_vocabulary(oracle.pieces())
    if kind != corpus.PROMPTS:
        return list(corpus.texts(kind, oracle.added_tokens))
    prompts = [prompt for suite in session.run.settings.suites for prompt in suite.prompts]
    rendered = [oracle.render(_chat(prompt.messages), answer=True) for prompt in prompts if prompt.messages]
    written = [part for prompt in prompts for part in (prompt.text, prompt.continuation)]
    return list(dict.fromkeys(text for text in [*rendered, *written] if text and not corpus.has_control(text)))


def _chat(messages: Sequence[Message]) -> list[dict[str, str]]:
    """A chat of a prompt suite as runtimes take it."""
    return [{"role": message.role, "content": message.content} for message in messages]


def _encoded(session: TargetSession, texts: Sequence[str], *, special: bool) -> list[Reply]:
    sent = [text.encode("utf-8", "surrogatepass") for text in texts]
    return _ask(session, "encode_texts", texts=sent, special=special)


def _ask(session: TargetSession, operation: str, **arguments: Any) -> list[Reply]:
    """The replies of the worker's tokenizer to many inputs. Raises StageError, and Unsupported where it has no such."""
    return [Reply.of(answer) for answer in session.call(operation, **arguments)]


def _with_flag(
    inputs: Sequence[Any],
    ask: Callable[[bool], list[Reply]],
    problem: Callable[[Any, bool, Reply], str],
    words: tuple[str, str],
) -> list[str]:
    """The problem of each input, asked without an operation's flag and with it; empty where both answers are right.

    `words` say which of the two it was.
    """
    found = [""] * len(inputs)
    for flag, word in zip((False, True), words, strict=True):
        for index, (given, reply) in enumerate(zip(inputs, ask(flag), strict=True)):
            wrong = problem(given, flag, reply)
            found[index] = found[index] or (wrong and f"{wrong}{word}")
    return found


def _judge_tokens(
    session: TargetSession,
    oracle: Oracle,
    kind: str,
    problems: Callable[[Sequence[list[int]]], list[str]],
    most: int | None = None,
) -> Verdict:
    """The verdict on lists of tokens: any, or the oracle's of the texts of a kind, each cut to `most` characters.

    Of a text's tokens, a part may be no text. So it is texts that are made small, not their tokens.
    """
    if kind == ANY_TOKENS:
        return _judge(corpus.token_lists(oracle.vocabulary, oracle.bytes), problems, "token lists")

    def problems_of(texts: Sequence[str]) -> list[str]:
        tokens = [oracle.encode(text, special=False) for text in texts]
        return [of_tokens(*found) for found in zip(tokens, problems(tokens), strict=True)]

    return _judge(list(dict.fromkeys(text[:most] for text in _texts(session, oracle, kind))), problems_of, "texts")


def _judge(inputs: list[S], problems: Callable[[Sequence[S]], list[str]], unit: str) -> Verdict:
    """The verdict on all inputs, with the smallest ones that go wrong."""

    def fails(some: Sequence[S]) -> list[bool]:
        return [bool(problem) for problem in problems(some)]

    wrong = [given for given, bad in zip(inputs, fails(inputs), strict=True) if bad]
    small, rest = causes(wrong, fails, _CAUSES)
    found = [Disagreement(given, problem) for given, problem in zip(small, problems(small), strict=True)]
    return judge_agreement(len(inputs), len(wrong), found, unit, unexplained=len(rest))
