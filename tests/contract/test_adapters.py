"""What every adapter must do, whatever the runtime below it: one suite over all of them, in workers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from adapters import SINGULAR, Adapter, opened
from harness import metrics, phi3_float64
from harness.backend import DeviceReport, teacher_force
from harness.checkpoint import Checkpoint
from harness.compare import Outcome, Rows, Verdict, judge_logits
from harness.errors import Stage, StageError, WorkerRaised
from harness.golden import TREE
from harness.policy import read_policy
from harness.stopwatch import Times
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision

PROMPT = [5, 80, 300, 41, 7, 1200, 9, 33, 2, 640, 18, 77]


@pytest.fixture(scope="module")
def npuw(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    """NPUW with its parts on the CPU, compiled anew: nothing comes from the user's cache of compiled models."""
    with (
        opened("openvino:npuw-cpu:fp16", checkpoint, tmp_path_factory.mktemp("npuw")) as adapter,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path_factory.mktemp("cache")))
        adapter.open()
        yield adapter


def assert_same_to_rounding(one: Any, other: Any) -> None:
    assert one.shape == other.shape
    # Caches and products in BF16 or with 8-bit activations move logits by a few per cent of their spread.
    assert np.abs(one - other).max() < 0.2 * one.std()


def judged(checkpoint: Checkpoint, logits: Any, tokens: list[int], compute_class: Precision) -> Verdict:
    """Logits of a sequence held against the float64 oracle, by the limits of a class of the project's policy."""
    reference = phi3_float64.forward(checkpoint, [tokens])[0]
    limits = read_policy(TREE / "conformance" / "policy.toml").limits_of(compute_class)
    rows = Rows(metrics.compare_rows(reference[-len(logits) :], logits), first=len(tokens) - len(logits))
    return judge_logits(rows, limits.logits, len(PROMPT))


def test_the_device_is_found(adapter: Adapter) -> None:
    found = adapter.discover()
    assert isinstance(found, DeviceReport), str(found)
    assert found.name


def test_the_session_says_what_it_is(adapter: Adapter, checkpoint: Checkpoint) -> None:
    assert adapter.info.vocabulary == checkpoint.vocabulary
    assert adapter.info.versions
    assert adapter.info.load_options == {}


def test_evidence_names_the_processor(adapter: Adapter) -> None:
    found = msgspec.convert(adapter.call("evidence"), Evidence)
    assert found.kinds == (DeviceKind.CPU,)
    assert found.level is not EvidenceLevel.NONE
    assert found.source


def test_logits_have_a_row_for_every_token_or_for_the_last_of_the_prompt_as_declared(
    adapter: Adapter, checkpoint: Checkpoint
) -> None:
    logits = adapter.teacher_force(PROMPT, [11, 12, 13])
    of_prompt = len(PROMPT) if adapter.info.capabilities.whole_prompt_logits else 1
    assert logits.shape == (of_prompt + 3, checkpoint.vocabulary)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_single_products_are_those_of_a_permitted_arithmetic_where_they_are_given(
    adapter: Adapter, checkpoint: Checkpoint
) -> None:
    permitted = adapter.info.permitted
    products = adapter.call("products")
    if not products:
        assert adapter.target.backend != "openvino" or adapter.target.base_device != "cpu"
        return
    opening = {"backend": adapter.target.backend, "artifact": str(adapter.artifact), "config": checkpoint.config}
    assert adapter.worker.call(Stage.LOAD, "open_reference", **opening) == ""
    found = adapter.call("product_distances", products=products, permitted=list(permitted))
    assert set(found) == {str(arithmetic) for arithmetic in permitted}
    assert min(found.values()) < 3e-3  # BF16 rounds results to 1 part in 256; any other arithmetic is twice as far off
    if adapter.target.precision is Precision.INT4:
        assert max(found.values()) > 2 * min(found.values())


def test_a_session_forgets_between_prompts(adapter: Adapter) -> None:
    first = adapter.teacher_force(PROMPT, [11])
    adapter.teacher_force(list(reversed(PROMPT)), [3, 4])
    again = adapter.teacher_force(PROMPT, [11])
    np.testing.assert_allclose(first, again, rtol=0, atol=1e-4 * np.abs(first).max())


def test_feeding_one_token_at_a_time_gives_the_same_logits_to_rounding(adapter: Adapter) -> None:
    whole = adapter.teacher_force(PROMPT, [11])
    stepped = adapter.teacher_force(PROMPT[:2], [*PROMPT[2:], 11])
    assert stepped.shape[0] >= len(PROMPT)
    assert_same_to_rounding(whole, stepped[-len(whole) :])


def test_a_prompt_of_one_token_is_computed_or_refused_beforehand(
    adapter: Adapter, checkpoint: Checkpoint, request: pytest.FixtureRequest
) -> None:
    if adapter.target.device == "npuw-cpu":  # see npuw-one-token-* in conformance/waivers.toml
        request.applymarker(pytest.mark.xfail(strict=True, reason="NPUW takes one token for a step of decoding"))
    if adapter.info.capabilities.refuses(1, len(PROMPT)):
        return
    reference = phi3_float64.forward(checkpoint, [PROMPT])[0]
    logits = adapter.teacher_force(PROMPT[:1], PROMPT[1:])
    assert logits.shape == reference.shape
    error = metrics.compare_rows(reference, logits).centred_relative
    assert error.mean() < 0.2  # quantisation leaves at most 0.1; a token that is lost leaves 0.3


def test_generation_obeys_its_limit_and_is_repeatable(adapter: Adapter) -> None:
    tokens = adapter.generate(PROMPT, 6, (2037,))
    assert 1 <= len(tokens) <= 6
    assert tokens == adapter.generate(PROMPT, 6, (2037,))


def test_generation_chooses_what_the_logits_prefer(adapter: Adapter) -> None:
    tokens = adapter.generate(PROMPT, 6, (2037,))
    logits = adapter.teacher_force(PROMPT, tokens)
    chosen = logits[-len(tokens) - 1 : -1]
    short = chosen.max(axis=1) - chosen[np.arange(len(tokens)), tokens]
    assert short.max() <= 0.05 * logits.std()


def test_a_session_can_be_timed_and_answers_afterwards_as_before(adapter: Adapter) -> None:
    before = adapter.teacher_force(PROMPT, [11])
    found = msgspec.convert(adapter.call("measure", prompt=PROMPT, new_tokens=5, seconds=0.2), Times)
    assert 3 <= len(found.first_token_ms) == len(found.token_ms)
    assert min(*found.first_token_ms, *found.token_ms) > 0
    np.testing.assert_allclose(before, adapter.teacher_force(PROMPT, [11]), rtol=0, atol=1e-4 * np.abs(before).max())


def test_loading_again_works_or_is_refused_and_never_ends_the_process(adapter: Adapter) -> None:
    first = adapter.info
    try:
        again = adapter.load_again()
    except WorkerRaised:
        assert adapter.backend.name == SINGULAR
        assert adapter.worker.running
    else:
        assert (again.arithmetic, again.capabilities) == (first.arithmetic, first.capabilities)
        assert np.isfinite(adapter.teacher_force(PROMPT, [11])).all()


def test_an_unknown_load_option_is_refused_with_the_known_ones(opened_adapter: Adapter) -> None:
    with pytest.raises(StageError, match="no load option 'colour'"):
        opened_adapter.load(options={"colour": "blue"})


def test_a_folder_that_is_no_artifact_is_refused(opened_adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(WorkerRaised):
        opened_adapter.load(artifact=str(tmp_path))


# NPUW, with its parts on the CPU.


def test_npuw_with_whole_prompt_gives_a_row_for_every_token_in_its_place(npuw: Adapter) -> None:
    info = npuw.load(options={"whole-prompt": "yes"})
    assert info.capabilities.whole_prompt_logits
    assert info.load_options == {"whole-prompt": "yes"}
    whole = npuw.teacher_force(PROMPT, [11])
    assert whole.shape[0] == len(PROMPT) + 1
    assert_same_to_rounding(whole, npuw.teacher_force(PROMPT[:2], [*PROMPT[2:], 11]))


def test_npuw_takes_the_prompt_that_it_was_compiled_for_and_refuses_a_longer_one(npuw: Adapter) -> None:
    able = npuw.load(options={"NPUW_LLM_MAX_PROMPT_LEN": "16", "NPUW_LLM_MIN_RESPONSE_LEN": "8"}).capabilities
    assert able.max_prompt == 16
    assert able.max_tokens is not None
    prompt = (PROMPT * 2)[:16]
    assert able.refuses(len(prompt), 1) == ""
    assert np.isfinite(npuw.teacher_force(prompt, [1])).all()
    assert "17 tokens" in able.refuses(17, 1)
    assert f"{able.max_tokens + 1} tokens" in able.refuses(16, able.max_tokens - 15)
    assert "NPUW_LLM_MAX_PROMPT_LEN" in able.longer


def test_npuw_computes_in_the_arithmetic_that_it_reports_compiled_anew_and_again(
    npuw: Adapter, checkpoint: Checkpoint
) -> None:
    reference = phi3_float64.forward(checkpoint, [PROMPT])[0][-1]
    for time in ("anew", "again"):
        assert npuw.load(options={"fp32": "yes"}).arithmetic is Precision.FP32
        error = np.abs(npuw.teacher_force(PROMPT, [])[-1] - reference).max()
        assert error < 0.005 * reference.std(), time  # BF16 is off by 0.01 and more


# DirectML, which is on Windows only; its artifacts are made anywhere.


def test_an_artifact_for_directml_asks_for_it_and_holds_the_model_in_int4(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    with opened("ort-genai:dml:int4", checkpoint, tmp_path) as adapter:
        settings = json.loads((adapter.artifact / "genai_config.json").read_text(encoding="utf-8"))
        (options,) = settings["model"]["decoder"]["session_options"]["provider_options"]
        assert list(options) == ["dml"]
        assert settings["model"]["vocab_size"] == checkpoint.vocabulary
        assert (adapter.artifact / settings["model"]["decoder"]["filename"]).is_file()
        weights = sum(file.stat().st_size for file in adapter.artifact.glob("*.onnx.data"))
        assert 0 < weights < 0.5 * (checkpoint.path / "model.safetensors").stat().st_size
        # What DirectML would compute is in the graph, which the processor can compute too.
        adapter.load(target="ort-genai:cpu:int4")
        verdict = judged(checkpoint, adapter.teacher_force(PROMPT, [11]), [*PROMPT, 11], Precision.INT4)
        assert verdict.outcome is Outcome.PASS, verdict.message


def test_teacher_forcing_joins_prefill_and_decode_rows() -> None:
    class Counting:
        def __init__(self) -> None:
            self.fed: list[list[int]] = []

        def reset(self) -> None:
            self.fed.clear()

        def append(self, tokens: Any) -> Any:
            self.fed.append([int(t) for t in tokens])
            return np.full((tokens.size, 4), float(len(self.fed)), dtype=np.float32)

    session: Any = Counting()
    rows = teacher_force(session, np.array([1, 2, 3]), np.array([4, 5]))
    assert session.fed == [[1, 2, 3], [4], [5]]
    assert rows[:, 0].tolist() == [1, 1, 1, 2, 3]
