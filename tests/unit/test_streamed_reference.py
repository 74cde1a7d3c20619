"""The artifact reference a layer at a time: to the bit what it is with all weights in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from harness.arithmetic import Arithmetic, CachePrecision, Weights
from harness.backend import load_backend
from harness.checkpoint import open_checkpoint
from harness.devices import find_interpreter
from harness.errors import ResourceError, Stage
from harness.golden import TREE
from harness.options import DEFAULT_CHECKPOINT
from harness.reference_memory import must_stream, whole_reference
from harness.states import LOGITS, places
from harness.target import Precision
from harness.wanted import Wanted
from harness.worker import Worker
from npu_library_artifact import Kept
from onnx_artifact import Maker, bfloat16, nbits
from openvino_artifact import Exported

LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 8,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [1.5, 3.0, 5.0, 9.0]},
}
TOKENS = (5, 8, 3, 4, 7, 12, 9, 3, 2, 6, 18, 7, 11, 1)
ARITHMETICS = (
    Arithmetic(),
    Arithmetic(Precision.FP16, weights=Weights.F16),
    Arithmetic(Precision.FP32, 8, CachePrecision.U8),
    Arithmetic(Precision.BF16, 8, CachePrecision.F16, Weights.BF16),
)


class Opening(NamedTuple):
    """What an artifact is read with."""

    backend: str
    artifact: str
    config: dict[str, Any]


def checkpoint_of(folder: Path) -> Opening:
    return Opening("pytorch", str(folder), open_checkpoint(folder).config)


def ir(name: str, folder: Path) -> Opening:
    found = Exported(name, folder)
    return Opening("openvino", str(found.artifact), found.checkpoint.config)


def onnx(folder: Path, checkpoint: Path, product: Any, *, apart: bool) -> Opening:
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    maker = Maker(config, load_file(checkpoint / "model.safetensors"))
    maker.build(product, apart=apart)
    return Opening("ort-genai", str(maker.write(folder, external=True)), config)


def kept(folder: Path, checkpoint: Path, bits: int) -> Opening:
    found = Kept(folder, checkpoint, bits)
    return Opening("npu-library", str(found.folder), found.config)


MADE: dict[str, Callable[[Path, Callable[..., Path]], Opening]] = {
    "checkpoint": lambda _, make: checkpoint_of(make(num_attention_heads=4, num_key_value_heads=2, sliding_window=5)),
    "tied-with-a-head-in-blocks": lambda _, make: checkpoint_of(make(tie_word_embeddings=True, vocab_size=640)),
    "longrope": lambda _, make: checkpoint_of(make(**LONGROPE)),
    "openvino-awq": lambda folder, _: ir("plain", folder),
    "openvino-tied-longrope": lambda folder, _: ir("long", folder),
    "onnx-int4-apart": lambda folder, make: onnx(folder / "onnx", make(), nbits(4, zeros=True), apart=True),
    "onnx-bfloat16": lambda folder, make: onnx(folder / "onnx", make(vocab_size=640), bfloat16, apart=False),
    "npu-library": lambda folder, make: kept(folder / "kept", make(), 4),
}


@pytest.fixture(params=MADE)
def opening(request: pytest.FixtureRequest, tmp_path: Path, make_folder: Callable[..., Path]) -> Opening:
    """An artifact of each backend, and checkpoints of each shape."""
    return MADE[request.param](tmp_path, make_folder)


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Worker, Worker]]:
    """One that holds all weights, one that holds a layer."""
    interpreter = find_interpreter(load_backend("pytorch"), {}, TREE)
    both = tuple(
        Worker(name, tmp_path_factory.mktemp("scratch"), interpreter=interpreter) for name in ("whole", "streamed")
    )
    for worker in both:
        worker.start()
    yield both[0], both[1]
    for worker in both:
        worker.stop()


def opened(workers: tuple[Worker, Worker], opening: Opening) -> tuple[Worker, Worker]:
    for worker, streamed in zip(workers, (False, True), strict=True):
        assert worker.call(Stage.LOAD, "open_reference", **opening._asdict(), streamed=streamed) == ""
    return workers


def work(worker: Worker, what: str, **asked: Any) -> Any:
    """The results of work, and how many steps it took."""
    worker.call(Stage.RUN, "begin_reference", what=what, asked=asked)
    steps = 0
    while worker.call(Stage.RUN, "advance_reference") is not None:
        steps += 1
    count = len(asked.get("wanted", [0]))
    return [worker.call(Stage.RUN, "reference_result") for _ in range(count)], steps


def same(one: Any, other: Any) -> None:
    """Arrays in dicts and lists are equal to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            same(a, b)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)
    else:
        assert one == other


def test_logits_and_yardsticks_are_the_same_to_the_bit(workers: tuple[Worker, Worker], opening: Opening) -> None:
    whole, streamed = opened(workers, opening)
    for arithmetic in ARITHMETICS:
        for prefill in (0, 6, len(TOKENS)):
            asked = {"tokens": list(TOKENS), "prefill": prefill, "arithmetic": arithmetic}
            for what in ("reference_logits", "yardsticks"):
                same(whole.call(Stage.RUN, what, **asked), streamed.call(Stage.RUN, what, **asked))
    assert whole.call(Stage.RUN, "holds_codes") == streamed.call(Stage.RUN, "holds_codes")


def test_what_is_asked_together_is_what_is_asked_alone(workers: tuple[Worker, Worker], opening: Opening) -> None:
    whole, streamed = opened(workers, opening)
    wanted = [
        Wanted(tokens, prefill, arithmetic, yardsticks)
        for tokens, prefill in ((TOKENS, 5), (TOKENS[:3], 3), (TOKENS[2:], 0))
        for arithmetic in ARITHMETICS
        for yardsticks in (False, True)
    ]
    together, steps = work(streamed, "answers", wanted=wanted)
    layers, vocabulary = opening.config["num_hidden_layers"], opening.config["vocab_size"]
    assert layers < steps <= layers + vocabulary  # one pass: the layers and some blocks of the LM head
    for one, found in zip(wanted, together, strict=True):
        asked = {"tokens": list(one.tokens), "prefill": one.prefill, "arithmetic": one.arithmetic}
        if one.yardsticks:
            same(whole.call(Stage.RUN, "yardsticks", **asked), found)
        else:
            same({"logits": whole.call(Stage.RUN, "reference_logits", **asked)}, found)


def test_suspects_sublayers_and_peaks_are_the_same(workers: tuple[Worker, Worker], opening: Opening) -> None:
    both = opened(workers, opening)
    config, generator = opening.config, np.random.default_rng(5)

    def rows(n: int, width: int) -> NDArray[np.float32]:
        return generator.normal(size=(n, width)).astype(np.float32)

    prompts = [
        [list(text), 4, rows(m, config["vocab_size"]), np.ones(len(text))] for text, m in ((TOKENS, 9), (TOKENS[3:], 1))
    ]
    states = {
        place: rows(len(TOKENS), config["vocab_size" if place == LOGITS else "hidden_size"])
        for place in places(config["num_hidden_layers"])
    }
    asking: dict[str, dict[str, Any]] = {
        "lineup": {"prompts": prompts, "arithmetic": ARITHMETICS[2]},
        "examine": {"states": states, "tokens": list(TOKENS), "prefill": 6, "permitted": list(ARITHMETICS)},
        "hard_prompts": {"special": [1, 2], "ordinary": list(TOKENS), "length": 6},
        "peaks": {"tokens": list(TOKENS)},
    }
    for what, asked in asking.items():
        (first,), (second,) = (work(worker, what, **asked)[0] for worker in both)
        same(first, second)


def test_products_are_the_same(workers: tuple[Worker, Worker], opening: Opening) -> None:
    both = opened(workers, opening)
    width = opening.config["hidden_size"]
    names = ("model.layers.1.self_attn.qkv_proj.weight", "model.layers.0.self_attn.o_proj.weight")
    size = {name: 3 * width if "qkv" in name else width for name in names}
    generator = np.random.default_rng(6)
    if opening.config["num_key_value_heads"] != opening.config["num_attention_heads"]:
        size[names[0]] = 2 * width
    products = {
        name: {
            "inputs": generator.normal(size=(2, width)).astype(np.float32),
            "outputs": generator.normal(size=(2, size[name])).astype(np.float32),
        }
        for name in names
    }
    asked = {"products": products, "permitted": list(ARITHMETICS)}
    found = [worker.call(Stage.RUN, "product_distances", **asked) for worker in both]
    assert found[0] == found[1]
    assert len(found[0]) == len(ARITHMETICS)


def test_rows_that_are_missing_are_a_reason(workers: tuple[Worker, Worker], tmp_path: Path) -> None:
    _, streamed = workers
    config = open_checkpoint(DEFAULT_CHECKPOINT).config
    opening = {"backend": "ort-genai", "artifact": str(tmp_path), "config": config, "streamed": True}
    assert streamed.call(Stage.LOAD, "open_reference", **opening)


def test_memory_decides() -> None:
    bundled = open_checkpoint(DEFAULT_CHECKPOINT)
    enough = whole_reference(bundled, 64)
    assert not must_stream(bundled, 64, enough)
    assert must_stream(bundled, 64, enough - 1)
    assert must_stream(bundled, 64, enough, rounded=True)
    with pytest.raises(ResourceError, match="a layer at a time") as caught:
        must_stream(bundled, 64, 1 << 20)
    assert "--memory" in caught.value.remedy
