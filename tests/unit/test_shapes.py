"""Which lengths are asked of which session, what they are held against, and how those that are wrong are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from direct import direct
from harness import batches, shapes
from harness.backend import Capabilities
from harness.compare import Outcome
from harness.errors import Unsupported
from harness.sessions import TargetSession
from harness.stepping import Expected, Stepper
from support import Tiny


@pytest.mark.parametrize(
    ("wrong", "asked", "words"),
    [
        ([17], range(2, 20), "17"),
        ([17, 33, 49], range(2, 65), "17, 33, 49: all that are 16 n + 1"),
        ([8, 16], range(2, 17), "8, 16: all multiples of 8"),
        ([17, 49], range(2, 65), "17, 49: all that are 32 n + 17"),
        ([17, 18, 19, 40], range(2, 65), "17 to 19, 40"),
        ([15, 17], [15, 16, 17], "15, 17"),
        ([31, 33], [31, 33], "31 to 33"),  # nothing between them was asked
        ([257, 258, 259], [256, 257, 258, 259], "257 to 259"),
    ],
)
def test_lengths_in_words(wrong: list[int], asked: list[int], words: str) -> None:
    assert shapes.pattern(wrong, asked) == words


class Asked:
    """A session whose capabilities are others than the planted one's, and what lengths it was asked."""

    def __init__(self, tiny: Tiny, monkeypatch: pytest.MonkeyPatch, **able: Any) -> None:
        self.session = direct(tiny)
        self.lengths: list[int] = []
        info = self.session.info
        assert info is not None
        changed = msgspec.structs.replace(info, capabilities=msgspec.structs.replace(info.capabilities, **able))
        monkeypatch.setattr(type(self.session), "info", changed)
        plain = Stepper.append

        def append(stepper: Stepper, tokens: list[int]) -> Any:
            self.lengths.append(len(tokens))
            return plain(stepper, tokens)

        monkeypatch.setattr(Stepper, "append", append)


def test_every_length_is_asked_up_to_the_window(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(tiny, monkeypatch)
    verdict = shapes.in_band(asked.session, 2, 64)
    assert asked.lengths == list(range(2, 17))
    assert (verdict.numbers["lengths"], verdict.numbers["asked"], verdict.message) == (15.0, 15.0, "")


@pytest.mark.parametrize(
    ("able", "lengths", "why"),
    [
        ({"compiles_lengths": True}, [5, 15, 16], "the runtime compiles for each new length"),
        ({"max_prompt": 100}, [5], "the session computes all in one shape"),
    ],
)
def test_a_session_that_is_asked_fewer_says_so(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, able: dict[str, Any], lengths: list[int], why: str
) -> None:
    asked = Asked(tiny, monkeypatch, **able)
    verdict = shapes.in_band(asked.session, 2, 64)
    assert asked.lengths == lengths
    assert (verdict.numbers["lengths"], verdict.numbers["asked"]) == (15.0, len(lengths))
    assert verdict.message == f"{len(lengths)} of 15 lengths were asked: {why}"


def test_the_window_itself_is_crossed(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(tiny, monkeypatch)
    assert shapes.past_window(asked.session).outcome is Outcome.PASS
    assert asked.lengths == [16, 17, 18, 19, 20]


def test_a_session_that_is_too_small_is_asked_what_it_takes(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(tiny, monkeypatch, max_prompt=16)
    shapes.at_border(asked.session, 16)
    assert asked.lengths == [15, 16]
    with pytest.raises(Unsupported, match="the session takes 16 tokens"):
        shapes.at_border(asked.session, 64)


@pytest.mark.parametrize(("first", "last"), [(65, 128), (257, 512)])
def test_a_band_past_the_window_has_nothing_to_ask(tiny: Tiny, first: int, last: int) -> None:
    with pytest.raises(Unsupported, match="the checkpoint's window is 16"):
        shapes.in_band(direct(tiny), first, last)
    with pytest.raises(Unsupported, match="the checkpoint's window is 16"):
        shapes.past(direct(tiny), 512)


def test_long_windows_have_their_borders_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(shapes, "_of_lengths", lambda _, lengths: asked.extend(lengths))
    run = SimpleNamespace(settings=SimpleNamespace(checkpoint=SimpleNamespace(window=2047)))
    shapes.past(cast(TargetSession, SimpleNamespace(run=run)), 512)
    assert asked == [513, 1023, 1024, 1025, 2047, 2048, 2049]


def test_long_prompts_share_a_text_that_is_no_longer_for_a_window_of_a_whole_book(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shapes, "text_of", lambda _, length: [0] * length)

    def longest(window: int, length: int) -> int:
        checkpoint = SimpleNamespace(window=window, max_tokens=131072)
        run = SimpleNamespace(settings=SimpleNamespace(checkpoint=checkpoint))
        return len(shapes._text(cast(TargetSession, SimpleNamespace(run=run)), length))

    assert [longest(256, length) for length in (64, 128, 260)] == [64, 260, 260]
    assert [longest(262144, length) for length in (64, 128, 512, 2049)] == [64, 512, 512, 2049]


def test_lengths_whose_logits_fill_the_memory_are_not_asked(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(tiny, monkeypatch)
    vocabulary = asked.session.run.settings.checkpoint.vocabulary
    monkeypatch.setattr("harness.stepping._MOST_LOGITS", 4 * vocabulary * 16)
    shapes.at_border(asked.session, 16)
    assert asked.lengths == [15, 16]
    with pytest.raises(Unsupported, match="the logits of 17 tokens are"):
        shapes._of_lengths(asked.session, [17, 18])


def test_each_side_of_the_switch_is_held_against_a_pass_of_its_own() -> None:
    passes: list[int] = []

    def rows(tokens: list[int], prefill: int) -> Expected:
        assert prefill == len(tokens)
        passes.append(prefill)
        return Expected(np.full((prefill, 2), float(prefill)), np.zeros(prefill))

    rope = {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64}
    checkpoint = cast(Any, SimpleNamespace(config=rope))
    oracle = cast(Any, SimpleNamespace(rows=rows))
    found = {n: e.rows[0, 0] for n, e in shapes._expected(checkpoint, oracle, [0] * 70, [62, 63, 64, 65, 70])}
    assert found == {62: 64.0, 63: 64.0, 64: 64.0, 65: 70.0, 70: 70.0}
    assert passes == [64, 70]


def test_rows_of_a_batch_do_not_end_with_what_may_be_padding(tiny: Tiny) -> None:
    session = direct(tiny)
    taken = {batches._row(session, 5, start) for start in range(60)}
    assert all(row[4] != 63 for row in taken)
    first = batches._row(session, 5, 0)
    assert batches._row(session, 5, 0, unlike=first[0])[0] != first[0]


def test_prompts_that_are_one_token_over_and_over_make_no_batch(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "text_of", lambda _session, length, _start: [63] * length)
    with pytest.raises(Unsupported, match="the same token over and over"):
        batches._row(direct(tiny), 5, 0)


def test_a_session_without_batches_is_unsupported(tiny: Tiny) -> None:
    session = direct(tiny)
    inner = cast(Any, session).session
    # A class of its own: what a class can do is asked once and remembered.
    inner.__class__ = type("OneAtATime", (type(inner),), {"batch": None})
    with pytest.raises(Unsupported, match="one text at a time"):
        batches.like_alone(session, "size-3")


def test_what_a_session_can_do_is_assumed_of_none() -> None:
    assert not Capabilities().repeats_exactly
    assert not Capabilities().compiles_lengths
