"""Checkpoints of the true shapes of the published ones, with random weights: `published/` has their configurations.

Weights are normal with a deviation of `initializer_range`, norms near 1, rounded to BF16. Each tensor is drawn from a
seed of its own name, so that a checkpoint cut to fewer layers has the tensors of the whole one. They lie in shards of
at most 5 GB, as transformers writes them, a layer's tensors in two where a shard is full; a cut one has two shards.
Tensors are written by blocks of rows: memory stays below 0.3 GB, whatever the model.
"""

from __future__ import annotations

import json
import math
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from harness.layout import HEAD, Layout

PUBLISHED = Path(__file__).parent / "published"
NAMES = tuple(sorted(path.name for path in PUBLISHED.iterdir() if path.is_dir()))
"""The models that `make` knows."""
_SEED = 20261125
_SHARD = 5_000_000_000
_BLOCK = 1 << 24

Shape = tuple[int, ...]


def configuration(name: str) -> dict[str, Any]:
    """A published model's config.json."""
    config: dict[str, Any] = json.loads((PUBLISHED / name / "config.json").read_text(encoding="utf-8"))
    return config


def make(folder: Path, name: str, *, layers: int | None = None, changes: Mapping[str, Any] | None = None) -> int:
    """Write a checkpoint of a published model's shape into a folder that is not there yet; its number of weights.

    `layers`: only the first of so many. `changes`: other values of config.json.
    """
    source = PUBLISHED / name
    config = configuration(name) | ({} if layers is None else {"num_hidden_layers": layers}) | dict(changes or {})
    folder.mkdir(parents=True)
    shutil.copy(source / "generation_config.json", folder)
    special = json.loads((source / "special_tokens.json").read_text(encoding="utf-8"))
    write_tokenizer(folder, special)
    return write_weights(folder, config, halves=layers is not None or bool(changes))


def write_weights(folder: Path, config: Mapping[str, Any], *, halves: bool) -> int:
    """Write config.json, shards and their index into a folder; the number of weights. `halves`: in two shards."""
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    layout = Layout.of(config)
    shapes = {name: shape for name, shape in layout.shapes().items() if not (layout.tied and name == HEAD)}
    total = sum(map(math.prod, shapes.values()))
    shards = _halves(shapes) if halves else _split(shapes, _SHARD)
    index: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (folder / file).open("wb") as out:
            _write_shard(out, {name: shapes[name] for name in names}, float(config["initializer_range"]))
        index |= dict.fromkeys(names, file)
    text = json.dumps({"metadata": {"total_size": 2 * total}, "weight_map": index}, indent=2)
    (folder / "model.safetensors.index.json").write_text(text, encoding="utf-8")
    return total


def _split(shapes: Mapping[str, Shape], most: int) -> list[list[str]]:
    """Names by shard, in their order, no shard of more than so many bytes unless it is of one tensor."""
    shards: list[list[str]] = [[]]
    room = most
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        if shards[-1] and size > room:
            shards.append([])
            room = most
        shards[-1].append(name)
        room -= size
    return shards


def _halves(shapes: Mapping[str, Shape]) -> list[list[str]]:
    """Names in two shards, the first of them up to the tensor that takes it past the half."""
    names, sizes = list(shapes), [math.prod(shape) for shape in shapes.values()]
    first = next(i for i in range(1, len(names)) if 2 * sum(sizes[:i]) >= sum(sizes) or i == len(names) - 1)
    return [names[:first], names[first:]]


def _write_shard(out: BinaryIO, shapes: Mapping[str, Shape], deviation: float) -> None:
    """A safetensors file: the header's length, the header, and the tensors, which safetensors itself wants at once."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    out.write(len(text).to_bytes(8, "little") + text)
    for name, shape in shapes.items():
        for block in _draw(name, shape, deviation):
            out.write(block.tobytes())


def _draw(name: str, shape: Shape, deviation: float) -> Iterator[NDArray[np.uint16]]:
    """A tensor's bits in BF16, a block at a time."""
    generator = np.random.Generator(np.random.SFC64([_SEED, zlib.crc32(name.encode())]))
    mean = 1.0 if len(shape) == 1 else 0.0
    left = math.prod(shape)
    while left:
        count = min(left, _BLOCK)
        values = generator.standard_normal(count, dtype=np.float32)
        yield to_bfloat16(values * np.float32(deviation) + np.float32(mean))
        left -= count


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of finite values rounded to BF16, to the nearest and ties to even."""
    bits = values.view(np.uint32)
    rounded: NDArray[np.uint16] = ((bits + np.uint32(0x7FFF) + ((bits >> 16) & np.uint32(1))) >> 16).astype(np.uint16)
    return rounded


def write_tokenizer(folder: Path, special: Mapping[str, int], first: int = 3) -> None:
    """A tokenizer of single bytes, from id `first` on as in the published ones, and of the special tokens."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: first + i for i, letter in enumerate(letters)} | dict(special)
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    tokenizer.save(str(folder / "tokenizer.json"))
    end = "<|endoftext|>"
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def write_prompts(path: Path, texts: Sequence[str], new_tokens: int) -> None:
    """A suite of prompts, named `p0`, `p1` and so on."""
    lines = [
        {"id": f"p{i}", "text": text, "new_tokens": new_tokens, "about": "bytes of a random model"}
        for i, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
