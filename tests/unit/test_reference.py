"""The artifact reference: equal to the float64 oracle and to transformers, and its emulations do what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import family, phi3_float64
from harness.arithmetic import Arithmetic, CachePrecision, Weights, caches_up_to
from harness.backend import load_backend
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.devices import find_interpreter
from harness.errors import Stage
from harness.golden import TREE
from harness.options import DEFAULT_CHECKPOINT
from harness.target import Precision
from harness.worker import Worker

TOKENS = [5, 80, 300, 41, 7, 1200, 9, 33, 2, 640, 18, 77]
PREFILL = 8


@pytest.fixture(scope="module")
def bundled() -> Checkpoint:
    return open_checkpoint(DEFAULT_CHECKPOINT)


@pytest.fixture(scope="module")
def worker(bundled: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    interpreter = find_interpreter(load_backend("pytorch"), {}, TREE)
    started = Worker("reference", tmp_path_factory.mktemp("scratch"), interpreter=interpreter)
    started.start()
    opening = {"backend": "pytorch", "artifact": str(bundled.path), "config": bundled.config}
    assert started.call(Stage.LOAD, "open_reference", **opening) == ""
    yield started
    started.stop()


def ask(worker: Worker, what: str, arithmetic: Arithmetic, tokens: list[int] = TOKENS, prefill: int = PREFILL) -> Any:
    return worker.call(Stage.RUN, what, tokens=tokens, prefill=prefill, arithmetic=arithmetic)


def test_in_plain_fp32_it_is_the_float64_oracle_to_rounding(worker: Worker, bundled: Checkpoint) -> None:
    exact = phi3_float64.forward(bundled, [TOKENS])[0]
    assert np.abs(ask(worker, "reference_logits", Arithmetic()) - exact).max() < 5e-5


def test_past_the_window_too(worker: Worker, bundled: Checkpoint) -> None:
    tokens = (TOKENS * 25)[: bundled.window + 20]
    exact = phi3_float64.forward(bundled, [tokens])[0]
    found = ask(worker, "reference_logits", Arithmetic(), tokens, len(tokens) - 9)
    assert np.abs(found - exact).max() < 1e-4


@pytest.mark.parametrize("member", family.MEMBERS.values())
def test_across_longropes_switch_keys_keep_the_factors_they_were_rotated_with(
    worker: Worker, bundled: Checkpoint, member: str
) -> None:
    checkpoint = open_checkpoint(TREE / "golden" / member / "checkpoint")
    opening = {"backend": "pytorch", "artifact": str(checkpoint.path), "config": checkpoint.config}
    tokens = [token % 400 for token in TOKENS * 6]
    try:
        assert worker.call(Stage.LOAD, "open_reference", **opening) == ""
        for prefill in (60, 64, 65, len(tokens)):
            exact = phi3_float64.forward(checkpoint, [tokens], [prefill])[0]
            assert np.abs(ask(worker, "reference_logits", Arithmetic(), tokens, prefill) - exact).max() < 1e-4
    finally:
        restored = {"backend": "pytorch", "artifact": str(bundled.path), "config": bundled.config}
        worker.call(Stage.LOAD, "open_reference", **restored)


@pytest.mark.parametrize("cache", [CachePrecision.U8, CachePrecision.F16], ids=lambda cache: cache.value)
def test_a_cache_in_fewer_bits_changes_decoding_and_no_prefill(worker: Worker, cache: CachePrecision) -> None:
    plain = ask(worker, "reference_logits", Arithmetic())
    differs = np.abs(plain - ask(worker, "reference_logits", Arithmetic(cache=cache))).max(axis=1) > 1e-5
    assert not differs[:PREFILL].any()
    assert differs[PREFILL:].all()


def test_weights_are_rounded_to_what_is_asked(worker: Worker) -> None:
    plain = ask(worker, "reference_logits", Arithmetic())
    # The checkpoint is BF16 already; of FP16's range it leaves only what is subnormal there.
    assert np.array_equal(plain, ask(worker, "reference_logits", Arithmetic(weights=Weights.BF16)))
    rounded = np.abs(plain - ask(worker, "reference_logits", Arithmetic(weights=Weights.F16))).max()
    assert 0 < rounded < 0.05


def test_yardsticks_grow_with_coarser_arithmetic(worker: Worker) -> None:
    means = []
    for operators in (Precision.FP32, Precision.FP16, Precision.BF16):
        found = ask(worker, "yardsticks", Arithmetic(operators))
        assert len(found) >= 3
        assert all(rows.shape == (len(TOKENS),) and (rows > 0).any() for rows in found.values())
        means.append(max(float(rows.mean()) for rows in found.values()))
    assert means[0] < 1e-5
    assert means[0] * 20 < means[1] < means[2]


def test_an_artifact_that_cannot_be_read_is_a_reason_and_no_crash(worker: Worker, tmp_path: Path) -> None:
    (tmp_path / "genai_config.json").write_text(json.dumps({"model": {}}), encoding="utf-8")
    config = open_checkpoint(DEFAULT_CHECKPOINT).config
    reason = worker.call(Stage.LOAD, "open_reference", backend="ort-genai", artifact=str(tmp_path), config=config)
    assert reason
    opening = {"backend": "pytorch", "artifact": str(DEFAULT_CHECKPOINT), "config": config}
    assert worker.call(Stage.LOAD, "open_reference", **opening) == ""  # for the tests that follow


def test_the_compute_class_is_named_by_operators_and_activations() -> None:
    assert Arithmetic().compute_class == "fp32"
    assert Arithmetic(Precision.FP32, 32, CachePrecision.U8).compute_class == "fp32+a8"
    assert Arithmetic(Precision.BF16).systematic == Arithmetic()
    assert str(Arithmetic(Precision.BF16, 32, CachePrecision.U8, Weights.BF16)) == (
        "bf16 operators, weights in bf16, int8 activations by 32, u8 cache"
    )


def test_a_cache_is_never_taken_to_be_coarser_than_stated() -> None:
    assert caches_up_to(CachePrecision.F16) == (CachePrecision.F32, CachePrecision.F16)
    assert CachePrecision.U8 not in caches_up_to(CachePrecision.BF16)
