from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from safetensors import SafetensorError

from harness import golden_writing, phi3_float64, recording
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.errors import CheckpointError, GoldenError, PromptError, ResourceError
from harness.golden import LOGITS, MANIFEST, Case, open_golden, verify_files
from harness.golden_writing import write_golden
from harness.oracle_check import check_choices, measure_noise
from harness.prompts import Length, Prompt, PromptSuite
from harness.recording import Streaming, check_memory
from harness.rendering import render
from support import ignore


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_golden_is_written_with_the_hashes_of_its_files(made: Any, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "tiny"
    manifest = write_golden(out, *made)
    assert set(manifest.files) == {"logits.safetensors", "hidden.safetensors"}
    assert verify_files(out).manifest == manifest
    assert _names(out.parent) == ["tiny"]


def test_no_hidden_states_make_no_file(made: Any, tmp_path: Path) -> None:
    manifest = write_golden(tmp_path / "tiny", made.manifest, made.logits, {})
    assert set(manifest.files) == {LOGITS}


def test_arrays_that_are_views_are_written_as_they_look(made: Any, tmp_path: Path) -> None:
    expected = made.logits["two"].copy()
    made.logits["two"] = np.asfortranarray(np.repeat(expected, 2, axis=0))[::2]
    write_golden(tmp_path / "tiny", *made)
    np.testing.assert_array_equal(verify_files(tmp_path / "tiny").logits("two"), expected)


def test_recording_anew_replaces_the_whole_folder(
    made: Any, golden_root: Path, checkpoint: Checkpoint, suite: PromptSuite
) -> None:
    (golden_root / suite.name / "left-over").touch()
    write_golden(golden_root / suite.name, made.manifest, made.logits, {})
    assert sorted(_contents(golden_root)) == [f"tiny/{LOGITS}", f"tiny/{MANIFEST}"]
    assert open_golden([golden_root], checkpoint, checkpoint.fingerprint(), suite).hidden_states("two") is None


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (KeyboardInterrupt(), KeyboardInterrupt),
        (OSError(errno.ENOSPC, "No space left on device"), ResourceError),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), ResourceError),
        (SafetensorError("I/O error: No space left on device (os error 28)"), ResourceError),
        (OSError(errno.EACCES, "Permission denied"), GoldenError),
        (MemoryError(), MemoryError),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.__name__,
)
def test_a_write_that_is_stopped_leaves_the_old_golden_and_nothing_else(
    made: Any,
    golden_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    raised: BaseException,
    expected: type[BaseException],
) -> None:
    before = _contents(golden_root)

    def stop(*_: object) -> None:
        raise raised

    monkeypatch.setattr(golden_writing, "save_file", stop)
    with pytest.raises(expected):
        write_golden(golden_root / "tiny", *made)
    assert _contents(golden_root) == before
    assert _names(golden_root) == ["tiny"]


def test_a_first_write_that_is_stopped_leaves_nothing(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(_: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(golden_writing, "save_file", stop)
    root = tmp_path / "goldens"
    with pytest.raises(KeyboardInterrupt):
        write_golden(root / "tiny", *made)
    assert _names(root) == []


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), OSError(errno.EACCES, "in use")])
def test_a_swap_that_fails_half_way_puts_the_old_golden_back(
    made: Any, golden_root: Path, monkeypatch: pytest.MonkeyPatch, raised: BaseException
) -> None:
    before = _contents(golden_root)
    rename = Path.rename

    def stop(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise raised
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stop)
    with pytest.raises((KeyboardInterrupt, GoldenError)):
        write_golden(golden_root / "tiny", *made)
    assert _contents(golden_root) == before
    assert _names(golden_root) == ["tiny"]


def test_what_an_earlier_process_of_the_same_number_left_is_no_obstacle(made: Any, golden_root: Path) -> None:
    for kind in ("partial", "old"):
        left = golden_root / f"tiny.{kind}-{os.getpid()}"
        left.mkdir()
        (left / LOGITS).write_bytes(b"half")
    write_golden(golden_root / "tiny", *made)
    assert _names(golden_root) == ["tiny"]


def test_a_folder_that_cannot_be_made_is_an_error_with_a_remedy(made: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(GoldenError, match="cannot be written") as caught:
        write_golden(tmp_path / "file" / "tiny", *made)
    assert "--golden" in caught.value.remedy


def test_too_little_memory_is_refused_with_what_is_needed_and_what_is_free(checkpoint: Checkpoint) -> None:
    with pytest.raises(ResourceError, match=r"1\.0 GiB of memory; 0\.5 GiB are free") as caught:
        check_memory(checkpoint, 64, available=1 << 29)
    assert checkpoint.name in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("streamed", [True, False])
def test_a_way_that_was_asked_for_needs_its_memory_too(
    checkpoint: Checkpoint, suite: PromptSuite, tmp_path: Path, streamed: bool
) -> None:
    how: Any = {"progress": ignore, "streaming": Streaming(memory=1 << 20, streamed=streamed)}
    with pytest.raises(ResourceError, match="a layer at a time" if streamed else "--streamed in the place of --whole"):
        recording.record_golden(checkpoint, suite, tmp_path / "out", _Letters(), **how)  # type: ignore[arg-type]


def test_enough_memory_is_no_error(checkpoint: Checkpoint) -> None:
    check_memory(checkpoint, 64, available=2 << 30)


@pytest.mark.parametrize("longest", [1, 10_000, 40_000])
def test_the_memory_needed_covers_logits_and_attention_scores(checkpoint: Checkpoint, longest: int) -> None:
    with pytest.raises(ResourceError) as caught:
        check_memory(checkpoint, longest, available=0)
    stated = re.search(r"about ([\d.]+) GiB", caught.value.problem)
    assert stated is not None
    logits = longest * checkpoint.vocabulary * 4
    scores = longest * longest * 2 * 4
    assert float(stated[1]) * 2**30 >= checkpoint.parameters() * 4 + logits + scores


# against the oracle


@pytest.fixture
def computed(checkpoint: Checkpoint, made: Any) -> tuple[list[Case], dict[str, Any]]:
    """Cases of the synthetic golden with the logits that they ought to have."""
    cases = list(made.manifest.cases)
    exact = phi3_float64.forward(checkpoint, [case.sequence for case in cases])
    return cases, {case.id: rows.astype(np.float32) for case, rows in zip(cases, exact, strict=True)}


def test_rounding_is_measured_as_noise(checkpoint: Checkpoint, computed: tuple[list[Case], dict[str, Any]]) -> None:
    noise = measure_noise(checkpoint, *computed)
    assert set(noise.cases) == {"one", "two"}
    assert 0 < noise.centred_rms_mean <= noise.centred_rms_worst <= noise.max_abs < 1e-5


@pytest.mark.parametrize("wrong", [0.1, float("nan"), float("inf")])
def test_logits_that_differ_from_the_oracle_by_more_than_rounding_make_no_golden(
    checkpoint: Checkpoint, computed: tuple[list[Case], dict[str, Any]], wrong: float
) -> None:
    cases, logits = computed
    logits["two"][2, 5] += wrong
    with pytest.raises(GoldenError, match="nothing was written"):
        measure_noise(checkpoint, cases, logits)


@pytest.mark.parametrize("streamed", [None, True])
def test_a_tensor_of_another_shape_than_the_configuration_says_is_named(
    checkpoint: Checkpoint, suite: PromptSuite, tmp_path: Path, streamed: bool | None
) -> None:
    config = {**checkpoint.config, "intermediate_size": checkpoint.config["intermediate_size"] + 8}
    other = msgspec.structs.replace(checkpoint, config=config)
    how: Any = {"progress": ignore, "streaming": Streaming(streamed=streamed)}
    with pytest.raises(CheckpointError, match=r"model.layers.0.mlp.gate_up_proj.weight is \[.*config.json makes it"):
        recording.record_golden(other, suite, tmp_path / "out", _Letters(), **how)  # type: ignore[arg-type]


def test_logits_that_are_no_numbers_are_found_at_once(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = _Letters.call

    def broken(self: _Letters, stage: object, operation: str, **arguments: Any) -> Any:
        found = honest(self, stage, operation, **arguments)
        if isinstance(found, np.ndarray):
            found[0, 0] = np.inf
        return found

    monkeypatch.setattr(_Letters, "call", broken)
    with pytest.raises(GoldenError, match="'p': FP32 PyTorch gives NaN or Inf at position 0"):
        _record_given(checkpoint, "cd", "ef")


# rendering


def _render(checkpoint: Checkpoint, tokens: list[int], **fields: Any) -> list[int]:
    prompt = Prompt(**{"id": "p", "about": "", "new_tokens": 4, "text": "x", **fields})
    return render(checkpoint, prompt, lambda **_: list(tokens))


def test_a_prompt_without_length_keeps_its_tokens(checkpoint: Checkpoint) -> None:
    assert _render(checkpoint, [5, 6, 7]) == [5, 6, 7]


@pytest.mark.parametrize(("offset", "expected"), [(-1, 7), (0, 8), (1, 9)])
def test_a_prompt_is_repeated_and_cut_to_its_length(
    make_folder: Callable[..., Path], offset: int, expected: int
) -> None:
    checkpoint = open_checkpoint(make_folder(sliding_window=8))
    tokens = _render(checkpoint, [5, 6, 7], length=Length(windows=1, offset=offset))
    assert tokens == [5, 6, 7, 5, 6, 7, 5, 6, 7][:expected]


def test_a_prompt_of_a_length_leaves_room_for_its_new_tokens(checkpoint: Checkpoint) -> None:
    tokens = _render(checkpoint, [5, 6, 7], length=Length(windows=2, offset=0), new_tokens=10)
    assert len(tokens) == checkpoint.max_tokens - 10


def test_a_prompt_past_the_context_is_refused(checkpoint: Checkpoint) -> None:
    assert len(_render(checkpoint, [5] * 60)) == 60
    with pytest.raises(PromptError, match="61 tokens"):
        _render(checkpoint, [5] * 61)


def test_a_prompt_of_no_tokens_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PromptError, match="no tokens"):
        _render(checkpoint, [])


def test_a_length_that_comes_to_nothing_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PromptError):
        _render(checkpoint, [5, 6, 7], length=Length(windows=1, offset=-checkpoint.window))


def test_new_tokens_that_fill_the_whole_context_are_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PromptError):
        _render(checkpoint, [5], length=Length(windows=1, offset=0), new_tokens=checkpoint.max_tokens)


def test_the_manifest_given_is_left_as_it_was(made: Any, tmp_path: Path) -> None:
    before = msgspec.json.encode(made.manifest)
    write_golden(tmp_path / "tiny", *made)
    assert msgspec.json.encode(made.manifest) == before


class _Letters:
    """A worker whose tokenizer knows letters and the pair `ab`; logits are random."""

    def call(self, _stage: object, operation: str, **arguments: Any) -> Any:
        assert operation == "invoke", "a given continuation is not generated"
        asked = arguments["arguments"]
        if arguments["method"] == "render":
            text = (asked["text"] or "") + asked.get("continuation", "")
            return [{"ab": 0}.get(piece, ord(piece[0]) - 96) for piece in re.findall("ab|.", text)]
        return np.random.default_rng(0).normal(size=(len(asked["tokens"]), 32)).astype(np.float32)


def _record_given(checkpoint: Checkpoint, text: str, continuation: str) -> Case:
    prompt = Prompt(id="p", about="", text=text, continuation=continuation)
    return recording._record_case(checkpoint, prompt, _Letters())[0]  # type: ignore[arg-type]


def test_a_given_continuation_is_kept_as_it_is(checkpoint: Checkpoint) -> None:
    case = _record_given(checkpoint, "cd", "ef")
    assert (case.tokens, case.continuation) == ((3, 4), (5, 6))
    assert (case.given, case.new_tokens, len(case.margins)) == (True, 2, 2)


def test_a_token_across_the_border_belongs_to_the_continuation(checkpoint: Checkpoint) -> None:
    case = _record_given(checkpoint, "ca", "bd")
    assert (case.tokens, case.continuation) == ((3,), (0, 4))


def test_a_prompt_that_the_border_swallows_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(PromptError, match="no token of its own"):
        _record_given(checkpoint, "a", "b")


def test_the_tokens_of_a_given_continuation_need_not_be_the_best(made: Any, checkpoint: Checkpoint) -> None:
    cases = [msgspec.structs.replace(case, continuation=(0,) * len(case.continuation)) for case in made.manifest.cases]
    choosing = {case.id: made.logits[case.id][len(case.tokens) - 1 : -1] for case in cases}
    with pytest.raises(GoldenError, match="below the best"):
        check_choices(checkpoint, cases, lambda case: choosing[case.id], made.manifest.noise)
    given = [msgspec.structs.replace(case, given=True) for case in cases]
    check_choices(checkpoint, given, lambda case: choosing[case.id], made.manifest.noise)
