"""What each adapter offers is what conformance/coverage.toml says that its backend offers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import pytest

from adapters import Adapter
from harness.backend import TakesThreads
from harness.cli_coverage import COVERAGE
from harness.coverage import Column, read_coverage
from harness.errors import Unsupported
from harness.operators.catalogue import OPERATORS
from harness.weights import ReadsWeights

TABLE = read_coverage(COVERAGE)
TEXT = [5, 80, 300, 41, 7, 1200]
CHAT = [{"role": "user", "content": "hello"}]


def rewind(adapter: Adapter) -> None:
    adapter.call("rewind", length=3)


def branch(adapter: Adapter) -> None:
    adapter.call("fork", name=0)
    adapter.call("resume", name=0)


def interleave(adapter: Adapter) -> None:
    for text in (1, 0):
        adapter.call("switch", text=text)
        adapter.call("reset")


def batch(adapter: Adapter) -> None:
    rows = adapter.call("batch", prompts=[TEXT, TEXT[:3]], continuations=[[9], [11]])
    assert len(rows) == 2


def appends(adapter: Adapter) -> bool:
    if adapter.info.capabilities.max_append is not None:
        return False
    assert len(adapter.call("append", tokens=TEXT)) in (1, len(TEXT))  # after what was fed before
    return True


def reads_weights(adapter: Adapter) -> bool:
    return isinstance(adapter.backend, ReadsWeights)


def tokenizer(adapter: Adapter) -> None:
    [[gave, tokens]] = adapter.call("encode_texts", texts=[b"hello"], special=False)
    assert gave == "gave"
    assert adapter.call("decode_tokens", tokens=[tokens], special=False) == [["gave", "hello"]]


def stream(adapter: Adapter) -> None:
    [[gave, _]] = adapter.call("stream_tokens", tokens=[TEXT])
    assert gave == "gave"


def chat_template(adapter: Adapter) -> None:
    [[gave, text]] = adapter.call("render_chats", chats=[CHAT], answer=True)
    assert gave == "gave"
    assert "hello" in text


def threads(adapter: Adapter) -> bool:
    return isinstance(adapter.backend, TakesThreads) and bool(adapter.backend.threads_option(adapter.target))


ASKED: Mapping[str, Callable[[Adapter], bool | None]] = {
    "whole-prompt-logits": lambda adapter: adapter.info.capabilities.whole_prompt_logits,
    "appends": appends,
    "rewind": rewind,
    "branch": branch,
    "interleave": interleave,
    "batch": batch,
    "declared-end-tokens": lambda adapter: adapter.info.capabilities.own_end_tokens is None,
    "exact-weights": reads_weights,
    "products": lambda adapter: bool(adapter.call("products")),
    "residual-states": lambda adapter: bool(adapter.call("residual_states", tokens=TEXT, prefill=4)),
    "operators": lambda adapter: bool(adapter.call("operator_offer", target=str(adapter.target))),
    "tokenizer": tokenizer,
    "stream": stream,
    "chat-template": chat_template,
    "reload": lambda adapter: bool(adapter.call("can_load_again")),
    "threads": threads,
    "cancel": lambda adapter: bool(adapter.call("ways_to_cancel")),
}


def column_of(adapter: Adapter) -> Column:
    column = TABLE.column(adapter.target)
    if column is None:
        pytest.skip(f"{adapter.target} is a third party's, of which the table says nothing")
    return column


def test_every_capability_of_the_table_is_asked_for() -> None:
    assert set(ASKED) == {one.id for one in TABLE.capability}


def test_an_adapter_offers_what_the_table_says_and_refuses_the_rest_for_its_reason(adapter: Adapter) -> None:
    column = column_of(adapter)
    wrong = []
    assert adapter.info.vocabulary
    adapter.call("reset")
    adapter.call("append", tokens=TEXT)
    for capability, ask in ASKED.items():
        lack, refusal = column.lacks.get(capability), ""
        try:
            offered = ask(adapter) is not False
        except Unsupported as error:
            offered, refusal = False, error.problem
        if offered == (lack is not None):
            wrong.append(f"{capability} is {'offered' if offered else f'not offered: {refusal}'}")
        elif lack is not None and refusal and not re.search(lack.says or "$^", refusal):
            wrong.append(f"{capability} is refused for another reason: {refusal}")
    adapter.call("reset")
    assert wrong == [], column.id


@pytest.mark.parametrize("test", ["test_operators", "test_operators_in_many_shapes"])
def test_an_adapter_lacks_the_operators_that_the_table_leaves_out_for_their_reasons(
    adapter: Adapter, test: str
) -> None:
    column = column_of(adapter)
    lacks = adapter.call("operator_offer", target=str(adapter.target))["lacks"]
    left_out = {
        operator: [one.says for one in TABLE.exemption if one.covers(column, adapter.target, f"{test}[{operator}]")]
        for operator in OPERATORS
    }
    assert {operator for operator, patterns in left_out.items() if patterns} == set(lacks)
    for operator, reason in lacks.items():
        assert any(re.search(pattern, reason) for pattern in left_out[operator]), reason
