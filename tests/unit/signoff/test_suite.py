"""The sign-off suite is a sample: large, in strata, held out, and as its generator makes it."""

from __future__ import annotations

import importlib.util
import json
import random
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from types import ModuleType

import pytest

from harness.errors import UsageError
from harness.golden import TREE
from harness.prompts import Prompt, PromptSuite, read_suite
from harness.signoff.suite import CORE, SUITE, check_scored, choose, stratum, text_of

SOURCES = TREE / "golden" / "phi-3-tiny"
# Words in a row that two independent texts do not share.
SHINGLE = 8
# Set aside from the training document by document; the others share no eight words with any of it.
FAMILIAR = ("familiar-chat", "familiar-story")


@pytest.fixture(scope="module")
def scored() -> PromptSuite:
    return read_suite(SUITE)


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)
    spec.loader.exec_module(module)
    return module


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[at : at + SHINGLE]) for at in range(len(words) - SHINGLE + 1)}


def whole(prompt: Prompt) -> str:
    return f"{text_of(prompt)} {prompt.continuation}"


def test_it_is_as_the_generator_makes_it() -> None:
    made = load(SUITE.with_name("generate.py")).items()
    assert [json.loads(line) for line in SUITE.read_text(encoding="utf-8").splitlines()] == list(made)


def test_it_is_large_and_stratified(scored: PromptSuite) -> None:
    strata = Counter(stratum(prompt.id) for prompt in scored.prompts)
    assert len(scored.prompts) >= 300
    assert len(strata) >= 10
    assert min(strata.values()) >= 15
    check_scored(scored)


def test_no_text_is_there_twice(scored: PromptSuite) -> None:
    texts = [whole(prompt) for prompt in scored.prompts]
    assert len(set(texts)) == len(texts)
    patterned = ("json", "table", "log", "arithmetic", *FAMILIAR)
    prose = [prompt for prompt in scored.prompts if stratum(prompt.id) not in patterned]
    seen: Counter[tuple[str, ...]] = Counter(shingle for prompt in prose for shingle in shingles(whole(prompt)))
    assert max(seen.values()) == 1


def test_items_are_short(scored: PromptSuite) -> None:
    assert max(len(whole(prompt).encode()) for prompt in scored.prompts) < 700


def corpus() -> tuple[list[str], list[list[dict[str, str]]], Callable[[object], bool]]:
    """Texts and conversations that the bundled checkpoint's corpus is made of, and which of them were set aside.

    Without the licences, which depend on what is installed.
    """
    sys.path.insert(0, str(SOURCES))
    try:
        import chat
        import corpus
        import stories
    finally:
        sys.path.remove(str(SOURCES))
    texts = [*topics.topics.values(), *corpus.essays()]
    rng = random.Random(corpus.SEED)
    texts += [stories.story(rng) for _ in range(corpus.STORIES)]
    return texts, [chat.conversation(rng) for _ in range(corpus.CONVERSATIONS)], corpus.is_held_out


def test_it_is_held_out_of_the_bundled_checkpoints_training(scored: PromptSuite) -> None:
    texts, conversations, _ = corpus()
    new = [prompt for prompt in scored.prompts if stratum(prompt.id) not in FAMILIAR]
    mine = {shingle for prompt in new for shingle in shingles(whole(prompt))}
    turns = {message["content"] for conversation in conversations for message in conversation}
    for text in (*texts, *turns):
        assert not shingles(text) & mine, text
    assert not {prompt.messages[-1].content for prompt in new if prompt.messages} & turns


def test_what_is_familiar_to_it_was_set_aside_from_its_training(scored: PromptSuite) -> None:
    texts, conversations, is_held_out = corpus()
    trained = {json.dumps(one) for one in (*texts, *conversations) if not is_held_out(one)}
    familiar = [prompt for prompt in scored.prompts if stratum(prompt.id) in FAMILIAR]
    assert len(familiar) == 72
    for prompt in familiar:
        document: object = f"{prompt.text}{prompt.continuation}"
        if prompt.messages is not None:
            turns = [{"role": message.role, "content": message.content} for message in prompt.messages]
            document = [*turns, {"role": "assistant", "content": prompt.continuation}]
        assert is_held_out(document), prompt.id
        assert json.dumps(document) not in trained


def test_it_shares_nothing_with_the_prompts_of_the_main_job(scored: PromptSuite) -> None:
    core = {text_of(prompt) for prompt in read_suite(CORE).prompts}
    assert not core & {text_of(prompt) for prompt in scored.prompts}


def test_a_part_has_something_of_every_stratum(scored: PromptSuite) -> None:
    part = choose(scored, 26)
    assert len(part) == 26
    assert {stratum(prompt.id) for prompt in part} == {stratum(prompt.id) for prompt in scored.prompts}
    assert choose(scored, 0) == choose(scored, 10_000) == list(scored.prompts)


def test_a_suite_to_be_answered_is_none_to_be_scored() -> None:
    with pytest.raises(UsageError, match="no continuation"):
        check_scored(read_suite(CORE))
