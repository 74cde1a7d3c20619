"""What the Intel NPU library's worker keeps of a model, written by hand and without the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from harness.backends.npu_library import NpuLibraryBackend
from harness.backends.npu_library_weights import MANIFEST
from harness.checkpoint import open_checkpoint


class Kept:
    """A folder of kept weights: products quantised by row, the rest as it is."""

    def __init__(self, folder: Path, checkpoint: Path, bits: int | None) -> None:
        self.folder, self.bits = folder, bits
        self.config = open_checkpoint(checkpoint).config
        self.weights = load_file(checkpoint / "model.safetensors")
        self.expected: dict[str, NDArray[np.float64]] = {}
        folder.mkdir()
        entries = {name: {"bits": self.write(name, values)} for name, values in self.weights.items()}
        self.manifest = {"format": 1, "exporter": "a library 1.0", "tensors": entries}
        self.save()

    def write(self, name: str, weight: NDArray[np.float32]) -> int | None:
        path = self.folder / f"{name}.safetensors"
        if self.bits is None or ("proj" not in name and "head" not in name):
            self.expected[name] = weight.astype(np.float64)
            save_file({"values": weight}, path)
            return None
        width = weight.shape[1]
        scale = (np.abs(weight).max(axis=1, keepdims=True) / (2 ** (self.bits - 1) - 1) * np.sqrt(width)).astype("e")
        constant = float(np.float16(np.sqrt(1 / width)))
        codes = np.rint(weight / (scale * constant)).astype(np.int8)
        self.expected[name] = codes * (scale.astype(np.float64) * constant)
        packed = codes if self.bits == 8 else (codes[:, 0::2] & 15 | (codes[:, 1::2] & 15) << 4).view(np.uint8)
        save_file({"codes": np.ascontiguousarray(packed), "scale": scale}, path)
        return self.bits

    def save(self) -> None:
        (self.folder / MANIFEST).write_text(json.dumps(self.manifest))

    def read(self) -> dict[str, Any]:
        weights = NpuLibraryBackend().dequantized_weights(self.folder, self.config)
        assert weights.statements() == []
        return {stored.name: stored.content for stored in weights.tensors()}
