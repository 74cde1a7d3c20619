"""A tiny random checkpoint with its golden, made in milliseconds and without a runtime."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import save_file

from harness import __version__, metrics, phi3_float64
from harness.checkpoint import Checkpoint
from harness.devices import this_machine
from harness.golden import Case, Manifest, Noise
from harness.golden_writing import write_golden
from harness.prompts import PromptSuite
from harness.record import CaseRecord, RunRecord

PLANTED = Path(__file__).parent / "planted"
VOCABULARY, HIDDEN, LAYERS, HEADS, KV_HEADS, INTER = 64, 32, 2, 4, 2, 48
END = 63


class Tiny(NamedTuple):
    """Folders of a tiny checkpoint, a prompt suite and the golden of both."""

    checkpoint: Path
    prompts: Path
    golden: Path

    @property
    def options(self) -> list[str]:
        """The pytest options that judge it."""
        return [f"--checkpoint={self.checkpoint}", f"--prompts={self.prompts}", f"--golden={self.golden}"]


class Result(NamedTuple):
    """How a run ended: its exit status, its text and its record, None where none was written."""

    status: int
    text: str
    record: RunRecord | None

    @property
    def cases(self) -> list[CaseRecord]:
        """The cases of the record."""
        assert self.record is not None, self.text
        return self.record.cases

    def outcomes(self, pattern: str = "") -> Counter[str]:
        """How often each outcome occurred among the cases whose id contains a text."""
        return Counter(f"{c.outcome}({c.stage})" if c.stage else c.outcome for c in self.cases if pattern in c.id)


def write_checkpoint(folder: Path) -> None:
    """Write a random Phi-3 in FP32, seeded."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(1)

    def weights(*shape: int) -> np.ndarray:
        return rng.normal(0, 0.3, shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": weights(VOCABULARY, HIDDEN), "lm_head.weight": weights(VOCABULARY, HIDDEN)}
    tensors["model.norm.weight"] = np.ones(HIDDEN, np.float32)
    size = HIDDEN // HEADS
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        tensors[f"{prefix}post_attention_layernorm.weight"] = np.ones(HIDDEN, np.float32)
        tensors[f"{prefix}self_attn.qkv_proj.weight"] = weights(HIDDEN + 2 * KV_HEADS * size, HIDDEN)
        tensors[f"{prefix}self_attn.o_proj.weight"] = weights(HIDDEN, HIDDEN)
        tensors[f"{prefix}mlp.gate_up_proj.weight"] = weights(2 * INTER, HIDDEN)
        tensors[f"{prefix}mlp.down_proj.weight"] = weights(HIDDEN, INTER)
    save_file(tensors, folder / "model.safetensors")
    config = {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 16,
        "tie_word_embeddings": False,
        "eos_token_id": END,
        "pad_token_id": END,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")


def golden_of(checkpoint: Checkpoint, suite: PromptSuite, out: Path) -> None:
    """The golden by the float64 oracle: the letters of a prompt are its tokens."""
    cases, logits = [], {}
    for prompt in suite.prompts:
        tokens = [ord(letter) - ord("a") for letter in prompt.text or ""]
        continuation = [ord(letter) - ord("a") for letter in prompt.continuation or ""]
        while len(continuation) < prompt.new_tokens and END not in continuation:
            continuation.append(int(phi3_float64.forward(checkpoint, [tokens + continuation])[0][-1].argmax()))
        rows = phi3_float64.forward(checkpoint, [tokens + continuation])[0].astype(np.float32)
        start = len(tokens) - 1
        margins = metrics.margins(rows[start : start + len(continuation)])
        logits[prompt.id] = rows
        cases.append(
            Case(
                id=prompt.id,
                tokens=tuple(tokens),
                continuation=tuple(continuation),
                new_tokens=prompt.new_tokens or len(continuation),
                ended=END in continuation,
                margins=tuple(map(float, margins)),
                given=prompt.continuation is not None,
            )
        )
    manifest = Manifest(
        schema=1,
        checkpoint=checkpoint.name,
        fingerprint=checkpoint.fingerprint(),
        suite=suite.name,
        suite_sha256=suite.sha256,
        vocabulary=VOCABULARY,
        window=checkpoint.window,
        end_tokens=(END,),
        cases=tuple(cases),
        noise=Noise(tuple(case.id for case in cases), 1e-7, 1e-6, 1e-6),
        files={},
        versions={"harness": __version__},
        load_options={},
        machine=this_machine(),
        recorded="2026-01-01T00:00:00+00:00",
    )
    write_golden(out, manifest, logits, {})


def ignore(*_: object) -> None:
    """A progress that nobody looks at."""
