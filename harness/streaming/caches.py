"""Keys and values of all texts, in a file a layer, mapped into memory: the system keeps of it what it has room for."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.layout import Layout
from harness.streaming.room import check_disk


class Caches:
    """The caches of texts of given capacities. Raises ResourceError where the disk has no room for them."""

    def __init__(self, folder: Path, layout: Layout, capacities: Sequence[int]) -> None:
        self._folder = folder
        self._shape = (2, layout.kv_heads, layout.head_size)
        width = 2 * layout.kv_heads * layout.head_size
        self._starts = [width * tokens for tokens in itertools.accumulate(capacities, initial=0)]
        self._capacities = tuple(capacities)
        needed = self._starts[-1] * 4 * layout.layers
        folder.mkdir(parents=True, exist_ok=True)
        check_disk(folder, needed, f"the caches of {len(capacities)} prompts")
        self._layers = [
            torch.from_numpy(np.memmap(folder / f"{layer}.cache", np.float32, "w+", shape=(max(1, self._starts[-1]),)))
            for layer in range(layout.layers)
        ]

    def extended(self, layer: int, slot: int, start: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values `[heads, start + n, size]` of a text, those of n tokens from `start` on put in."""
        parts, heads, size = self._shape
        text = self._layers[layer][self._starts[slot] : self._starts[slot + 1]]
        held = text.view(parts, heads, self._capacities[slot], size)
        end = start + key.shape[1]
        held[0, :, start:end], held[1, :, start:end] = key, value
        return held[0, :, :end], held[1, :, :end]

    def close(self) -> None:
        """Remove the files."""
        self._layers = []
        shutil.rmtree(self._folder, ignore_errors=True)
