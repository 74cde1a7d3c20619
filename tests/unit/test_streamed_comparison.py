"""A streamed golden compared with itself perturbed: the figures are those that the perturbation has in closed form."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.backend import load_backend
from harness.checkpoint import open_checkpoint
from harness.compare import Rows, compare_logits
from harness.devices import find_interpreter
from harness.golden import TREE, Golden, verify_files
from harness.metrics import RowErrors
from harness.prompts import read_suite
from harness.recording import Streaming, record_golden
from harness.worker import Worker
from published_shapes import make, write_prompts

# Phi-4-mini with its heads, an eighth of its width and two layers: LongRoPE on three quarters of each head, groups of
# heads, a tied LM head.
SMALLER = {"hidden_size": 384, "num_attention_heads": 3, "num_key_value_heads": 1, "intermediate_size": 256}
SMALLER |= {"vocab_size": 4096, "num_hidden_layers": 2}
Doubles = NDArray[np.float64]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Golden:
    folder = tmp_path_factory.mktemp("streamed")
    make(folder / "checkpoint", "phi-4-mini", changes=SMALLER)
    write_prompts(folder / "few.jsonl", ["The quick brown fox"], 5)
    worker = Worker("streaming", folder / "scratch", interpreter=find_interpreter(load_backend("pytorch"), {}, TREE))
    try:
        manifest = record_golden(
            open_checkpoint(folder / "checkpoint"),
            read_suite(folder / "few.jsonl"),
            folder / "golden",
            worker,
            progress=lambda *_: None,
            streaming=Streaming(memory=1000 << 20),
            form="full",
        )
    finally:
        worker.stop()
    assert manifest.load_options["weights"] == "one layer at a time"
    return verify_files(folder / "golden")


def probabilities(logits: NDArray[np.float32]) -> Doubles:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: Doubles = powers / powers.sum(axis=1, keepdims=True)
    return found


def compared(golden: Golden, device: NDArray[np.float32]) -> RowErrors:
    (case,) = golden.manifest.cases
    found = compare_logits(golden.rows(case.id), device, len(case.tokens), whole_prompt=True)
    assert isinstance(found, Rows)
    return found.errors


def logits_of(golden: Golden) -> NDArray[np.float32]:
    (case,) = golden.manifest.cases
    return np.array(golden.logits(case.id))


@pytest.mark.parametrize("shift", [1e-3, 0.25, -2.0])
def test_one_entry_that_is_shifted(golden: Golden, shift: float) -> None:
    """With p of the entry, KL is log(1 + p (e^d - 1)) - p d, and the centred RMS d sqrt(1/V - 1/V^2)."""
    logits = logits_of(golden)
    entry = int(logits[0].argmax())
    device = logits.copy()
    device[:, entry] += np.float32(shift)
    step = device[:, entry].astype(np.float64) - logits[:, entry]  # as FP32 rounded it
    p = probabilities(logits)[:, entry]
    found, width = compared(golden, device), logits.shape[1]
    np.testing.assert_allclose(found.kl, np.log1p(p * np.expm1(step)) - p * step, rtol=1e-6, atol=1e-15)
    np.testing.assert_allclose(found.centred_rms, np.abs(step) * np.sqrt(1 / width - 1 / width**2), rtol=1e-6)


@pytest.mark.parametrize("size", [1e-3, 0.1])
def test_noise_on_every_entry(golden: Golden, size: float) -> None:
    """KL is the mean, under the golden's distribution, of the difference of log probabilities."""
    logits = logits_of(golden)
    noise = np.random.default_rng(5).standard_normal(logits.shape)
    device = (logits + size * noise).astype(np.float32)
    p, q = probabilities(logits), probabilities(device)
    found = compared(golden, device)
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(axis=1), rtol=1e-5)
    assert found.centred_rms == pytest.approx(size, rel=0.1)
    assert found.centred_relative == pytest.approx(size / np.std(logits.astype(np.float64), axis=1), rel=0.1)


def test_what_all_entries_have_in_common_is_no_difference(golden: Golden) -> None:
    found = compared(golden, logits_of(golden) + np.float32(8.0))
    assert found.kl.max() < 1e-12
    assert found.centred_rms.max() < 1e-6
    assert found.top1_agrees.all()
