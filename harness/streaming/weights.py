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
from harness.reference.weights import Weight, head_blocks, rounded
from harness.tensor_files import TensorFiles

_LINE = 16


class Source(Protocol):
    """Where weights come from, by their names in the checkpoint."""

    @property
    def quantised(self) -> bool:
        """Whether any weight is held as integer codes."""
        ...

    def fill(self, name: str, rows: slice, out: Tensor) -> Weight:
        """Write rows of a tensor into `out`, FP32 of their shape, and say what there is to say of it."""
        ...

    def look_up(self, tokens: Sequence[int], out: Tensor) -> None:
        """Write rows of the embedding into `out` `[n, H]`."""
        ...


class CheckpointSource:
    """A checkpoint's safetensors files, sharded or not, mapped into memory: BF16, FP16, FP32 or FP64."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._files = TensorFiles(checkpoint.weight_files)

    @property
    def quantised(self) -> bool:
        """A checkpoint holds floats."""
        return False

    def fill(self, name: str, rows: slice, out: Tensor) -> Weight:
        """See `Source`; widening to FP32 is exact but for FP64. Raises CheckpointError, see `TensorFiles`."""
        stored = self._files.mapped(name)[rows]
        if self._files.dtype(name) == "bfloat16":
            out.copy_(torch.from_numpy(stored.view(np.int16)).view(torch.bfloat16))
        else:
            out.copy_(torch.from_numpy(stored))
        return Weight(out)

    def look_up(self, tokens: Sequence[int], out: Tensor) -> None:
        """See `Source`."""
        for row, token in enumerate(tokens):
            self.fill(EMBEDDING, slice(token, token + 1), out[row : row + 1])


class _Stage(NamedTuple):
    """What is in memory at once: tensors by name, with the rows that are meant."""

    tensors: Mapping[str, tuple[slice, tuple[int, ...]]]

    @property
    def values(self) -> int:
        return sum(int(np.prod(shape)) for _, shape in self.tensors.values())

    @property
    def size(self) -> int:
        """Of a buffer for them, with what lies between."""
        return sum(_aligned(shape) for _, shape in self.tensors.values())


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
        self.blocks = head_blocks(self._shapes[HEAD], layers[0].values)
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
        """See `harness.reference.weights.Store`; embedding, norm and LM head are read anew each time."""
        if name in self._stage_of:
            return self._at(self._stage_of[name])[name]
        return self._reader.submit(self._alone, name).result()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stage_of)

    def __len__(self) -> int:
        return len(self._stage_of)

    @property
    def stage(self) -> int:
        """The number of what is held now."""
        return self._stage

    @property
    def quantised(self) -> bool:
        """Whether any weight is held as integer codes."""
        return self._source.quantised

    def head(self, block: int) -> tuple[Weight, Weight]:
        """The final norm's weight `[H]`, and the rows `blocks[block]` of the LM head `[n, H]`."""
        held = self._at(self._layers + block)
        return held[NORM], held[self._head]

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """Rows of the embedding `[n, H]` FP32, looked up without keeping the others."""
        return self._reader.submit(self._look_up, tokens).result()

    def rounded(self, dtype: torch.dtype) -> RoundedWeights:
        """See `harness.reference.weights.Store`: a layer of them is held beside the exact one."""
        return RoundedWeights(self, dtype)

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

    # Tensors that are made in a caller's inference mode could not be written into by the thread that reads.
    def _alone(self, name: str) -> Weight:
        shape = self._shapes[name]
        return self._source.fill(name, slice(0, shape[0]), torch.empty(shape))

    def _look_up(self, tokens: Sequence[int]) -> Tensor:
        found = torch.empty(len(tokens), self._shapes[EMBEDDING][1])
        self._source.look_up(tokens, found)
        return found

    def _read(self, stage: int, turn: int) -> dict[str, Weight]:
        buffer, end, found = self._buffers[turn], 0, {}
        for name, (rows, shape) in self._stages[stage].tensors.items():
            values = buffer[end : end + int(np.prod(shape))].view(shape)
            found[name], end = self._source.fill(name, rows, values), end + _aligned(shape)
        return found


class RoundedWeights:
    """Weights that are read as a pass goes on, rounded to a precision and back to FP32."""

    def __init__(self, exact: StagedWeights, dtype: torch.dtype) -> None:
        self._exact = exact
        self._dtype = dtype
        self._stage = -1
        self._held: dict[str, Weight] = {}

    def __getitem__(self, name: str) -> Weight:
        """See `harness.reference.weights.Store`."""
        return self._rounded(name, self._exact[name])

    @property
    def quantised(self) -> bool:
        """Whether any weight is held as integer codes."""
        return self._exact.quantised

    @property
    def blocks(self) -> Sequence[slice]:
        """The rows of the LM head that are held at once."""
        return self._exact.blocks

    def head(self, block: int) -> tuple[Weight, Weight]:
        """See `harness.reference.weights.Store`."""
        norm, head = self._exact.head(block)
        return self._rounded(NORM, norm), self._rounded(HEAD, head)

    def embedded(self, tokens: Sequence[int]) -> Tensor:
        """See `harness.reference.weights.Store`."""
        return self._exact.embedded(tokens).to(self._dtype).to(torch.float32)

    def rounded(self, dtype: torch.dtype) -> RoundedWeights:
        """The exact ones rounded in another way."""
        return RoundedWeights(self._exact, dtype)

    def _rounded(self, name: str, exact: Weight) -> Weight:
        """What is asked for once a text is rounded once a layer."""
        if self._stage != self._exact.stage:
            self._stage, self._held = self._exact.stage, {}
        if name not in self._held:
            self._held[name] = rounded(exact, self._dtype)
        return self._held[name]


def _aligned(shape: tuple[int, ...]) -> int:
    """Values of a buffer that a tensor takes: each begins where a cache line does, as tensors of their own do."""
    return -(-int(np.prod(shape)) // _LINE) * _LINE
