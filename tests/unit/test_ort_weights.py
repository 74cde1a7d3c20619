"""Reading weights and statements out of ONNX Runtime GenAI artifacts that are made by hand."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from safetensors.numpy import load_file

from harness.backends.ort_genai import OrtGenAIBackend
from harness.backends.ort_weights import OrtWeights, accuracy_levels
from harness.errors import ArtifactError
from harness.weights import Plain, Quantised, ReadsWeights
from onnx_artifact import Blocks, Maker, Product, bfloat16, dequantised, floats, nbits, pack

Change = Callable[[Maker], object]


@pytest.fixture
def new(make_folder: Callable[..., Path]) -> Maker:
    """An empty graph for a small checkpoint: hidden 16, intermediate 20, 2 layers."""
    folder = make_folder()
    return Maker(json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors"))


@pytest.fixture
def made(new: Maker) -> Maker:
    """A whole graph in floats."""
    new.build(floats())
    return new


def check_read(maker: Maker, folder: Path) -> OrtWeights:
    """Every tensor is read as what it was made to stand for, and nothing else is read."""
    weights = OrtWeights(folder, maker.config)
    found = {(stored.name, stored.row): stored for stored in weights.tensors()}
    assert found.keys() == maker.expected.keys()
    for place, stored in found.items():
        np.testing.assert_array_equal(stored.content.product(), maker.expected[place], err_msg=str(place))
    return weights


PRODUCTS = {
    "float32": floats(),
    "float16": floats(np.float16),
    "bfloat16": bfloat16,
    "int4": nbits(4),
    "int4-block32": nbits(4, 32),
    "int4-zeros": nbits(4, zeros=True),
    "int4-float16": nbits(4, dtype=np.float16, level=0),
    "int4-flat": nbits(4, zeros=True, flat=True),
    "int8": nbits(8),
    "int8-zeros": nbits(8, zeros=True),
    "int2": nbits(2),
    "dequantised": dequantised(zeros=False),
    "dequantised-zeros": dequantised(zeros=True),
    "dequantised-channel": dequantised(zeros=False, channel=True),
}


@pytest.mark.parametrize("external", [False, True], ids=["inline", "external"])
@pytest.mark.parametrize("product", PRODUCTS.values(), ids=PRODUCTS.keys())
def test_every_layout_is_read_as_what_it_stands_for(
    new: Maker, tmp_path: Path, product: Product, external: bool
) -> None:
    new.build(product)
    check_read(new, new.write(tmp_path / "artifact", external=external))


def test_fused_products_are_read_too(new: Maker, tmp_path: Path) -> None:
    new.build(nbits(4), apart=False)
    check_read(new, new.write(tmp_path / "artifact"))
    assert {row for _, row in new.expected} == {0}


def test_codes_scales_and_zero_points_come_as_stored(new: Maker, tmp_path: Path) -> None:
    new.build(nbits(4, zeros=True))
    weights = check_read(new, new.write(tmp_path / "artifact"))
    name = "model.layers.1.self_attn.o_proj.weight"
    stored = next(stored for stored in weights.tensors() if stored.name == name)
    expected = Blocks(new.weights[name], 4, 16, zeros=True)
    assert isinstance(stored.content, Quantised)
    np.testing.assert_array_equal(stored.content.codes, expected.codes.reshape(16, 16))
    np.testing.assert_array_equal(stored.content.scales, expected.scales)
    np.testing.assert_array_equal(stored.content.zero_points, expected.zeros)
    assert (stored.content.bits, stored.content.low, stored.content.high) == (4, 0, 15)
    assert stored.source == "model.layers.1.attn.o_proj.MatMul.weight_Q4"
    assert stored.rows == 16


def test_one_zero_point_serves_all_where_none_is_stored(new: Maker, tmp_path: Path) -> None:
    new.build(nbits(8))
    content = [stored.content for stored in OrtWeights(new.write(tmp_path / "artifact"), new.config).tensors()]
    points = {int(c.zero_points.item()) for c in content if isinstance(c, Quantised)}
    assert points == {128}


def test_a_float_tensor_says_its_dtype(new: Maker, tmp_path: Path) -> None:
    new.build(bfloat16)
    content = [stored.content for stored in OrtWeights(new.write(tmp_path / "artifact"), new.config).tensors()]
    assert {c.dtype for c in content if isinstance(c, Plain)} == {"bfloat16", "float32"}


class TestTiedHeads:
    """An embedding that is the LM head's constant, as the builder ties them."""

    def test_floats_through_a_transpose(self, made: Maker, tmp_path: Path) -> None:
        self.replace_lookup(made, "Transpose", ["lm_head.MatMul.weight"], {"perm": [1, 0]}, "Gather", [], {})
        check_read(made, made.write(tmp_path / "artifact"))

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("zeros", [False, True])
    def test_codes_through_a_reshape(self, new: Maker, tmp_path: Path, bits: int, zeros: bool) -> None:
        new.build(nbits(bits, zeros=zeros))
        shape = new.add("shape", np.asarray([24, 16 * bits // 8]))
        more = ["lm_head.MatMul.weight_scales", *(["lm_head.MatMul.weight_zp"] if zeros else [])]
        stated = {"bits": bits, "block_size": 16, "gather_axis": 0, "quantize_axis": 1}
        codes = [f"lm_head.MatMul.weight_Q{bits}", shape]
        self.replace_lookup(new, "Reshape", codes, {}, "GatherBlockQuantized", more, stated)
        check_read(new, new.write(tmp_path / "artifact"))

    def replace_lookup(
        self, maker: Maker, first: str, data: list[str], how: dict[str, Any], kind: str, more: list[str], stated: Any
    ) -> None:
        maker.nodes = [node for node in maker.nodes if node.op_type != "Gather"]
        maker.initializers = [tensor for tensor in maker.initializers if tensor.name != "model.embed_tokens.weight"]
        maker.node(first, data, ["table"], f"/model/embed_tokens/{first}", **how)
        maker.node(kind, ["table", "input_ids", *more], ["embedded"], f"/model/embed_tokens/{kind}", **stated)
        maker.expected["model.embed_tokens.weight", 0] = maker.expected["lm_head.weight", 0]


def test_an_embedding_of_signed_codes_is_read(made: Maker, tmp_path: Path) -> None:
    table = Blocks(made.weights["model.embed_tokens.weight"], 4, 16, zeros=False)
    made.nodes = [node for node in made.nodes if node.op_type != "Gather"]
    codes = pack((table.codes.reshape(1, -1).astype(np.int16) - 8 & 15).astype(np.uint8), 4)
    made.initializers = [t for t in made.initializers if t.name != "model.embed_tokens.weight"]
    made.initializers.append(helper.make_tensor("codes", onnx.TensorProto.INT4, (24, 16), codes.tobytes(), raw=True))
    inputs = ["codes", "input_ids", made.add("scales", table.scales)]
    made.node("GatherBlockQuantized", inputs, ["embedded"], "/model/embed_tokens/Gather_Q4", block_size=16)
    made.expected["model.embed_tokens.weight", 0] = table.product
    weights = check_read(made, made.write(tmp_path / "artifact"))
    assert weights.scheme["bits"] == "4"


def test_the_reader_agrees_with_the_runtime() -> None:
    """The operator itself, fed unit vectors, gives the columns of the weight that is read; K fills no whole block."""
    runtime = pytest.importorskip("onnxruntime")
    weight = np.random.default_rng(3).normal(size=(6, 40)).astype(np.float32)
    for bits in (4, 8):
        for zeros in (False, True):
            maker = Maker({}, {})
            nbits(bits, 16, zeros=zeros, level=0)(maker, "/lm_head/MatMul", "x", "y", weight)
            ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [None, None]) for name in ("x", "y")]
            graph = helper.make_graph(maker.nodes, "one", ends[:1], ends[1:], maker.initializers)
            opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
            model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
            session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
            (columns,) = session.run(None, {"x": np.eye(40, dtype=np.float32)})
            np.testing.assert_allclose(columns.T, maker.read, rtol=1e-6, atol=1e-7)


def test_the_scheme_is_what_the_graph_states(new: Maker, tmp_path: Path) -> None:
    new.build(nbits(4))
    weights = OrtWeights(new.write(tmp_path / "artifact"), new.config)
    assert weights.scheme == {
        "exporter": "made-by-hand 1",
        "operators": "MatMulNBits",
        "bits": "4",
        "block_size": "16",
        "accuracy_level": "4",
    }


def test_accuracy_levels_are_told_for_each_product(new: Maker, tmp_path: Path) -> None:
    new.build(nbits(4, level=4))
    levels = accuracy_levels(new.write(tmp_path / "artifact"))
    assert set(levels.values()) == {4}
    assert len(levels) == 4 * 2 + 1
    assert "model.layers.0.mlp.gate_up_proj.weight" in levels


def test_an_absent_accuracy_level_is_zero(made: Maker, tmp_path: Path) -> None:
    assert set(accuracy_levels(made.write(tmp_path / "artifact")).values()) == {0}


def test_parts_of_one_tensor_cannot_have_two_accuracy_levels(new: Maker, tmp_path: Path) -> None:
    new.build(nbits(4))
    next(a for a in node_of(new, "/model/layers.0/mlp/up_proj/MatMul_Q4").attribute if a.name == "accuracy_level").i = 1
    with pytest.raises(ArtifactError, match=r"gate_up_proj\.weight state the accuracy levels 4 and 1"):
        accuracy_levels(new.write(tmp_path / "artifact"))


class TestStatements:
    """What is stated beside the weights."""

    @pytest.fixture
    def stated(self, made: Maker, tmp_path: Path) -> dict[tuple[str, int | None], Any]:
        found = OrtWeights(made.write(tmp_path / "artifact"), made.config).statements()
        assert all(statement.value.dtype == np.float64 for statement in found)
        graph = [s for s in found if not s.source.startswith("genai_config.json")]
        assert len({(s.what, s.layer) for s in graph}) == len(graph) - 2  # two norms in each of two layers
        return {(s.what, s.layer): s.value.tolist() for s in found if s not in graph or s.what != "rms_norm_eps"} | {
            ("norms", s.layer): s.value.tolist() for s in graph if s.what == "rms_norm_eps"
        }

    def test_the_configuration(self, stated: dict[tuple[str, int | None], Any]) -> None:
        expected = {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "num_hidden_layers": 2,
            "hidden_size": 16,
            "head_size": 8,
            "vocabulary": 24,
            "context_length": 64,
            "end_tokens": [2, 3],
            "sliding_window": 9,
        }
        assert {what: stated[what, None] for what in expected} == expected

    def test_attention(self, stated: dict[tuple[str, int | None], Any]) -> None:
        for layer in (0, 1):
            assert stated["sliding_window", layer] == 7 + layer
            assert stated["attention_scale", layer] == 0.25
            assert stated["softcap", layer] == 0
            assert stated["rotary_interleaved", layer] == 0
            assert stated["num_attention_heads", layer] == 2

    def test_norms(self, stated: dict[tuple[str, int | None], Any]) -> None:
        assert {layer for what, layer in stated if what == "norms"} == {None, 0, 1}
        assert stated["norms", 0] == np.float32(1e-5)

    def test_rotary_tables(self, stated: dict[tuple[str, int | None], Any]) -> None:
        assert stated["rotary_cos", None] == np.cos(np.outer(range(64), range(4))).astype(np.float32).tolist()
        assert len(stated["rotary_sin", None]) == 64


def test_what_is_not_written_down_is_not_stated(made: Maker, tmp_path: Path) -> None:
    for node in made.nodes:
        if node.op_type == "GroupQueryAttention":
            del node.attribute[:]
    found = {s.what for s in OrtWeights(made.write(tmp_path / "artifact"), made.config).statements() if s.layer == 0}
    assert found == {"rms_norm_eps"}


def test_longrope_has_two_pairs_of_tables(made: Maker, tmp_path: Path) -> None:
    branches = {}
    for key, scale in (("then_branch", 2.0), ("else_branch", 1.0)):
        tables = [numpy_helper.from_array(np.full((4, 3), scale * sign), f"{key}{sign}") for sign in (1.0, -1.0)]
        nodes = [helper.make_node("Constant", [], [f"{table.name}_out"], value=table) for table in tables]
        ends = [helper.make_tensor_value_info(node.output[0], onnx.TensorProto.DOUBLE, [4, 3]) for node in nodes]
        branches[key] = helper.make_graph(nodes, key, [], ends)
    made.initializers = [t for t in made.initializers if t.name not in ("cos_cache", "sin_cache")]
    made.node("Greater", ["total", made.add("original", np.asarray(32))], ["is_long"], "/greater")
    made.node("If", ["is_long"], ["cos_cache", "sin_cache"], "/if", **branches)
    found = OrtWeights(made.write(tmp_path / "artifact"), made.config).statements()
    tables_found = {s.what: s.value[0, 0] for s in found if s.value.ndim == 2}
    assert tables_found == {"rotary_cos": 1.0, "rotary_sin": -1.0, "rotary_cos_long": 2.0, "rotary_sin_long": -2.0}


def test_one_table_under_the_other_is_told_apart(made: Maker, tmp_path: Path) -> None:
    config = {**made.config, "original_max_position_embeddings": 24, "max_position_embeddings": 40}
    found = {s.what: s.value for s in OrtWeights(made.write(tmp_path / "artifact"), config).statements()}
    assert found["rotary_cos"].shape == (24, 4)
    assert found["rotary_cos_long"].shape == (40, 4)


def node_of(maker: Maker, name: str) -> onnx.NodeProto:
    return next(node for node in maker.nodes if node.name == name)


def tensor_of(maker: Maker, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in maker.initializers if tensor.name == name)


def put(maker: Maker, name: str, values: Any) -> None:
    tensor_of(maker, name).CopyFrom(numpy_helper.from_array(np.asarray(values), name))


def drop(maker: Maker, part: str) -> None:
    maker.nodes = [node for node in maker.nodes if part not in node.name]


def rename(maker: Maker, name: str, new_name: str) -> None:
    node = node_of(maker, name)
    node.name = new_name


def insert(maker: Maker, kind: str, constant: Any) -> None:
    maker.node(kind, ["x", maker.add("extra", constant)], ["extra_out"], "/model/extra")


FAULTS: dict[str, tuple[Change, str]] = {
    "a layer left out": (lambda m: drop(m, "layers.1/mlp/down"), r"no model\.layers\.1\.mlp\.down_proj\.weight"),
    "a third left out": (lambda m: drop(m, "layers.0/attn/k_proj"), r"layers\.0.*qkv_proj.*lacks rows 16 to 31"),
    "the end left out": (lambda m: drop(m, "layers.0/attn/v_proj"), r"layers\.0.*qkv_proj.*has 32 rows for 48"),
    "no head": (lambda m: drop(m, "lm_head"), r"no lm_head\.weight"),
    "a layer too many": (
        lambda m: rename(m, "/model/layers.1/mlp/up_proj/MatMul", "/model/layers.2/mlp/up_proj/MatMul"),
        r"is of layer 2",
    ),
    "one module twice": (
        lambda m: rename(m, "/model/layers.1/mlp/up_proj/MatMul", "/model/layers.1/mlp/gate_proj/MatMul"),
        r"gate_up_proj.*row 0 more than once",
    ),
    "another's names": (
        lambda m: take_names_away(m),
        r"w7, which MatMul '/onnx::MatMul_7' takes",
    ),
    "another width": (
        lambda m: put(m, "model.layers.0.mlp.up_proj.MatMul.weight", np.zeros((17, 20), np.float32)),
        r"up_proj\.MatMul\.weight stands for \[20, 17\]",
    ),
    "a vector": (
        lambda m: put(m, "model.layers.0.mlp.up_proj.MatMul.weight", np.zeros(20, np.float32)),
        r"up_proj\.MatMul\.weight is float32 \[20\]",
    ),
    "whole numbers": (
        lambda m: put(m, "lm_head.MatMul.weight", np.zeros((16, 24), np.int32)),
        r"lm_head\.MatMul\.weight is int32",
    ),
    "a bias": (lambda m: insert(m, "Add", np.zeros(16, np.float32)), r"extra \(float32 \[16\]\), which Add"),
    "a factor": (lambda m: insert(m, "Mul", np.full(1, 1.01, np.float32)), r"extra \(float32 \[1\]\), which Mul"),
    "a table of numbers": (lambda m: insert(m, "Add", np.zeros(100, np.int64)), r"extra \(int64 \[100\]\)"),
    "a norm that is a product": (
        lambda m: rename(m, "/lm_head/MatMul", "/model/layers.0/input_layernorm/LayerNorm"),
        r"input_layernorm by its name, is a MatMul",
    ),
    "a cast": (
        lambda m: put_before(m, "Cast", "lm_head.MatMul.weight", "half"),
        r"half is made by Cast",
    ),
    "a cycle": (
        lambda m: put_before(m, "Identity", "loop", "loop"),
        r"no lm_head\.weight",
    ),
    "two constants of a name": (lambda m: m.add("cos_cache", np.zeros(3)), r"two constants named 'cos_cache'"),
    "a graph in a graph": (
        lambda m: m.node("If", ["x"], ["y"], "/if", then_branch=helper.make_graph([], "t", [], [])),
        r"If '/if' has a graph of its own",
    ),
    "an impossible shape": (
        lambda m: set_dims(m, "lm_head.MatMul.weight", [-16, 24]),
        r"lm_head\.MatMul\.weight (stands|has|is)",
    ),
    "an enormous shape": (
        lambda m: set_dims(m, "lm_head.MatMul.weight", [1 << 40, 24]),
        r"lm_head\.MatMul\.weight has 1536 bytes",
    ),
    "an unknown dtype": (
        lambda m: setattr(tensor_of(m, "lm_head.MatMul.weight"), "data_type", 99),
        r"lm_head\.MatMul\.weight is of ONNX's data type 99",
    ),
    "no rotary table": (lambda m: drop_tensor(m, "cos_cache"), r"rotary table cos_cache is neither"),
}


def take_names_away(maker: Maker) -> None:
    node_of(maker, "/lm_head/MatMul").input[1] = tensor_of(maker, "lm_head.MatMul.weight").name = "w7"
    rename(maker, "/lm_head/MatMul", "/onnx::MatMul_7")


def put_before(maker: Maker, kind: str, name: str, output: str) -> None:
    """Have the LM head take what another node makes of a value."""
    maker.node(kind, [name], [output], "/before")
    node_of(maker, "/lm_head/MatMul").input[1] = output


def set_dims(maker: Maker, name: str, dims: list[int]) -> None:
    tensor = tensor_of(maker, name)
    del tensor.dims[:]
    tensor.dims.extend(dims)


def drop_tensor(maker: Maker, name: str) -> None:
    maker.initializers = [tensor for tensor in maker.initializers if tensor.name != name]


def read_all(folder: Path, config: dict[str, Any]) -> None:
    weights = OrtWeights(folder, config)
    assert weights.scheme
    for stored in weights.tensors():
        stored.content.product()
    weights.statements()
    accuracy_levels(folder)


@pytest.mark.parametrize(("change", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_what_cannot_be_mapped_is_named(made: Maker, tmp_path: Path, change: Change, message: str) -> None:
    change(made)
    with pytest.raises(ArtifactError, match=message) as caught:
        read_all(made.write(tmp_path / "artifact"), made.config)
    assert caught.value.remedy


QUANTISED_FAULTS: dict[str, tuple[str, Any, str]] = {
    "prepacked": ("weight_prepacked", 1, r"processor's own layout"),
    "odd bits": ("bits", 3, r"states bits 3"),
    "no block": ("block_size", 0, r"block_size 0"),
    "another block": ("block_size", 32, r"weight_Q4 is uint8 \[24, 1, 8\], not uint8 \[24, 1, 16\]"),
    "another N": ("N", 23, r"weight_Q4 is uint8"),
    "a huge K": ("K", 1 << 60, r"weight_Q4 is uint8"),
    "a text": ("K", "16", r"states no whole number K"),
}


@pytest.mark.parametrize(("name", "value", "message"), QUANTISED_FAULTS.values(), ids=QUANTISED_FAULTS.keys())
def test_codes_that_do_not_fit_their_node_are_named(
    new: Maker, tmp_path: Path, name: str, value: Any, message: str
) -> None:
    new.build(nbits(4))
    node = node_of(new, "/lm_head/MatMul_Q4")
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend([*kept, helper.make_attribute(name, value)])
    with pytest.raises(ArtifactError, match=message):
        read_all(new.write(tmp_path / "artifact"), new.config)


@pytest.mark.parametrize(("index", "message"), [(4, "an order of columns"), (5, "a bias")])
def test_further_inputs_of_a_product_are_refused(new: Maker, tmp_path: Path, index: int, message: str) -> None:
    new.build(nbits(4))
    node = node_of(new, "/lm_head/MatMul_Q4")
    node.input.extend([""] * (index - len(node.input)) + [new.add("further", np.zeros(16, np.float32))])
    with pytest.raises(ArtifactError, match=message):
        read_all(new.write(tmp_path / "artifact"), new.config)


class TestFiles:
    """Files that are missing, cut short, or point elsewhere."""

    @pytest.fixture
    def folder(self, made: Maker, tmp_path: Path) -> Path:
        return made.write(tmp_path / "artifact", external=True)

    def refuse(self, made: Maker, folder: Path, message: str) -> None:
        with pytest.raises(ArtifactError, match=message):
            read_all(folder, made.config)

    def test_no_artifact(self, made: Maker, tmp_path: Path) -> None:
        self.refuse(made, tmp_path, r"no genai_config\.json")

    def test_no_graph(self, made: Maker, folder: Path) -> None:
        (folder / "model.onnx").unlink()
        self.refuse(made, folder, r"names the file model\.onnx, which is not there")

    @pytest.mark.parametrize("content", [b"", b"\x08", b"no graph at all", b"\xff" * 99])
    def test_no_onnx(self, made: Maker, folder: Path, content: bytes) -> None:
        (folder / "model.onnx").write_bytes(content)
        self.refuse(made, folder, r"no readable ONNX graph|has no model")

    @pytest.mark.parametrize(
        "filename", ["../model.onnx", "/etc/passwd", "C:\\model.onnx", "a\\..\\..\\b", "", None, 3]
    )
    def test_a_graph_outside_the_folder(self, made: Maker, folder: Path, filename: Any) -> None:
        settings = json.loads((folder / "genai_config.json").read_text())
        settings["model"]["decoder"]["filename"] = filename
        (folder / "genai_config.json").write_text(json.dumps(settings))
        self.refuse(made, folder, r"not in the artifact's folder|names no file")

    def test_no_data(self, made: Maker, folder: Path) -> None:
        (folder / "model.onnx.data").unlink()
        self.refuse(made, folder, r"model\.onnx\.data, which is not there")

    def test_truncated_data(self, made: Maker, folder: Path) -> None:
        data = (folder / "model.onnx.data").read_bytes()
        (folder / "model.onnx.data").write_bytes(data[:-1])
        self.refuse(made, folder, rf"ends at byte {len(data)} of model\.onnx\.data, which has {len(data) - 1}")

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("location", "../secret", r"'\.\./secret', which is not in"),
            ("location", "/etc/passwd", r"which is not in"),
            ("offset", "-64", r"bytes at -64"),
            ("offset", "99999999999999999999", r"ends at byte"),
            ("offset", "a", r"no number"),
            ("length", "99999999", r"has 99999999 bytes"),
            ("length", "4", r"has 4 bytes"),
        ],
    )
    def test_data_that_lies_elsewhere(self, made: Maker, folder: Path, key: str, value: str, message: str) -> None:
        model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
        where = model.graph.initializer[-1].external_data
        next(entry for entry in where if entry.key == key).value = value
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        self.refuse(made, folder, message)

    def test_a_link_is_followed(self, made: Maker, folder: Path, tmp_path: Path) -> None:
        """A hub's cache is a folder of links."""
        (folder / "model.onnx.data").rename(tmp_path / "blob")
        try:
            (folder / "model.onnx.data").symlink_to(tmp_path / "blob")
        except OSError:
            pytest.skip("this account may not make links")
        check_read(made, folder)

    def test_a_graph_with_any_byte_changed_is_read_or_refused(self, new: Maker, tmp_path: Path) -> None:
        new.build(nbits(4, zeros=True))
        folder = new.write(tmp_path / "bent")
        whole = (folder / "model.onnx").read_bytes()
        chance = random.Random(5)
        for _ in range(150):
            bent = bytearray(whole)
            for _ in range(3):
                bent[chance.randrange(len(bent))] = chance.randrange(256)
            (folder / "model.onnx").write_bytes(bent)
            with contextlib.suppress(ArtifactError):
                read_all(folder, new.config)


def test_the_adapter_reads_without_its_runtime(made: Maker, tmp_path: Path) -> None:
    backend = OrtGenAIBackend()
    assert isinstance(backend, ReadsWeights)
    assert list(backend.dequantized_weights(made.write(tmp_path / "artifact"), made.config).tensors())
