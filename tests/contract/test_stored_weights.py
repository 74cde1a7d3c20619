"""What adapters read out of real artifacts is near the checkpoint, and is what the runtime computes with."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import ensure_exported
from harness.audit import audit
from harness.backend import Recipe, load_backend
from harness.backends.npu_library import NpuLibraryBackend
from harness.backends.ort_weights import accuracy_levels
from harness.checkpoint import Checkpoint, find_checkpoint
from harness.devices import find_interpreter
from harness.errors import Stage
from harness.golden import TREE
from harness.layout import Layout
from harness.options import DEFAULT_CHECKPOINT
from harness.phi3_float64 import Weights
from harness.target import Target
from harness.weights import ArtifactWeights, Quantised
from harness.worker import Worker

# The model builder's options for every way of storing a weight, and how far that may take a value from the checkpoint,
# in steps between codes. A symmetric code reaches a step less far on one side, as a block's greatest weight may feel.
EXPORTS: dict[str, tuple[tuple[str, ...], float]] = {
    "fp32": (("-p", "fp32", "-e", "cpu"), 0.0),
    "int8": (("-p", "int8", "-e", "cpu"), 1.01),
    "int4": (("-p", "int4", "-e", "cpu"), 1.01),
    "int4-dml": (("-p", "int4", "-e", "dml"), 1.01),
    "block-128": (("-p", "int4", "-e", "cpu", "--extra_options", "block_size=128"), 1.01),
    "asymmetric": (("-p", "int4", "-e", "cpu", "--extra_options", "is_symmetric=false"), 0.51),
    "rtn-last": (("-p", "int4", "-e", "cpu", "--extra_options", "algo_config=rtn_last"), 0.51),
    "k-quant-mixed": (("-p", "int4", "-e", "cpu", "--extra_options", "algo_config=k_quant_mixed"), 1.5),
    "dequantised": (("-p", "int4", "-e", "cpu", "--extra_options", "use_qdq=true", "is_symmetric=false"), 0.51),
    "embedding": (("-p", "int4", "-e", "cpu", "--extra_options", "op_types_to_quantize=MatMul/Gather"), 1.01),
    "gate-up": (("-p", "int4", "-e", "cpu", "--extra_options", "fuse_mlp_gate_up=true", "fuse_qkv=false"), 1.01),
}

# Run by the library's interpreter: keeps a loaded model's weights, and what its layers make of random activations.
LAYERS = """
import sys
import numpy as np, torch
from pathlib import Path
from harness.backends.npu_library import NpuLibraryBackend
from harness.target import Target
session = NpuLibraryBackend().load(Path(sys.argv[1]), Target.parse(sys.argv[2]), options={}, trust_remote_code=False)
session.keep_weights(sys.argv[3])
modules = dict(session._model.named_modules())
found = {}
for name in ("model.layers.0.self_attn.qkv_proj", "model.layers.5.mlp.down_proj", "lm_head"):
    x = torch.randn(512, 768 if "down" in name else 256, generator=torch.Generator().manual_seed(0)).half()
    found[name + ".x"], found[name + ".y"] = x.numpy(), modules[name](x.float()).detach().numpy()
np.savez(sys.argv[4], **found)
"""


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return find_checkpoint(str(DEFAULT_CHECKPOINT))


def steps_off(weights: ArtifactWeights, checkpoint: Checkpoint) -> float:
    """How far any value lies from the checkpoint's, in steps between codes; floats must be FP16's neighbours of it."""
    expected, worst, rows = Weights(checkpoint), 0.0, 0
    for stored in weights.tensors():
        original = expected[stored.name][stored.row : stored.row + stored.rows]
        error = np.abs(stored.content.product() - original)
        if isinstance(stored.content, Quantised):
            step = np.abs(np.repeat(stored.content.scales.astype(np.float64), stored.content.group, axis=1))
            worst = max(worst, float((error / step).max()))
        else:
            assert (error <= 2.0**-11 * np.abs(original) + 2.0**-24).all(), stored.source
        rows += stored.rows
    assert rows == sum(shape[0] for shape in Layout.of(checkpoint.config).shapes().values())
    return worst


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Worker]]:
    """Exports by the model builder, in the user's cache; they take some seconds each when they are not there."""
    backend = load_backend("ort-genai")
    worker = Worker("exporter", tmp_path_factory.mktemp("exporter"), interpreter=find_interpreter(backend, {}, TREE))
    worker.start()
    missing = worker.call(Stage.LOAD, "open", backend=backend.name)["missing"]
    assert missing == [], backend.install
    yield backend, worker
    worker.stop()


@pytest.mark.parametrize(("options", "bound"), EXPORTS.values(), ids=EXPORTS.keys())
def test_an_export_is_read_as_the_checkpoint_to_a_step(
    exporter: tuple[Any, Worker],
    checkpoint: Checkpoint,
    options: tuple[str, ...],
    bound: float,
    request: pytest.FixtureRequest,
) -> None:
    backend, worker = exporter
    name, device = request.node.callspec.id, options[options.index("-e") + 1]
    usual = backend.recipe(Target.parse(f"ort-genai:{device}:{options[1]}"), None)
    recipe = Recipe(f"{name}-{device}", usual.precision, options, usual.exporter)

    def export(out: Path) -> list[str]:
        arguments = {"recipe": recipe, "out": str(out), "trust_remote_code": False}
        command: list[str] = worker.call(Stage.PREPARE, "export", checkpoint=str(checkpoint.path), **arguments)
        return command

    versions = worker.call(Stage.PREPARE, "versions", names=list(recipe.exporter))
    key = checkpoint.fingerprint().key
    artifact = ensure_exported(checkpoint, key, backend.name, recipe, versions, export, announce=print).path
    weights = backend.dequantized_weights(artifact, checkpoint.config)
    assert steps_off(weights, checkpoint) <= bound
    bits = {"fp32": None, "int8": "8", "rtn-last": "4, 8", "k-quant-mixed": "4, 8"}
    assert weights.scheme.get("bits") == bits.get(name, "4")
    assert set(accuracy_levels(artifact).values()) == {4 if bound and device == "cpu" and name != "dequantised" else 0}
    check_statements(weights, checkpoint)
    report = audit(weights, checkpoint)
    # DirectML's export switches the window off, which the audit is right to say.
    assert {found.tensor for found in report.findings} == ({"sliding_window"} if device == "dml" else set())
    method = {"fp32": "not quantised", "k-quant-mixed": "k-quant"}.get(name, "round to nearest")
    assert report.scheme.partition(":")[0] == method


def check_statements(weights: ArtifactWeights, checkpoint: Checkpoint) -> None:
    stated: dict[str, list[Any]] = {}
    for statement in weights.statements():
        stated.setdefault(statement.what, []).append(statement.value)
    layers = checkpoint.config["num_hidden_layers"]
    assert len(stated["rms_norm_eps"]) == 2 * layers + 1
    np.testing.assert_allclose(stated["rms_norm_eps"], checkpoint.config["rms_norm_eps"], rtol=1e-7)
    # The builder states one for the whole model too, but not for DirectML.
    assert len(stated["sliding_window"]) in (layers, layers + 1)
    frequencies = 10000.0 ** (-np.arange(16) / 16)
    expected = np.cos(np.outer(np.arange(1024), frequencies))
    np.testing.assert_allclose(stated["rotary_cos"], [expected], atol=5e-4)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.0), ("int8", 0.6), ("int4", 0.6)])
def test_the_npu_library_computes_with_what_it_kept(
    checkpoint: Checkpoint, tmp_path: Path, precision: str, bound: float
) -> None:
    backend = NpuLibraryBackend()
    python = npu_library_python()
    command = [str(python), "-c", LAYERS, str(checkpoint.path), f"npu-library:cpu:{precision}"]
    kept, layers = tmp_path / "kept", tmp_path / "layers.npz"
    subprocess.run([*command, str(kept), str(layers)], check=True, capture_output=True, cwd=tmp_path, timeout=600)
    weights = backend.dequantized_weights(kept, checkpoint.config)
    assert steps_off(weights, checkpoint) <= bound
    assert weights.scheme.get("bits") == {"fp16": None}.get(precision, precision[3:])
    with np.load(layers) as computed:
        for stored in weights.tensors():
            name = stored.name.removesuffix(".weight")
            if f"{name}.x" in computed:
                expected = computed[f"{name}.x"].astype(np.float64) @ stored.content.product().T
                check_product(computed[f"{name}.y"].astype(np.float64), expected)


def check_product(found: Any, expected: Any) -> None:
    """Noise of BF16 at most, and no gain: a factor that a reader forgets may be as near to 1 as 1.00035."""
    assert np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)) < 4e-3
    assert np.sum(found * expected) / np.sum(expected**2) == pytest.approx(1.0, abs=1e-4)


def npu_library_python() -> Path:
    """The interpreter that has the library; skips where there is none, or where it would take an NPU."""
    found = find_interpreter(load_backend("npu-library"), {}, TREE)
    python = found or Path(sys.executable)
    probe = "from intel_npu_acceleration_library import backend; raise SystemExit(3 if backend.npu_available() else 0)"
    ended = subprocess.run([str(python), "-c", probe], check=False, capture_output=True).returncode
    if ended:
        pytest.skip("the library takes the NPU" if ended == 3 else f"not installed: {NpuLibraryBackend.install}")
    return python
