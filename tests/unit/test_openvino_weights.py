"""Reading weights and statements out of OpenVINO's IR without OpenVINO, from real exports and spoilt ones."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.audit import audit
from harness.backends.openvino import OpenVinoBackend
from harness.backends.openvino_levels import levels_of
from harness.errors import ArtifactError
from harness.phi3_float64 import Weights
from harness.weights import Plain, Quantised, ReadsWeights
from openvino_artifact import PACKED, Exported

LAYER = "__module.model.layers.1."
QKV, DOWN = "model.layers.1.self_attn.qkv_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(params=["plain", "long"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Exported:
    return Exported(request.param, tmp_path)


@pytest.fixture
def plain(tmp_path: Path) -> Exported:
    return Exported("plain", tmp_path)


@pytest.fixture
def long(tmp_path: Path) -> Exported:
    return Exported("long", tmp_path)


def stated(exported: Exported, what: str, layer: int | None = None) -> list[Any]:
    """The values of a statement, each once."""
    found = [s.value.tolist() for s in exported.read().statements() if s.what == what and s.layer == layer]
    return [value for i, value in enumerate(found) if value not in found[:i]]


def wrong(exported: Exported) -> set[str]:
    """What the audit finds wrong about the statements; it must find nothing else."""
    findings = audit(exported.read(), exported.checkpoint).findings
    assert {finding.what for finding in findings} <= {"statement"}
    return {finding.tensor for finding in findings}


def test_the_backend_reads_weights() -> None:
    assert isinstance(OpenVinoBackend(), ReadsWeights)


def test_a_real_export_is_read_whole_and_is_clean(either: Exported) -> None:
    report = audit(either.read(), either.checkpoint)
    assert report.clean, [finding.sentence for finding in report.findings]
    assert not report.unstated
    assert len(report.tensors) == 15
    assert report.stated["mode"] == ("int4_sym" if either.checkpoint.config["tie_word_embeddings"] else "int4_asym")
    assert report.stated["group_size"] == "32"
    assert report.stated["awq"] == "True"


def test_weights_are_the_checkpoints_to_within_a_step(either: Exported) -> None:
    weights = Weights(either.checkpoint)
    for stored in either.read().tensors():
        name = stored.name if stored.name in weights else "model.embed_tokens.weight"
        content = stored.content
        if isinstance(content, Plain):
            np.testing.assert_array_equal(content.product(), weights[name])
            continue
        multiplier = np.ones(content.codes.shape[1]) if content.multiplier is None else content.multiplier
        steps = np.repeat(np.abs(content.scales.astype(np.float64)), content.group, axis=1) * multiplier
        # A symmetric grid cuts off one step at its upper end.
        assert np.max(np.abs(content.product() - weights[name]) / steps) < 1.05
        assert (content.multiplier is not None) == ("down_proj" in name)


def test_reading_loads_no_runtime(plain: Exported) -> None:
    code = (
        "import json, sys; from pathlib import Path; from harness.backends.openvino_weights import OpenVinoWeights; "
        "folder = Path(sys.argv[1]); config = json.loads((folder.parent / 'checkpoint/config.json').read_text()); "
        "weights = OpenVinoWeights(folder, config); list(weights.tensors()); weights.statements(); "
        "print(sorted({'openvino', 'torch', 'nncf'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(plain.artifact)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_the_fixtures_are_small() -> None:
    assert all(path.stat().st_size < 300_000 for path in PACKED.iterdir())


def test_everything_that_the_graph_says_is_stated(plain: Exported) -> None:
    assert stated(plain, "num_attention_heads", 1) == [4]
    assert stated(plain, "num_key_value_heads", 1) == [2]
    assert stated(plain, "head_size", 1) == [16]
    assert stated(plain, "qkv_begin", 1) == [[0, 64, 96]]
    assert stated(plain, "kv_head", 1) == [[0, 0, 1, 1]]
    assert stated(plain, "sliding_window", 1) == [24]
    assert stated(plain, "lookahead", 1) == [0]
    assert stated(plain, "attention_scale", 1) == [0.25]
    assert stated(plain, "gate_first", 1) == [1]
    assert stated(plain, "layer_order") == [[0, 1]]
    assert stated(plain, "mlp_order") == [[0, 1]]
    assert stated(plain, "end_tokens") == [[2, 3]]
    assert stated(plain, "context_length") == [64]


def test_longrope_states_both_sets_of_frequencies(long: Exported) -> None:
    (short,), (stretched,) = stated(long, "rotary_inv_freq", 1), stated(long, "rotary_inv_freq_long", 1)
    assert len(short) == len(stretched) == 6
    assert short[0] == pytest.approx(1.0)
    assert stretched[0] == pytest.approx(1 / 1.5)
    assert stated(long, "rotary_switch", 1) == [64]
    assert stated(long, "sliding_window", 1) == [-1]


# Faults of the graph: each is planted by the least edit that makes it, and known by what is stated wrongly then.


def change_base(exported: Exported, by: float) -> None:
    r = 8
    exported.feed(exported.layer("rotary_emb", kind="MatMul"), 0, (10000.0 * by) ** (-np.arange(r) / r))


def change_epsilon(exported: Exported, by: float) -> None:
    exported.feed(exported.layer(f"{LAYER}input_layernorm", kind="Add"), 1, [1e-5 * by])


def change_window(exported: Exported, by: int) -> None:
    shifted = exported.source(exported.layer("__module.model/", kind="Greater"), 1)
    exported.feed(shifted, 1, [-24 - by])


def ignore_window(exported: Exported, _: object) -> None:
    joined = exported.layer("__module.model/", "BitwiseAnd_1", kind="BitwiseAnd")
    exported.connect(exported.source(joined, 1), joined, 0)


def see_ahead(exported: Exported, by: int) -> None:
    """Compares keys with what the window is measured from, made to lie ahead of the query."""
    window = exported.layer("__module.model/", kind="Greater")
    shifted = exported.source(window, 1)
    exported.feed(shifted, 1, [by])
    exported.connect(shifted, exported.layer("__module.model/", kind="LessEqual"), 1)
    joined = exported.layer("__module.model/", "BitwiseAnd_1", kind="BitwiseAnd")
    exported.connect(exported.source(joined, 1), joined, 0)


def scale_attention(exported: Exported, by: float) -> None:
    exported.feed(exported.layer(f"{LAYER}self_attn", kind="ScaledDotProductAttention"), 4, [0.25 * by])


def swap_gate_and_up(exported: Exported, _: object) -> None:
    edges = [exported.edge(exported.layer(f"{LAYER}mlp", kind="Swish"), 0)]
    product = exported.layer(f"{LAYER}mlp/aten::mul/Multiply", kind="Multiply")
    edges.append(
        exported.edge(product, [exported.source(product, i).get("type") for i in (0, 1)].index("VariadicSplit"))
    )
    first, second = (str(edge.get("from-port")) for edge in edges)
    edges[0].set("from-port", second)
    edges[1].set("from-port", first)


def swap_keys_and_values(exported: Exported, _: object) -> None:
    slices = [layer for layer in exported.layers.values() if is_slice_of_qkv(exported, layer)]
    begins = [int(exported.values(exported.source(layer, 1))[0]) for layer in slices]
    for layer, begin in zip(slices, begins, strict=True):
        exported.feed(layer, 1, [{0: 0, 64: 96, 96: 64}[begin]])


def is_slice_of_qkv(exported: Exported, layer: ElementTree.Element) -> bool:
    return layer.get("type") == "Slice" and str(exported.source(layer, 0).get("name")).startswith(f"__module.{QKV}/")


def share_other_heads(exported: Exported, _: object) -> None:
    """Repeats keys in another order: not a form that is known, in one layer only."""
    exported.feed(exported.layer(f"{LAYER}self_attn", "Unsqueeze_2", kind="Unsqueeze"), 1, 1)


def skip_layer(exported: Exported, _: object) -> None:
    reroute(exported, "__module.model.layers.1/aten::add/Add_1", "__module.model.layers.0/aten::add/Add_1")


def skip_mlp(exported: Exported, _: object) -> None:
    last = exported.layer("__module.model.layers.1/aten::add/Add_1")
    for target, number in exported.readers(last):
        exported.connect(exported.source(last, 0), target, number)


def exchange_layers(exported: Exported, _: object) -> None:
    """Layer 1 first: it reads the embedding, layer 0 reads it, and the last norm reads layer 0."""
    embedding = exported.layer("embed_tokens", kind="Gather")
    first, last = (exported.layer(f"__module.model.layers.{i}/aten::add/Add_1") for i in (0, 1))
    into = {name: exported.readers(source) for name, source in (("0", embedding), ("1", first), ("end", last))}
    for source, name in ((embedding, "1"), (last, "0"), (first, "end")):
        for target, number in into[name]:
            exported.connect(source, target, number)


def reroute(exported: Exported, old: str, new: str) -> None:
    for target, number in exported.readers(exported.layer(old)):
        exported.connect(exported.layer(new), target, number)


FAULTS: list[tuple[Callable[[Exported, Any], None], list[Any], set[str]]] = [
    (change_base, [1.01, 0.999, 1.0001], {"rotary_inv_freq"}),
    (change_epsilon, [1.1, 0.99, 10], {"rms_norm_eps"}),
    (change_window, [1, -1, 24], {"sliding_window"}),
    (ignore_window, [None], {"sliding_window"}),
    (see_ahead, [1, 2], {"sliding_window", "lookahead"}),
    (scale_attention, [1.01, 1.001, 0.5], {"attention_scale"}),
    (swap_gate_and_up, [None], {"gate_first"}),
    (swap_keys_and_values, [None], {"qkv_begin"}),
    (share_other_heads, [None], {"num_attention_heads"}),
    (skip_layer, [None], {"layer_order", "mlp_order", "num_hidden_layers"}),
    (skip_mlp, [None], {"mlp_order"}),
    (exchange_layers, [None], {"layer_order", "mlp_order"}),
]


@pytest.mark.parametrize(
    ("plant", "strength", "what"),
    [(plant, strength, what) for plant, strengths, what in FAULTS for strength in strengths],
    ids=[f"{plant.__name__}-{strength}" for plant, strengths, _ in FAULTS for strength in strengths],
)
def test_a_fault_of_the_graph_is_stated(
    plant: Callable[[Exported, Any], None], strength: Any, what: set[str], plain: Exported
) -> None:
    plant(plain, strength)
    plain.save()
    assert what <= wrong(plain)


def test_frequencies_of_longrope_that_are_off_are_stated(long: Exported) -> None:
    factors = long.layer("rotary_emb", kind="Select")
    for number, what in ((1, "rotary_inv_freq_long"), (2, "rotary_inv_freq")):
        was = long.values(long.source(factors, number))
        long.feed(factors, number, was * 1.01)
        long.save()
        assert wrong(long) == {what}
        long.feed(factors, number, was)


def test_a_factor_on_the_cosines_that_is_off_is_stated(long: Exported) -> None:
    for name in ("Multiply_2", "Multiply_3"):
        scaled = long.layer("rotary_emb/aten::mul", name, kind="Multiply")
        long.feed(scaled, 1, long.values(long.source(scaled, 1)) * 1.01)
    long.save()
    assert wrong(long) == {"rotary_factor"}


# Files that are not what they should be.


def constant(exported: Exported, name: str) -> ElementTree.Element:
    """The attributes of a product's stored weight."""
    return exported.data(exported.layer(f"self.{name}._openvino_orig_weight", kind="Const", exact=True))


def spoil(exported: Exported, name: str, **attributes: str) -> None:
    for key, value in attributes.items():
        constant(exported, name).set(key, value)
    exported.save()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"offset": "999999999"}, "truncated"),
        ({"offset": "-1"}, "holds"),
        ({"size": "3"}, "need"),
        ({"shape": "128, 2, 64"}, "need"),
        ({"shape": "128, -2, 32"}, "has the shape"),
        ({"shape": "1, 1, 1, 1, 1, 1, 1, 1, 1"}, "has the shape"),
        ({"shape": "99999999999999999999, 99999999999999999999"}, "need"),
        ({"element_type": "u3"}, "'u3', which this version cannot read"),
        ({"element_type": "i32"}, "need"),
    ],
)
def test_a_constant_that_is_not_what_it_says_is_refused(attributes: dict[str, str], said: str, plain: Exported) -> None:
    spoil(plain, QKV, **attributes)
    with pytest.raises(ArtifactError, match=said) as caught:
        list(plain.read().tensors())
    assert QKV in caught.value.problem
    assert caught.value.remedy


def test_a_truncated_bin_is_refused(plain: Exported) -> None:
    plain.bin.write_bytes(plain.bin.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="truncated"):
        list(plain.read().tensors())


def test_an_empty_or_missing_file_is_refused(plain: Exported) -> None:
    plain.bin.write_bytes(b"")
    with pytest.raises(ArtifactError, match="cannot be read"):
        plain.read()
    plain.bin.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        plain.read()
    plain.xml.unlink()
    with pytest.raises(ArtifactError, match="cannot be read"):
        plain.read()


BOMB = '<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><net><layers>&b;</layers></net>'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (BOMB, "document type"),
        ("<net>", "cannot be read"),
        ("nothing", "cannot be read"),
        ("<model/>", "no OpenVINO model"),
        ("<net><layers/></net>", "no layers"),
        ('<net><layers><layer id="0"/></layers><edges><edge from-layer="1" to-layer="0"/></edges></net>', "joins"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_hostile_graph_is_refused(text: str, said: str, encoding: str, plain: Exported) -> None:
    plain.xml.write_text(text, encoding=encoding)
    with pytest.raises(ArtifactError, match=said):
        plain.read()


def test_a_graph_that_goes_in_circles_is_refused(plain: Exported) -> None:
    product = plain.layer(f"__module.{QKV}/", kind="MatMul")
    convert = plain.source(product, 1)
    plain.connect(convert, convert, 0)
    plain.save()
    with pytest.raises(ArtifactError):
        list(plain.read().tensors())


def test_a_product_of_an_unknown_module_is_named(plain: Exported) -> None:
    product = plain.layer(f"__module.{QKV}/", kind="MatMul")
    product.set("name", "__module.model.layers.1.self_attn.rope_proj/ov_ext::linear/MatMul")
    plain.save()
    with pytest.raises(ArtifactError, match="rope_proj"):
        plain.read()


def test_a_tensor_that_no_product_takes_is_named(plain: Exported) -> None:
    down = plain.layer(f"__module.{DOWN}/", kind="MatMul")
    plain.connect(plain.source(plain.layer("__module.model.layers.0.mlp.down_proj/", kind="MatMul"), 1), down, 1)
    plain.save()
    with pytest.raises(ArtifactError, match=f"{DOWN}.*is unknown"):
        plain.read()


def test_a_product_that_takes_another_products_weight_is_found(plain: Exported) -> None:
    first, second = (plain.layer(f"__module.model.layers.{i}.mlp.down_proj/", kind="MatMul") for i in (0, 1))
    weights = [plain.source(product, 1) for product in (first, second)]
    plain.connect(weights[1], first, 1)
    plain.connect(weights[0], second, 1)
    plain.save()
    findings = audit(plain.read(), plain.checkpoint).findings
    assert {finding.tensor for finding in findings} == {f"model.layers.{i}.mlp.down_proj.weight" for i in (0, 1)}


def test_a_layer_that_the_checkpoint_does_not_have_is_refused(plain: Exported) -> None:
    config = {**plain.checkpoint.config, "num_hidden_layers": 1}
    with pytest.raises(ArtifactError, match="layer 1"):
        OpenVinoBackend().dequantized_weights(plain.artifact, config)


def test_another_checkpoints_artifact_is_refused(plain: Exported) -> None:
    config = {**plain.checkpoint.config, "vocab_size": 97}
    with pytest.raises(ArtifactError, match="where"):
        list(OpenVinoBackend().dequantized_weights(plain.artifact, config).tensors())


def test_a_multiplication_that_nobody_knows_is_refused(plain: Exported) -> None:
    scaled = next(layer for layer in plain.layers.values() if str(layer.get("name")).endswith("awq_mul"))
    scaled.set("name", "a multiplication")
    plain.save()
    with pytest.raises(ArtifactError, match="is unknown"):
        plain.read()


def test_codes_are_read_low_nibble_first_and_zero_points_with_them(plain: Exported) -> None:
    stored = next(s for s in plain.read().tensors() if s.name == f"{QKV}.weight")
    assert isinstance(stored.content, Quantised)
    raw = plain.values(plain.layer(f"self.{QKV}._openvino_orig_weight", kind="Const", exact=True))
    assert stored.content.codes.reshape(-1)[:4].tolist() == [raw[0] & 15, raw[0] >> 4, raw[1] & 15, raw[1] >> 4]
    assert stored.content.zero_points.shape == stored.content.scales.shape == (128, 2)
    assert (stored.content.bits, stored.content.low, stored.content.high) == (4, 0, 15)


def test_the_levels_of_small_floats() -> None:
    four, eight, normal = (levels_of(kind) for kind in ("f4e2m1", "f8e4m3", "nf4"))
    assert four is not None
    assert eight is not None
    assert normal is not None
    assert four.tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert [np.nanmax(eight), np.nanmin(eight), eight[1], np.isnan(eight).sum()] == [448, -448, 2.0**-9, 2]
    assert np.all(np.diff(normal) > 0)
    assert levels_of("u4") is None
