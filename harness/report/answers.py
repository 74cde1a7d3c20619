"""Greedy answers side by side: for each prompt the golden's, and every other that a target gave, with who gave it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import takewhile

import msgspec

from harness.record import CaseRecord, PromptRecord, RunRecord
from harness.report.apart import prompt_of
from harness.report.overview import HARMLESS


class Answer(msgspec.Struct, frozen=True):
    """One answer and the targets that gave it, as text before, at and after the token where it leaves the golden's.

    `token` counts from 0. `golden` is the golden's token there, `margin` by how much the golden preferred it, in
    logits, and `regret` the worst regret of these targets, in yardsticks; NaN where the record does not say.
    `failing` names those whose greedy cases fail.
    """

    targets: tuple[str, ...]
    failing: tuple[str, ...]
    before: str
    token: int
    at: str
    after: str
    golden: str
    margin: float
    regret: float


class Answers(msgspec.Struct, frozen=True):
    """A prompt's answers: the golden's, how many targets gave it, and all others, those of failing targets first."""

    prompt: PromptRecord
    golden: str
    same: int
    others: tuple[Answer, ...]


def answers(record: RunRecord) -> list[Answers]:
    """Of every prompt that the record holds and some target answered; empty where there are no details."""
    given: dict[str, dict[str, tuple[int, ...]]] = {}
    greedy: dict[tuple[str, str], list[CaseRecord]] = {}
    for case in record.cases:
        prompt = prompt_of(case)
        if case.test.startswith("test_greedy"):
            greedy.setdefault((prompt, case.target), []).append(case)
        if case.detail is not None and case.detail.tokens:
            given.setdefault(prompt, {})[case.target] = tuple(case.detail.tokens)
    return [_of(prompt, given[prompt.id], greedy, record.words) for prompt in record.prompts if prompt.id in given]


def text_of(tokens: Sequence[int], words: Mapping[str, str]) -> str:
    """The text of tokens; an id whose text the record lacks stands in angle quotes."""
    return "".join(words.get(str(token), f"‹{token}›") for token in tokens)


def _of(
    prompt: PromptRecord,
    given: Mapping[str, tuple[int, ...]],
    greedy: Mapping[tuple[str, str], Sequence[CaseRecord]],
    words: Mapping[str, str],
) -> Answers:
    golden = tuple(prompt.tokens[prompt.prefill :])
    by_tokens: dict[tuple[int, ...], list[str]] = {}
    for target, tokens in given.items():
        by_tokens.setdefault(tokens, []).append(target)
    same = by_tokens.pop(golden, [])
    others = []
    for tokens, targets in by_tokens.items():
        cases = {target: greedy.get((prompt.id, target), ()) for target in targets}
        others.append(_answer(prompt, golden, tokens, cases, words))
    others.sort(key=lambda answer: (not answer.failing, answer.token))
    return Answers(prompt, text_of(golden, words), len(same), tuple(others))


def _answer(
    prompt: PromptRecord,
    golden: Sequence[int],
    tokens: Sequence[int],
    cases: Mapping[str, Sequence[CaseRecord]],
    words: Mapping[str, str],
) -> Answer:
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(golden, tokens, strict=False)))
    row = prompt.prefill - 1 + common
    regrets = [case.numbers.get("regret_ratio", math.nan) for found in cases.values() for case in found]
    failing = [target for target, found in cases.items() if any(c.outcome not in HARMLESS for c in found)]
    return Answer(
        targets=tuple(cases),
        failing=tuple(failing),
        before=text_of(tokens[:common], words),
        token=common,
        at=text_of(tokens[common : common + 1], words),
        after=text_of(tokens[common + 1 :], words),
        golden=text_of(golden[common : common + 1], words),
        margin=prompt.margins[row] if common < len(golden) and 0 <= row < len(prompt.margins) else math.nan,
        regret=max((regret for regret in regrets if not math.isnan(regret)), default=math.nan),
    )
