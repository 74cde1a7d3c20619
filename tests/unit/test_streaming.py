"""Streamed passes in PyTorch: equal to the float64 oracle, in blocks, steps and drafts, and to the golden in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import phi3_float64
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.errors import HarnessError, ResourceError, UsageError
from harness.golden import COMPACT, Golden, verify_files
from harness.layout import Layout
from harness.longrope import switch_of
from harness.options import DEFAULT_CHECKPOINT, parse_size
from harness.prompts import PromptSuite, read_suite
from harness.recording import Streaming, must_stream, record_golden
from harness.streamed_recording import StreamedReference
from harness.streaming.decoding import Asked
from harness.streaming.room import check_disk, least_memory
from harness.worker import Worker
from support import ignore

LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 12,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 3.0, 5.0, 9.0]},
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped-and-windowed": {"num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": 5},
    "tied-with-a-head-in-blocks": {"tie_word_embeddings": True, "vocab_size": 640},
    "longrope": LONGROPE,
}


@pytest.fixture(params=SHAPES)
def shaped(request: pytest.FixtureRequest, make_folder: Callable[..., Path]) -> Checkpoint:
    """A checkpoint of random weights of each kind."""
    return open_checkpoint(make_folder(**SHAPES[request.param]))


ASKED = [
    Asked("one", (5, 6, 7), 16),
    Asked("two", (9, 4, 3, 11, 8, 9, 4, 3, 11), 9),
    Asked("long", tuple(3 + i % 17 for i in range(20)), 6),
    Asked("scored", (4, 4), 3, given=(8, 2, 9)),
]


def answered(worker: Worker, checkpoint: Checkpoint, work: Path, **how: Any) -> list[Any]:
    reference = StreamedReference(worker, checkpoint, work, how.pop("progress", ignore))
    try:
        found = reference.answer(ASKED, **how)
        return [(tokens, np.array(forced.rows), np.array(forced.fresh)) for tokens, forced in found]
    finally:
        reference.release()
        reference.leave(done=True)


def test_answers_and_logits_are_those_of_the_float64_oracle(worker: Worker, shaped: Checkpoint, tmp_path: Path) -> None:
    found = answered(worker, shaped, tmp_path / "work")
    for asked, (tokens, rows, fresh) in zip(ASKED, found, strict=True):
        whole = [*asked.tokens, *tokens]
        exact = phi3_float64.forward(shaped, [whole, whole], [len(asked.tokens), len(whole)])
        np.testing.assert_allclose(rows, exact[0], atol=2e-5, rtol=0)
        np.testing.assert_allclose(fresh, exact[1][len(whole) - len(fresh) :], atol=2e-5, rtol=0)
        switch = switch_of(shaped.config)
        assert len(fresh) == (len(whole) - switch if switch and len(asked.tokens) <= switch < len(whole) else 0)
        if asked.given:
            assert tokens == list(asked.given)
        for i, token in enumerate([] if asked.given else tokens):
            text = [*asked.tokens, *tokens[:i]]
            assert token == phi3_float64.forward(shaped, [text])[0][-1].argmax()


def test_drafts_change_neither_answers_nor_logits(worker: Worker, shaped: Checkpoint, tmp_path: Path) -> None:
    plain = answered(worker, shaped, tmp_path / "work", drafting=False)
    drafts = {"one": plain[0][0], "long": [*plain[2][0][:2], 5, 5]}
    for how in ({}, {"drafts": drafts}):
        for ours, theirs in zip(answered(worker, shaped, tmp_path / "work", **how), plain, strict=True):
            assert ours[0] == theirs[0]
            assert ours[1].tobytes() == theirs[1].tobytes()
            assert ours[2].tobytes() == theirs[2].tobytes()


def test_a_prompt_is_answered_to_the_same_bytes_alone_and_among_others(
    worker: Worker, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    among = answered(worker, checkpoint, tmp_path / "work")
    for asked, expected in zip(ASKED, among, strict=True):
        reference = StreamedReference(worker, checkpoint, tmp_path / "work", ignore)
        ((tokens, forced),) = reference.answer([asked])
        assert (tokens, forced.rows.tobytes()) == (expected[0], expected[1].tobytes())
        reference.release()
        reference.leave(done=True)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> PromptSuite:
    path = tmp_path_factory.mktemp("prompts") / "few.jsonl"
    lines = [
        {"id": "chat", "about": "", "messages": [{"role": "user", "content": "Who are you?"}], "new_tokens": 12},
        {"id": "text", "about": "", "text": "The capital of France is", "new_tokens": 8},
        {"id": "scored", "about": "", "text": "One, two,", "continuation": " three, four"},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_suite(path)


@pytest.fixture(scope="module")
def whole(worker: Worker, suite: PromptSuite, tmp_path_factory: pytest.TempPathFactory) -> Golden:
    """The golden of the bundled checkpoint, by transformers with the whole model in memory."""
    out = tmp_path_factory.mktemp("goldens") / "few"
    record_golden(open_checkpoint(DEFAULT_CHECKPOINT), suite, out, worker, progress=ignore)
    return verify_files(out)


LITTLE = Streaming(memory=1000 << 20)


def test_a_streamed_golden_is_the_one_of_a_model_in_memory_to_rounding(
    worker: Worker, suite: PromptSuite, whole: Golden, tmp_path: Path
) -> None:
    manifest = record_golden(
        open_checkpoint(DEFAULT_CHECKPOINT), suite, tmp_path / "few", worker, progress=ignore, streaming=LITTLE
    )
    streamed = verify_files(tmp_path / "few")
    assert manifest.load_options["weights"] == "one layer at a time"
    assert [path.name for path in tmp_path.iterdir()] == ["few"]
    for ours, theirs in zip(manifest.cases, whole.manifest.cases, strict=True):
        assert (ours.tokens, ours.continuation, ours.ended, ours.given) == (
            *(theirs.tokens, theirs.continuation),
            *(theirs.ended, theirs.given),
        )
        np.testing.assert_allclose(streamed.logits(ours.id), whole.logits(ours.id), atol=1e-4, rtol=0)
        states, expected = streamed.hidden_states(ours.id), whole.hidden_states(ours.id)
        assert states is not None
        assert expected is not None
        np.testing.assert_allclose(states, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("streaming", [None, LITTLE], ids=["in memory", "streamed"])
def test_a_golden_is_recorded_compact_where_that_is_asked_for(
    worker: Worker, suite: PromptSuite, whole: Golden, tmp_path: Path, streaming: Streaming | None
) -> None:
    bundled = open_checkpoint(DEFAULT_CHECKPOINT)
    record_golden(bundled, suite, tmp_path / "few", worker, progress=ignore, streaming=streaming, form="compact")
    compact = verify_files(tmp_path / "few")
    assert compact.plan is not None
    positions = sum(len(case.sequence) for case in compact.manifest.cases)
    assert compact.manifest.files[COMPACT].bytes < positions * 512 + 1024
    for case in whole.manifest.cases:
        assert compact.case(case.id).continuation == case.continuation
        found = compact.rows(case.id).compare(whole.logits(case.id))
        assert found.top1_agrees.all()
        assert found.kl.max() < 1e-8
        assert found.centred_rms.max() < 1e-4


def test_a_recording_that_was_cut_is_finished_to_the_same_bytes(
    worker: Worker, suite: PromptSuite, tmp_path: Path
) -> None:
    bundled = open_checkpoint(DEFAULT_CHECKPOINT)

    def cut(what: str, *_: object) -> None:
        if what.startswith("pass 3"):
            raise KeyboardInterrupt

    def record(name: str, progress: Any = ignore) -> dict[str, Any]:
        return record_golden(bundled, suite, tmp_path / name, worker, progress=progress, streaming=LITTLE).files

    expected = record("uncut")
    with pytest.raises(KeyboardInterrupt):
        record("cut", cut)
    assert not (tmp_path / "cut").exists()
    told: list[str] = []
    assert record("cut", lambda what, *_: told.append(what)) == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "uncut"]


# room


def test_it_streams_where_memory_is_short_and_says_when_that_is_not_enough(
    checkpoint: Checkpoint, suite: PromptSuite
) -> None:
    assert not must_stream(checkpoint, suite, 4 << 30)
    assert must_stream(checkpoint, suite, 1000 << 20)
    with pytest.raises(ResourceError, match="even a layer at a time") as caught:
        must_stream(checkpoint, suite, 100 << 20)
    assert "--memory" in caught.value.remedy


def test_a_disk_without_room_is_an_error_before_anything_is_mapped(
    worker: Worker, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    check_disk(tmp_path, 1, "a byte")
    with pytest.raises(ResourceError, match=r"the caches .* free"):
        check_disk(tmp_path, 1 << 60, "the caches")
    reference = StreamedReference(worker, checkpoint, tmp_path / "work", ignore)
    with pytest.raises(HarnessError, match=r"the caches of 1 prompts take .* GiB free"):
        reference.answer([Asked("vast", (5,), 1 << 50)])
    reference.leave(done=True)


def test_phi_3_mini_fits_into_six_gigabytes_a_layer_at_a_time() -> None:
    mini = Layout(3072, 8192, 32, 32, 32, 96, 32064, tied=False)
    assert 1.5e9 < least_memory(mini, 40, 124, 40 * 124) < 6e9


@pytest.mark.parametrize(
    ("text", "expected"), [("6GB", 6_000_000_000), ("512MiB", 512 << 20), ("7.5 GiB", 15 << 29), ("1MB", 1_000_000)]
)
def test_a_size_is_read(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["6", "GB", "-1GB", "0GB", "6 TB", "6gb!"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--memory"):
        parse_size(text)
