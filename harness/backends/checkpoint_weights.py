"""The weights of a checkpoint, for the backends that load it as it is: each tensor once, under its own name.

A runtime that computes in another precision than the checkpoint's rounds them when it loads; that is its arithmetic,
not what is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from harness.checkpoint import open_checkpoint
from harness.errors import ArtifactError, CheckpointError
from harness.layout import Layout, Place
from harness.tensor_files import TensorFiles
from harness.weights import Part, Plain, Statement, Stored

# Buffers that older releases of transformers wrote; computed anew from config.json, never read.
_BUFFERS = ("rotary_emb.inv_freq",)


class CheckpointWeights:
    """The tensors of a checkpoint; see `harness.weights.ArtifactWeights`. Opening reads the headers only."""

    scheme: Mapping[str, str] = {}

    def __init__(self, artifact: Path, config: Mapping[str, Any]) -> None:
        try:
            self._files = TensorFiles(open_checkpoint(artifact).weight_files)
        except CheckpointError as error:
            raise ArtifactError(error.problem, error.remedy) from None
        layout = Layout.of(config)
        shapes = layout.shapes()
        self._names = [name for name in self._files if not name.endswith(_BUFFERS)]
        for name in self._names:
            if shapes.get(name) != self._files.shape(name):
                raise ArtifactError(
                    f"{name} {list(self._files.shape(name))} of {artifact} is no tensor of Phi-3 of this size",
                    "give the folder of the checkpoint itself",
                )
        layout.check_complete(Place(name, 0, shapes[name]) for name in self._names)

    def tensors(self) -> Iterator[Stored]:
        """Every tensor, one at a time; the LM head only if it is stored, and not tied to the embedding."""
        return (part.read() for part in self.parts())

    def parts(self) -> list[Part]:
        """See `harness.weights.InParts`."""
        return [Part(name, 0, self._files.shape(name)[0], partial(self._read, name)) for name in self._names]

    def _read(self, name: str) -> Stored:
        try:
            content = Plain(self._files.values(name), self._files.dtype(name))
        except CheckpointError as error:
            raise ArtifactError(error.problem, error.remedy) from None
        return Stored(name, 0, name, content)

    def statements(self) -> list[Statement]:
        """None: what config.json states is what others are held against."""
        return []
