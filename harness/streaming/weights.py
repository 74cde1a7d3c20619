"""Weights in FP32, one layer of them in memory and the next one being read by a thread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from harness.checkpoint import Checkpoint
from harness.layout import EMBEDDING, HEAD, NORM, Layout
from harness.reference.model import Weight
from harness.tensor_files import TensorFiles


class Source(Protocol):
    """Where weights come from, by their names in the checkpoint."""

    def fill(self, name: str, rows: slice, out: Tensor) -> None:
        """Write rows of a tensor into `out`, FP32 of their shape."""
        ...


class CheckpointSource:
    """A checkpoint's safetensors files, sharded or not, mapped into memory: BF16, FP16, FP32 or FP64."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = TensorFiles(checkpoint.weight_files)

    def fill(self, name: str, rows: slice, out: Tensor) -> None:
        """See `Source`; widening to FP32 is exact but for FP64. Raises CheckpointError, see `TensorFiles`."""
        stored = self._files.mapped(name)[rows]
        if self._files.dtype(name) == "bfloat16":
            out.copy_(torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16))
        else:
            out.copy_(torch.from_numpy(stored))


class _Stage(NamedTuple):
    """What is in memory at once: tensors by name, with the rows that are meant."""

    tensors: Mapping[str, tuple[slice, tuple[int, ...]]]

    @property
    def size(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.tensors.values())


class StagedWeights(Mapping[str, Weight]):
    """The weights of a model by name; what is asked for must be asked in the order of a pass.

    Stages are the layers, then the LM head, in blocks of rows where it is larger than a layer. Two buffers of the size
    of the largest stage are all that is held: what was given is overwritten once the stage after the next is read.
    """

    def __init__(self, source: Source, layout: Layout, *, tied: bool) -> None:
        """`tied`: the embedding is the LM head."""
        self._source = source
        self._shapes = layout.shapes()
        self._head = EMBEDDING if tied else HEAD
        self._tied = tied
        layers = [self._layer(layer) for layer in range(layout.layers)]
        self._layers = len(layers)
        self.blocks = tuple(_blocks(self._shapes[HEAD], layers[0].size))
        self._stages = [*layers, *(self._head_stage(block) for block in self.blocks)]
        self._stage_of = {name: number for number, stage in enumerate(layers) for name in stage.tensors}
        size = max(stage.size for stage in self._stages)
        self._buffers = (torch.empty(size), torch.empty(size))
        self._reader = ThreadPoolExecutor(1, "read-weights")
        self._ahead: tuple[int, Future[dict[str, Weight]]] | None = None
        self._stage, self._turn = -1, 0
        self._held: dict[str, Weight] = {}
        self.passes = 0

    def __getitem__(self, name: str) -> Weight:
        return self._at(self._stage_of[name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._stage_of)

    def __len__(self) -> int:
        return len(self._stage_of)

    def head(self, block: int) -> tuple[Tensor, Tensor]:
        """The final norm's weight `[H]`, and the rows `blocks[block]` of the LM head `[n, H]`."""
        held = self._at(self._layers + block)
        return held[NORM].values, held[self._head].values

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding `[n, H]` FP32, looked up without reading the others."""
        found = torch.empty(len(tokens), self._shapes[EMBEDDING][1])
        for row, token in enumerate(tokens):
            self._source.fill(EMBEDDING, slice(token, token + 1), found[row : row + 1])
        return found

    def close(self) -> None:
        """End the thread that reads and let the buffers go."""
        self._reader.shutdown(wait=True, cancel_futures=True)
        self._ahead, self._held = None, {}
        self._buffers = (torch.empty(0), torch.empty(0))

    def _layer(self, layer: int) -> _Stage:
        prefix = f"model.layers.{layer}."
        return _Stage({n: (slice(0, s[0]), s) for n, s in self._shapes.items() if n.startswith(prefix)})

    def _head_stage(self, block: slice) -> _Stage:
        norm = self._shapes[NORM]
        shape = (block.stop - block.start, self._shapes[HEAD][1])
        return _Stage({NORM: (slice(0, norm[0]), norm), self._head: (block, shape)})

    def _at(self, stage: int) -> dict[str, Weight]:
        if stage == self._stage:
            return self._held
        if self._ahead is None or self._ahead[0] != stage:
            if self._ahead is not None:
                self._ahead[1].result()  # it writes into the buffer that is needed now
            self._ahead = stage, self._reader.submit(self._read, stage, self._turn)
        self._held, self._stage = self._ahead[1].result(), stage
        self.passes += stage == len(self._stages) - 1
        self._turn = 1 - self._turn
        following = (stage + 1) % len(self._stages)
        self._ahead = following, self._reader.submit(self._read, following, self._turn)
        return self._held

    def _read(self, stage: int, turn: int) -> dict[str, Weight]:
        buffer, end, found = self._buffers[turn], 0, {}
        for name, (rows, shape) in self._stages[stage].tensors.items():
            size = int(np.prod(shape))
            values = buffer[end : end + size].view(shape)
            self._source.fill(name, rows, values)
            found[name], end = Weight(values), end + size
        return found


def _blocks(shape: tuple[int, ...], most: int) -> Iterator[slice]:
    """Blocks of rows of a tensor, none of more than `most` values."""
    step = max(1, most // shape[1])
    for start in range(0, shape[0], step):
        yield slice(start, min(start + step, shape[0]))
