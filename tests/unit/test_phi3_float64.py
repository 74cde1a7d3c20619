"""The float64 oracle against transformers, which is widened to float64 wherever it insists on float32."""

from __future__ import annotations

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from harness import phi3_float64
from harness.backend import load_backend
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.devices import find_interpreter
from harness.errors import CheckpointError
from harness.golden import TREE
from harness.phi3_float64 import Halved
from harness.weights import Statement

MakeFolder = Callable[..., Path]
_FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.4], "long_factor": [1.5, 2.0, 4.0, 8.0]}
_LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "rope_scaling": {"type": "longrope", **_FACTORS},
}
_CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "grouped-query": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "multi-query": {"num_attention_heads": 4, "num_key_value_heads": 1},
    "window": {"sliding_window": 5},
    "partial-rotary": {"partial_rotary_factor": 0.75, "num_attention_heads": 1, "num_key_value_heads": 1},
    "rotary-base": {"rope_theta": 250.0},
    "tied": {"tie_word_embeddings": True},
    "epsilon": {"rms_norm_eps": 0.1},
    "longrope": _LONGROPE,
    "longrope-grouped": {**_LONGROPE, "num_key_value_heads": 1, "sliding_window": 7},
}


def _tokens(length: int) -> list[int]:
    return [int(token) for token in np.random.default_rng(length).integers(0, 24, size=length)]


def _by_transformers(
    folder: Path, tokens: list[int], monkeypatch: pytest.MonkeyPatch, prefill: int | None = None
) -> NDArray[np.float64]:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.AutoConfig.from_pretrained(folder)
    with monkeypatch.context() as patched, torch.inference_mode():
        # norms, softmax and rotary embeddings name float32 outright
        patched.setattr(torch.Tensor, "float", torch.Tensor.double)
        model = transformers.Phi3ForCausalLM.from_pretrained(
            folder, config=config, dtype=torch.float64, attn_implementation="eager"
        )
        patched.setattr(torch, "float", torch.float64)
        patched.setattr(torch, "float32", torch.float64)
        model.model.rotary_emb = type(model.model.rotary_emb)(config)
        if prefill is None:
            logits = model(torch.tensor([tokens]), use_cache=False).logits
        else:
            output = model(torch.tensor([tokens[:prefill]]), use_cache=True)
            rows = [output.logits]
            for token in tokens[prefill:]:
                output = model(torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
                rows.append(output.logits)
            logits = torch.cat(rows, dim=1)
    assert logits.dtype == torch.float64
    found: NDArray[np.float64] = logits[0].numpy()
    return found


@pytest.mark.parametrize("length", [1, 16, 17, 40])
@pytest.mark.parametrize("name", _CONFIGURATIONS)
def test_the_oracle_computes_what_transformers_computes(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, name: str, length: int
) -> None:
    folder = make_folder(**_CONFIGURATIONS[name])
    (exact,) = phi3_float64.forward(open_checkpoint(folder), [_tokens(length)])
    expected = _by_transformers(folder, _tokens(length), monkeypatch)
    assert exact.shape == expected.shape
    assert np.abs(exact - expected).max() < 1e-9


@pytest.mark.parametrize("prefill", [1, 15, 16, 17])
@pytest.mark.parametrize("name", ["plain", "longrope", "longrope-grouped"])
def test_fed_token_by_token_it_is_what_transformers_computes_with_a_cache(
    make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch, name: str, prefill: int
) -> None:
    folder = make_folder(**_CONFIGURATIONS[name])
    (exact,) = phi3_float64.forward(open_checkpoint(folder), [_tokens(24)], [prefill])
    assert np.abs(exact - _by_transformers(folder, _tokens(24), monkeypatch, prefill)).max() < 1e-9


@pytest.mark.parametrize("name", [name for name in _CONFIGURATIONS if name != "plain"])
def test_every_configuration_computes_something_of_its_own(make_folder: MakeFolder, name: str) -> None:
    plain = make_folder("plain")
    other = make_folder("other", **_CONFIGURATIONS[name])
    one, another = (phi3_float64.forward(open_checkpoint(folder), [_tokens(20)])[0] for folder in (plain, other))
    assert np.abs(one - another).max() > 1e-3


def test_longrope_switches_just_past_the_original_context(make_folder: MakeFolder) -> None:
    checkpoint = open_checkpoint(make_folder(**_LONGROPE))
    short, at, past = phi3_float64.forward(checkpoint, [_tokens(40)[:n] for n in (15, 16, 17)])
    assert np.abs(short - at[:15]).max() < 1e-12
    assert np.abs(at - past[:16]).max() > 1e-3


def test_a_text_that_crosses_the_switch_after_its_prompt_keeps_the_keys_of_before(make_folder: MakeFolder) -> None:
    checkpoint = open_checkpoint(make_folder(**_LONGROPE))
    tokens = _tokens(20)
    cached, fresh, before = phi3_float64.forward(checkpoint, [tokens, tokens, tokens[:16]], [10, 20, 16])
    assert np.abs(cached[:16] - before).max() < 1e-12
    assert np.abs(cached[16:] - fresh[16:]).max() > 1e-3


def test_a_prompt_past_the_switch_is_long_from_its_beginning(make_folder: MakeFolder) -> None:
    checkpoint = open_checkpoint(make_folder(**_LONGROPE))
    cached, fresh = phi3_float64.forward(checkpoint, [_tokens(20)] * 2, [17, 20])
    np.testing.assert_array_equal(cached, fresh)


@pytest.mark.parametrize("name", _CONFIGURATIONS)
def test_no_position_sees_a_later_one(make_folder: MakeFolder, name: str) -> None:
    checkpoint = open_checkpoint(make_folder(**_CONFIGURATIONS[name]))
    tokens = _tokens(30)
    changed = [*tokens[:20], *((token + 1) % 24 for token in tokens[20:])]
    one, other = phi3_float64.forward(checkpoint, [tokens, changed])
    assert np.abs(one[:20] - other[:20]).max() < 1e-12
    assert np.abs(one[20] - other[20]).max() > 1e-3


def test_one_layer_sees_the_window_and_nothing_before_it(make_folder: MakeFolder) -> None:
    checkpoint = open_checkpoint(make_folder(num_hidden_layers=1, sliding_window=4))
    tokens = _tokens(12)
    changed = [tokens[0], (tokens[1] + 1) % 24, *tokens[2:]]
    one, other = phi3_float64.forward(checkpoint, [tokens, changed])
    moved = np.abs(one - other).max(axis=1) > 1e-6
    assert moved.tolist() == [False] + [True] * 4 + [False] * 7


def test_sequences_do_not_influence_one_another(checkpoint: Checkpoint) -> None:
    sequences = [_tokens(n) for n in (3, 9, 5)]
    together = phi3_float64.forward(checkpoint, sequences)
    for sequence, found in zip(sequences, together, strict=True):
        np.testing.assert_array_equal(found, phi3_float64.forward(checkpoint, [sequence])[0])


def _stated(config: dict[str, Any], halved: Halved) -> list[Statement]:
    """Rotary frequencies as an artifact states them that holds so much of them in FP16, computed in FP32."""
    lengths = {"rotary_inv_freq": 1, "rotary_inv_freq_long": config["max_position_embeddings"]}
    return [
        Statement(what, phi3_float64.frequencies(config, n, halved)[0].astype(np.float32).astype(np.float64), "a graph")
        for what, n in lengths.items()
        if what == "rotary_inv_freq" or "rope_scaling" in config
    ]


@pytest.mark.parametrize(
    ("name", "halved"),
    [
        ("plain", Halved.NOTHING),
        ("plain", Halved.FREQUENCIES),
        ("longrope", Halved.NOTHING),
        ("longrope", Halved.FACTORS),
        ("longrope", Halved.FACTORS_AND_POWERS),
    ],
)
def test_what_an_artifact_holds_in_half_precision_is_told_by_the_frequencies_that_it_states(
    make_folder: MakeFolder, name: str, halved: Halved
) -> None:
    changes = {**_CONFIGURATIONS[name], "hidden_size": 32}
    if name == "longrope":
        factors = {"short_factor": [1.0] * 8, "long_factor": [1.1, 1.3, 1.7, 2.3, 3.1, 4.7, 6.1, 8.3]}
        changes["rope_scaling"] = {"type": "longrope", **factors}
    config = open_checkpoint(make_folder(**changes)).config
    assert phi3_float64.halved_rotary(_stated(config, halved), config) is halved
    off = [msgspec.structs.replace(one, value=one.value * 1.0005) for one in _stated(config, halved)]
    assert phi3_float64.halved_rotary(off, config) is Halved.NOTHING
    assert phi3_float64.halved_rotary([], config) is Halved.NOTHING


def _replace(folder: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> Checkpoint:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    return open_checkpoint(folder)


@pytest.mark.parametrize(
    "name",
    ["model.embed_tokens.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight", "lm_head.weight"],
)
def test_a_missing_tensor_is_named(make_folder: MakeFolder, name: str) -> None:
    checkpoint = _replace(make_folder(), lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match=name):
        phi3_float64.forward(checkpoint, [[1, 2]])


def test_integer_weights_are_refused_by_name(make_folder: MakeFolder) -> None:
    name = "model.norm.weight"
    checkpoint = _replace(make_folder(), lambda tensors: tensors.update({name: np.ones(16, dtype=np.int8)}))
    with pytest.raises(CheckpointError, match=rf"{name} is of dtype I8"):
        phi3_float64.forward(checkpoint, [[1, 2]])


def test_an_unknown_rotary_embedding_is_refused(make_folder: MakeFolder) -> None:
    checkpoint = open_checkpoint(make_folder(rope_scaling={"type": "linear", "factor": 2.0}))
    with pytest.raises(CheckpointError, match="linear"):
        phi3_float64.forward(checkpoint, [[1, 2]])


def test_half_precision_weights_are_widened_exactly(make_folder: MakeFolder) -> None:
    def halve(tensors: dict[str, NDArray[Any]]) -> None:
        tensors.update({name: tensor.astype(np.float16) for name, tensor in tensors.items()})

    def widen(tensors: dict[str, NDArray[Any]]) -> None:
        tensors.update({name: tensor.astype(np.float32) for name, tensor in tensors.items()})

    folder = make_folder()
    (half,) = phi3_float64.forward(_replace(folder, halve), [_tokens(6)])
    (single,) = phi3_float64.forward(_replace(folder, widen), [_tokens(6)])
    np.testing.assert_array_equal(half, single)


def test_bfloat16_weights_are_widened_exactly(make_folder: MakeFolder) -> None:
    torch = pytest.importorskip("torch")
    torch_files = pytest.importorskip("safetensors.torch")
    folder = make_folder()
    path = folder / "model.safetensors"
    rounded = {name: torch.from_numpy(tensor).bfloat16() for name, tensor in load_file(path).items()}
    torch_files.save_file(rounded, path)
    (stored,) = phi3_float64.forward(open_checkpoint(folder), [_tokens(6)])
    save_file({name: tensor.float().numpy() for name, tensor in rounded.items()}, path)
    (widened,) = phi3_float64.forward(open_checkpoint(folder), [_tokens(6)])
    np.testing.assert_array_equal(stored, widened)


def test_a_large_negative_gate_closes_without_a_warning(make_folder: MakeFolder) -> None:
    name = "model.layers.0.mlp.gate_up_proj.weight"
    checkpoint = _replace(make_folder(), lambda tensors: tensors.update({name: tensors[name] * 10_000}))
    (found,) = phi3_float64.forward(checkpoint, [_tokens(4)])
    assert np.isfinite(found).all()


def test_the_comparisons_with_transformers_run_somewhere() -> None:
    """Where this interpreter has no torch, they run in the one that workers use; they are never just skipped."""
    if importlib.util.find_spec("torch") is not None:
        return  # then the tests above ran here
    python = find_interpreter(load_backend("pytorch"), {}, TREE)
    assert python is not None, "no interpreter with torch was found: python -m tox run -e runtime --notest"
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(TREE / "pyproject.toml"),
        __file__,
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=TREE)
    assert found.returncode == 0, found.stdout[-3000:]
    assert "skipped" not in found.stdout
