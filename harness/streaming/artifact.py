"""The artifact reference on weights that are read out of the artifact as a pass goes on, a layer at a time."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.errors import ArtifactError
from harness.layout import EMBEDDING, HEAD, Layout
from harness.reference.artifact import ArtifactReference
from harness.reference.weights import Weight
from harness.streaming.room import check_disk
from harness.streaming.weights import StagedWeights
from harness.weights import ArtifactWeights, InParts, Part, Plain, Quantised

# Values that are dequantised at once, in float64.
_AT_ONCE = 1 << 20


class ArtifactSource:
    """An artifact's tensors; see `harness.streaming.weights.Source`. Raises ArtifactError as they are read.

    What it gives is to the bit what `harness.reference.artifact.assemble` does.
    """

    def __init__(self, weights: InParts, layout: Layout) -> None:
        """Raises ArtifactError where a tensor is none of the checkpoint's, or rows of one are missing."""
        self._shapes = layout.shapes()
        self._parts: dict[str, list[Part]] = {}
        for part in weights.parts():
            if part.name not in self._shapes:
                raise ArtifactError(f"{part.name} is no tensor of the checkpoint", "export it again")
            self._parts.setdefault(part.name, []).append(part)
        self._last: tuple[Part, Plain | Quantised] | None = None

    @property
    def tied(self) -> bool:
        """Whether the embedding is the LM head."""
        return HEAD not in self._parts

    @property
    def quantised(self) -> bool:
        """Whether any weight is held as integer codes: tensors are read until one is found that is."""
        parts = (part for parts in self._parts.values() for part in parts)
        return any(isinstance(part.read().content, Quantised) for part in parts)

    def fill(self, name: str, rows: slice, out: Tensor) -> Weight:
        """See `Source`."""
        found = Weight(out)
        for number, part in enumerate(self._parts[name]):
            begin, end = max(rows.start, part.row), min(rows.stop, part.row + part.rows)
            whole = rows.stop - rows.start == self._shapes[name][0]
            content = self._content(part, again=not whole)
            multiplier = None
            if content.multiplier is not None and part.rows == self._shapes[name][0]:
                multiplier = torch.from_numpy(content.multiplier.astype(np.float32))
                content = msgspec.structs.replace(content, multiplier=None)
            if number == 0:
                found = Weight(out, isinstance(content, Quantised), multiplier)
            if begin < end:
                _dequantise(content, begin - part.row, end - part.row, out[begin - rows.start : end - rows.start])
        return found

    def look_up(self, tokens: Sequence[int], out: Tensor) -> None:
        """See `Source`."""
        wanted = np.asarray(tokens, dtype=np.int64)
        for part in self._parts[EMBEDDING]:
            here = np.flatnonzero((wanted >= part.row) & (wanted < part.row + part.rows))
            content = self._content(part)
            for start in range(0, here.size, max(1, _AT_ONCE // out.shape[1])):
                some = here[start : start + max(1, _AT_ONCE // out.shape[1])]
                rows = torch.from_numpy(content.of_rows(wanted[some] - part.row).product())
                out[torch.from_numpy(some)] = rows.to(torch.float32)

    def _content(self, part: Part, *, again: bool = False) -> Plain | Quantised:
        """What a part stores; kept where it will be asked for `again`, by other rows."""
        if self._last is not None and self._last[0] is part:
            return self._last[1]
        self._last = None
        content = part.read().content
        if again:
            self._last = part, content
        return content


def _dequantise(content: Plain | Quantised, begin: int, end: int, out: Tensor) -> None:
    """Write rows of a weight in FP32, rounded once from float64."""
    step = max(1, _AT_ONCE // max(1, out[0].numel()))
    for start in range(begin, end, step):
        some = content.of_rows(slice(start, min(end, start + step)))
        out[start - begin : min(end, start + step) - begin] = torch.from_numpy(some.product()).to(torch.float32)


def streamed_reference(weights: ArtifactWeights, config: Mapping[str, Any], folder: Path) -> ArtifactReference:
    """A reference that holds a layer at a time; logits are kept in files of `folder` until they are let go.

    Raises ArtifactError where the weights cannot be read one by one.
    """
    if not isinstance(weights, InParts):
        raise ArtifactError(
            "its backend gives the weights of its artifacts one after another only, and memory is short for all",
            "give what dequantized_weights returns the method parts: see harness/weights.py",
        )
    torch.use_deterministic_algorithms(True)
    layout = Layout.of(config)
    source = ArtifactSource(weights, layout)
    staged = StagedWeights(source, layout, tied=source.tied)
    return ArtifactReference(weights, config, staged, Files(folder))


class Files:
    """Keeps arrays in files without a name, mapped into memory: the system keeps of them what it has room for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._serial = itertools.count()

    def __call__(self, rows: Tensor) -> NDArray[np.float32]:
        """`[n, V]`. Raises ResourceError where the disk has no room for it."""
        what = f"the logits of {rows.shape[0]} tokens"
        check_disk(self._folder, rows.numel() * 4, what, "set TMPDIR (TEMP on Windows) to a folder on another disk")
        path = self._folder / f"kept-{os.getpid()}-{next(self._serial)}.npy"
        found = np.lib.format.open_memmap(path, "w+", np.float32, tuple(rows.shape))
        found[:] = rows.numpy()
        with contextlib.suppress(PermissionError):  # on Windows it goes with its folder
            path.unlink()
        return found
