"""Drafts, answers as they grow and recordings that are cut, on a made-up model that is only a table."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.backend import SessionInfo
from harness.checkpoint import Checkpoint
from harness.errors import GoldenError, UsageError
from harness.streamed_recording import StreamedReference
from harness.streaming.decoding import Answer, Asked
from harness.streaming.drafting import MOST, proposed, repeated
from harness.streaming.feed import Step, Whole
from harness.streaming.remaining import Remaining, in_words
from harness.target import Precision
from support import ignore

VOCABULARY = 24
END = 2


def rows(tokens: Sequence[int]) -> np.ndarray:
    """Logits after each token, of what the last three tokens are, so that texts run in circles."""
    found = []
    for n in range(1, len(tokens) + 1):
        seed = zlib.crc32(bytes(tokens[max(0, n - 3) : n]))
        found.append(np.random.default_rng(seed).normal(size=VOCABULARY))
    return np.asarray(found, dtype=np.float32)


def best(text: Sequence[int]) -> int:
    return int(rows(text)[-1].argmax())


def plainly(prompt: Sequence[int], most: int) -> list[int]:
    answer: list[int] = []
    while len(answer) < most and END not in answer:
        answer.append(best([*prompt, *answer]))
    return answer


def grown(answer: Answer) -> int:
    """Let an answer grow as a pass would, with a cache that is checked; how many passes it took."""
    cache: list[int] = []
    passes = 0
    while not answer.finished:
        step = answer.step(0)
        assert step.start <= len(cache)
        cache = [*cache[: step.start], *step.tokens]
        assert step.length == len(cache)
        assert cache[: len(answer.asked.tokens)] == list(answer.asked.tokens)
        answer.learn([best(cache[: len(cache) - step.wanted + 1 + i]) for i in range(step.wanted)])
        passes += 1
    return passes


# drafts


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([5, 6, 7, 8, 9, 5, 6], [7, 8, 9, 5]),
        ([1, 2, 3, 4, 9, 2, 3, 5, 1, 2, 3], [4, 9, 2, 3]),  # three tokens tell more than the last two
        ([4, 4, 4], [4, 4, 4, 4]),
        ([7, 8, 7, 8], [7, 8, 7, 8]),
        ([1, 2, 3], []),
        ([1], []),
        ([], []),
    ],
)
def test_what_followed_before_is_tried_again(tokens: list[int], expected: list[int]) -> None:
    assert repeated(tokens, 4) == expected


def test_a_draft_is_tried_while_the_answer_follows_it() -> None:
    assert proposed([1, 2], [], [9, 8, 7], 2) == [9, 8]
    assert proposed([1, 2], [9], [9, 8, 7], 5) == [8, 7]
    assert proposed([1, 2], [3], [9, 8, 7], 5) == []
    assert proposed([1, 2, 3, 1], [2], [9], 1) == [3]


tokens_of = st.lists(st.integers(3, VOCABULARY - 1), min_size=1, max_size=12)


@settings(max_examples=60)
@given(prompt=tokens_of, draft=st.lists(st.integers(0, VOCABULARY - 1), max_size=12), most=st.integers(1, 40))
def test_whatever_is_tried_the_answer_is_the_same(prompt: list[int], draft: list[int], most: int) -> None:
    expected = plainly(prompt, most)
    asked = Asked("p", tuple(prompt), most)
    plain = Answer(asked, [END], drafting=False)
    passes = grown(plain)
    assert (plain.tokens, passes) == (expected, len(expected))
    for tried in (draft, expected, expected[: most // 2] + draft):
        answer = Answer(asked, [END], draft=tried)
        assert grown(answer) <= passes
        assert answer.tokens == expected


def test_a_right_draft_saves_passes() -> None:
    prompt = next(p for p in ([i, i + 1] for i in range(3, 20)) if len(plainly(p, 40)) == 40)
    answer = Answer(Asked("p", tuple(prompt), 40), [END], draft=plainly(prompt, 40))
    assert grown(answer) <= 5  # 5, 9, 17 and 9 tokens


@given(prompt=tokens_of, switch=st.integers(1, 30))
def test_a_text_that_passes_the_switch_is_computed_anew_once_and_no_step_straddles_it(
    prompt: list[int], switch: int
) -> None:
    answer = Answer(Asked("p", tuple(prompt), 20), [END], switch, draft=plainly(prompt, 20))
    began = []
    while not answer.finished:
        step = answer.step(0)
        first = step.length - step.wanted + 1  # the length of the text at the first token that is asked for
        assert (first > switch) == (step.length > switch)
        began.append((step.start, step.length > switch))
        text = [*answer.asked.tokens, *answer.tokens, *step.tokens[len(step.tokens) - step.wanted + 1 :]]
        answer.learn([best(text[: len(text) - step.wanted + 1 + i]) for i in range(step.wanted)])
    assert answer.tokens == plainly(prompt, 20)
    for side in (False, True):
        starts = [start for start, past in began if past is side]
        assert starts[:1] in ([], [0])
        assert 0 not in starts[1:]


# recordings


class Table:
    """A worker that streams the table; it may prefer another token in decoding, by so much of a logit."""

    running = True

    def __init__(self, wrong: tuple[int, float] | None = None) -> None:
        self.wrong = wrong
        self.passes: list[str] = []
        self.caches: list[list[int]] = []
        self.best: list[list[int]] = []
        self.left: Iterator[int] = iter(())

    def call(self, _stage: object, operation: str, **arguments: Any) -> Any:
        return getattr(self, operation)(**arguments)

    def open(self, backend: str) -> dict[str, Any]:
        return {"missing": [], "executable": backend}

    def stream_open(self, checkpoint: str, folder: str, trust_remote_code: bool) -> Any:
        assert Path(checkpoint).is_dir()
        assert not trust_remote_code
        self.folder = Path(folder)
        self.folder.mkdir(exist_ok=True)
        return msgspec.to_builtins(SessionInfo(VOCABULARY, Precision.FP32, {}, {"torch": "0"}, load_options={}))

    def stream_caches(self, capacities: list[int]) -> None:
        self.caches = [[] for _ in capacities]
        self.capacities = capacities

    def stream_step(self, steps: list[dict[str, Any]]) -> None:
        self.passes.append("step")
        self.left, self.best = self.layers(), []
        for step in msgspec.convert(steps, list[Step]):
            held = self.caches[step.slot] = [*self.caches[step.slot][: step.start], *step.tokens]
            assert len(held) == step.length <= self.capacities[step.slot]
            self.best.append([self.choose(held[: len(held) - step.wanted + 1 + i]) for i in range(step.wanted)])

    def choose(self, text: list[int]) -> int:
        order = np.argsort(-rows(text)[-1])
        return int(order[1] if self.wrong is not None and len(text) == self.wrong[0] else order[0])

    def stream_whole(self, texts: list[dict[str, Any]], hidden: bool) -> list[str]:
        assert not hidden
        self.passes.append("whole")
        self.left = self.layers()
        paths: list[Path] = []
        for text in msgspec.convert(texts, list[Whole]):
            found = rows(text.tokens)
            if (
                self.wrong is not None and len(text.tokens) >= self.wrong[0]
            ):  # the two likeliest lie as far apart as is told
                at = self.wrong[0] - 1
                first, second = np.argsort(-found[at])[:2]
                found[at, second] = found[at, first] - self.wrong[1]
            paths.append(self.folder / f"{len(self.passes)}-{len(paths)}.npy")
            np.save(paths[-1], found)
        return [str(path) for path in paths]

    def layers(self) -> Iterator[int]:
        yield from range(3)

    def stream_advance(self) -> int | None:
        return next(self.left, None)

    def stream_best(self) -> list[list[int]]:
        return self.best

    def stream_free(self) -> None:
        self.caches = []


def recorded(table: Table, checkpoint: Checkpoint, work: Path, **how: Any) -> list[tuple[list[int], bytes]]:
    progress = how.pop("progress", ignore)
    reference = StreamedReference(table, checkpoint, work, progress)  # type: ignore[arg-type]
    done = False
    try:
        found = reference.answer(ASKED, **how)
        done = True
        return [(tokens, forced.rows.tobytes()) for tokens, forced in found]
    finally:
        reference.leave(done=done)


ASKED = [Asked("one", (5, 6, 7), 12), Asked("two", (9,), 20), Asked("three", (4, 4), 2, given=(8, 8))]


def test_every_prompt_gets_its_greedy_answer_and_its_logits(checkpoint: Checkpoint, tmp_path: Path) -> None:
    found = recorded(Table(), checkpoint, tmp_path / "work")
    for asked, (tokens, logits) in zip(ASKED, found, strict=True):
        assert tokens == list(asked.given or plainly(asked.tokens, asked.new_tokens))
        assert logits == rows([*asked.tokens, *tokens]).tobytes()
    assert not (tmp_path / "work").exists()


def test_a_cut_recording_goes_on_from_its_last_pass_to_the_same_bytes(checkpoint: Checkpoint, tmp_path: Path) -> None:
    whole = Table()
    expected = recorded(whole, checkpoint, tmp_path / "uncut", drafting=False)
    told: list[str] = []

    def cut(what: str, *_: object) -> None:
        told.append(what)
        if what.startswith("pass 4"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recorded(Table(), checkpoint, tmp_path / "work", drafting=False, progress=cut)
    assert {path.name for path in (tmp_path / "work").iterdir()} <= {"answers.json", "lock"}
    rest = Table()
    assert recorded(rest, checkpoint, tmp_path / "work", drafting=False) == expected
    assert len(rest.passes) == len(whole.passes) - 3


def test_answers_to_other_prompts_are_not_gone_on_from(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "answers.json").write_text('{"key": "another", "answers": {"two": [1, 1, 1]}}')
    assert recorded(Table(), checkpoint, tmp_path / "work")[1][0] == plainly((9,), 20)


def test_a_near_tie_is_decided_by_the_pass_over_all(checkpoint: Checkpoint, tmp_path: Path) -> None:
    expected = [tokens for tokens, _ in recorded(Table(), checkpoint, tmp_path / "one")]
    table = Table(wrong=(8, 1e-5))
    assert [tokens for tokens, _ in recorded(table, checkpoint, tmp_path / "two")] == expected
    assert table.passes.count("whole") == 2


def test_decoding_that_contradicts_the_pass_over_all_makes_no_golden(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(GoldenError, match="logits below the best of the pass over all"):
        recorded(Table(wrong=(8, 0.05)), checkpoint, tmp_path / "work")


def test_two_recordings_do_not_share_a_work_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    first = StreamedReference(Table(), checkpoint, tmp_path / "work", ignore)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="another process"):
        StreamedReference(Table(), checkpoint, tmp_path / "work", ignore)  # type: ignore[arg-type]
    first.leave(done=True)


def test_a_model_that_cannot_be_opened_leaves_no_lock_and_no_folder(checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Lacking(Table):
        def open(self, backend: str) -> dict[str, Any]:
            return {"missing": ["torch"], "executable": backend}

    with pytest.raises(GoldenError, match="needs torch"):
        StreamedReference(Lacking(), checkpoint, tmp_path / "work", ignore)  # type: ignore[arg-type]
    assert not (tmp_path / "work").exists()
    StreamedReference(Table(), checkpoint, tmp_path / "work", ignore).leave(done=True)  # type: ignore[arg-type]


def test_a_work_folder_that_cannot_be_made_is_said_in_a_sentence(checkpoint: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GoldenError, match=r"cannot be written.*\n.*--golden"):
        StreamedReference(Table(), checkpoint, tmp_path / "file" / "work", ignore)  # type: ignore[arg-type]


def test_logits_that_are_no_numbers_end_a_recording(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Table.stream_whole

    def broken(self: Table, texts: list[dict[str, Any]], hidden: bool) -> list[str]:
        paths = honest(self, texts, hidden)
        found = np.load(paths[-1])
        found[1, 3] = np.nan
        np.save(paths[-1], found)
        return paths

    monkeypatch.setattr(Table, "stream_whole", broken)
    with pytest.raises(GoldenError, match="NaN or Inf at position 1"):
        recorded(Table(), checkpoint, tmp_path / "work")


# time left


def test_the_time_left_is_that_of_the_passes_to_come() -> None:
    now = [0.0]
    remaining = Remaining(1000, lambda: now[0])
    remaining.begin(500)
    assert remaining.left(0.0, 9, last=False) is None
    now[0] = 5.0
    assert remaining.left(0.5, 0, last=False) == pytest.approx(5 + 1000 * 10 / 500)
    now[0] = 10.0
    remaining.end(whole=True)
    remaining.begin(10)
    now[0] = 12.0
    remaining.end(whole=False)
    remaining.begin(10)
    now[0] = 13.0
    assert remaining.left(0.5, 3, last=False) == pytest.approx(1 + 3 * 2 + 1000 * 10 / 500)
    assert remaining.left(0.5, 3, last=True) == pytest.approx(1)


@pytest.mark.parametrize(("seconds", "expected"), [(3.2, "about 3 s"), (100, "about 2 min"), (9000, "about 2.5 h")])
def test_a_time_is_told_as_people_tell_it(seconds: float, expected: str) -> None:
    assert in_words(seconds) == expected


def test_a_step_tries_no_more_than_it_may() -> None:
    answer = Answer(Asked("p", (4, 4, 4), 100), [END])
    for _ in range(6):
        step = answer.step(0)
        assert step.wanted <= MOST + 1
        answer.learn([4] * step.wanted)
    assert answer.step(0).wanted == MOST + 1
