"""Makers of small checkpoints, prompt suites, goldens and records, none of which needs a runtime."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.backend import SessionInfo, load_backend
from harness.checkpoint import Checkpoint, Fingerprint, open_checkpoint
from harness.devices import Machine, find_interpreter
from harness.golden import SCHEMA, Case, Manifest, Noise
from harness.golden_writing import write_golden
from harness.prompts import PromptSuite, read_suite
from harness.record import ArtifactRecord, CaseRecord, CheckpointRecord, RunRecord, SessionRecord
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision
from harness.worker import Worker

settings.register_profile("unit", deadline=None)  # a busy machine is no defect
settings.load_profile("unit")

TREE = Path(__file__).resolve().parents[2]

PLAIN: dict[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "vocab_size": 24,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 64,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
    "pad_token_id": 0,
}


def random_weights(config: dict[str, Any]) -> dict[str, NDArray[np.float32]]:
    """Tensors of a Phi-3 of this configuration, large enough for every part of the model to matter."""
    generator = np.random.default_rng(7)
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    size = hidden // config["num_attention_heads"]
    qkv = (config["num_attention_heads"] + 2 * config["num_key_value_heads"]) * size

    def draw(*shape: int) -> NDArray[np.float32]:
        return generator.normal(scale=0.3, size=shape).astype(np.float32)

    tensors = {"model.embed_tokens.weight": draw(vocabulary, hidden), "model.norm.weight": 1 + draw(hidden)}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        tensors[f"{prefix}input_layernorm.weight"] = 1 + draw(hidden)
        tensors[f"{prefix}post_attention_layernorm.weight"] = 1 + draw(hidden)
        tensors[f"{prefix}self_attn.qkv_proj.weight"] = draw(qkv, hidden)
        tensors[f"{prefix}self_attn.o_proj.weight"] = draw(hidden, hidden)
        tensors[f"{prefix}mlp.gate_up_proj.weight"] = draw(2 * inner, hidden)
        tensors[f"{prefix}mlp.down_proj.weight"] = draw(hidden, inner)
    if not config["tie_word_embeddings"]:
        tensors["lm_head.weight"] = draw(vocabulary, hidden)
    return tensors


@pytest.fixture(scope="session")
def tree() -> Path:
    """The root of the source tree."""
    return TREE


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Write a Phi-3 folder of random weights; keywords change its configuration."""

    def make(name: str = "phi-3-random", **changes: Any) -> Path:
        config = {**PLAIN, **changes}
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (folder / "tokenizer.json").write_text('{\n"version": "1.0"\n}\n', encoding="utf-8", newline="\n")
        save_file(random_weights(config), folder / "model.safetensors")
        return folder

    return make


@pytest.fixture
def checkpoint(make_folder: Callable[..., Path]) -> Checkpoint:
    """A small checkpoint of random weights."""
    return open_checkpoint(make_folder())


@pytest.fixture
def suite(tmp_path: Path) -> PromptSuite:
    """A suite of two prompts."""
    path = tmp_path / "tiny.jsonl"
    lines = [
        '{"id": "one", "about": "", "new_tokens": 2, "text": "a"}',
        '{"id": "two", "about": "", "new_tokens": 1, "text": "b"}',
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    return read_suite(path)


@pytest.fixture(scope="session")
def machine() -> Machine:
    """A machine that is nobody's."""
    return Machine("Linux", "6.1", "x86_64", "a processor", 4, 8 << 30, "3.11.7")


class Made(NamedTuple):
    """What a synthetic golden is made of."""

    manifest: Manifest
    logits: dict[str, NDArray[np.float32]]
    hidden: dict[str, NDArray[np.float32]]


@pytest.fixture
def made(checkpoint: Checkpoint, suite: PromptSuite, machine: Machine) -> Made:
    """Manifest and arrays of a golden of `checkpoint` and `suite`; nothing computed them."""
    cases = (
        Case("one", tokens=(1, 5, 6), continuation=(7, 2), new_tokens=2, ended=True, margins=(0.5, 0.25)),
        Case("two", tokens=(1, 8), continuation=(9,), new_tokens=1, ended=False, margins=(1.0,)),
    )
    generator = np.random.default_rng(11)
    logits = {
        case.id: generator.normal(size=(len(case.sequence), checkpoint.vocabulary)).astype(np.float32) for case in cases
    }
    hidden = {"two": generator.normal(size=(3, 3, 16)).astype(np.float32)}
    manifest = Manifest(
        schema=SCHEMA,
        checkpoint=checkpoint.name,
        fingerprint=checkpoint.fingerprint(),
        suite=suite.name,
        suite_sha256=suite.sha256,
        vocabulary=checkpoint.vocabulary,
        window=checkpoint.window,
        end_tokens=(2,),
        cases=cases,
        noise=Noise(("one", "two"), 1e-7, 2e-7, 1e-6),
        files={},
        versions={"torch": "2.14.1"},
        load_options={},
        machine=machine,
        recorded="2026-11-22T12:00:00+00:00",
    )
    return Made(manifest, logits, hidden)


@pytest.fixture
def golden_root(made: Made, suite: PromptSuite, tmp_path: Path) -> Path:
    """A root that holds the synthetic golden of `suite`."""
    root = tmp_path / "goldens"
    write_golden(root / suite.name, *made)
    return root


@pytest.fixture(scope="session")
def make_case() -> Callable[..., CaseRecord]:
    """A case that passed, with what keywords change."""

    def make(**changes: Any) -> CaseRecord:
        numbers = {"positions": 10.0, "kl_mean": 2e-4, "kl_worst": 3e-3, "top1": 1.0}
        fields: dict[str, Any] = {
            "id": "conformance/test_logits.py::test_logits[openvino:cpu:int4-greeting]",
            "test": "test_logits",
            "target": "openvino:cpu:int4",
            "case": "test_logits[greeting]",
            "outcome": "PASS",
            "stage": None,
            "numbers": numbers,
            "limits": {},
            "message": "",
            "waiver": None,
            "seconds": 0.5,
        }
        return CaseRecord(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_session() -> Callable[..., SessionRecord]:
    """A session on OpenVINO's CPU, with what keywords change."""

    def make(arithmetic: Precision | None = Precision.FP32, **changes: Any) -> SessionRecord:
        fields: dict[str, Any] = {
            "target": "openvino:cpu:int4",
            "kind": DeviceKind.CPU,
            "compute_class": Precision.INT4,
            "info": SessionInfo(24, arithmetic, {"INFERENCE_PRECISION_HINT": "f32"}, {"openvino": "2026.4.1"}),
            "artifact": ArtifactRecord("exported", "int4-sym", "0" * 64, 1000, {}, []),
            "evidence": Evidence(EvidenceLevel.MEASURED, (DeviceKind.CPU,), ("CPU",), "EXECUTION_DEVICES"),
        }
        return SessionRecord(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_record(
    machine: Machine, make_case: Callable[..., CaseRecord], make_session: Callable[..., SessionRecord]
) -> Callable[..., RunRecord]:
    """The record of a run of one case and one session, with what keywords change."""

    def make(**changes: Any) -> RunRecord:
        fields: dict[str, Any] = {
            "schema": 2,
            "harness": "0.1.0",
            "started": "2026-11-22T12:00:00+00:00",
            "finished": "2026-11-22T12:01:00+00:00",
            "complete": True,
            "exit_status": 0,
            "command": ["pytest", "-m", "cpu"],
            "machine": machine,
            "checkpoint": CheckpointRecord("phi-3-random", Fingerprint("a", "b", "c")),
            "suites": {"tiny": "d" * 64},
            "policy_sha256": "e" * 64,
            "waivers_sha256": "f" * 64,
            "sessions": [make_session()],
            "cases": [make_case()],
        }
        return RunRecord(**{**fields, **changes})

    return make


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker, not yet started, of the interpreter that has PyTorch."""
    interpreter = find_interpreter(load_backend("pytorch"), {}, TREE)
    made = Worker("torch", tmp_path_factory.mktemp("scratch"), interpreter=interpreter)
    yield made
    made.stop()
