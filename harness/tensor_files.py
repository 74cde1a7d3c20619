"""Tensors of safetensors files by name, read one at a time from a memory map, without torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.checkpoint import read_header
from harness.errors import CheckpointError

_DTYPES: dict[str, type[np.generic]] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": np.uint16,
    "I8": np.int8,
    "U8": np.uint8,
}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"}
_INTEGERS = ("I8", "U8")


class TensorFiles:
    """The tensors of some safetensors files, float ones only unless `integers`.

    Opening reads the headers only; raises CheckpointError where one is bad.
    """

    def __init__(self, files: Iterable[Path], *, integers: bool = False) -> None:
        self._integers = integers
        self._where: dict[str, tuple[Path, int, dict[str, Any]]] = {}
        for path in files:
            header = read_header(path)
            with path.open("rb") as file:
                start = 8 + int.from_bytes(file.read(8), "little")
            for name, entry in header.items():
                self._where[name] = (path, start, entry)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from its header."""
        return tuple(int(extent) for extent in self._entry(name)[2]["shape"])

    def dtype(self, name: str) -> str:
        """The stored dtype: float64, float32, float16, bfloat16, int8 or uint8.

        Raises CheckpointError for any other, and for integers where none are meant to be.
        """
        path, _, entry = self._entry(name)
        if entry["dtype"] not in _NAMES or (entry["dtype"] in _INTEGERS and not self._integers):
            raise CheckpointError(f"{path}: {name} is of dtype {entry['dtype']}", "give a float checkpoint")
        return _NAMES[entry["dtype"]]

    def values(self, name: str, index: Any = slice(None)) -> NDArray[Any]:
        """The values of a tensor, or of the rows that `index` chooses; bfloat16 is widened to float32, which is exact.

        Raises CheckpointError when there is no such tensor, or its dtype is not one of `dtype`'s.
        """
        return _widened(self.mapped(name)[index], self.dtype(name))

    def rows(self, name: str, start: int, count: int) -> TensorRows:
        """Some rows of a tensor, to be read when they are asked for. Raises CheckpointError, see `values`."""
        return TensorRows(self.mapped(name)[start : start + count], self.dtype(name))

    def mapped(self, name: str) -> NDArray[Any]:
        """A tensor as it is stored, bfloat16 as uint16, mapped from its file. What is written into it stays in memory.

        Raises CheckpointError, see `values`.
        """
        self.dtype(name)
        path, start, entry = self._entry(name)
        stored = np.dtype(_DTYPES[entry["dtype"]])
        begin, end = entry["data_offsets"]
        if end - begin != int(np.prod(entry["shape"], dtype=np.float64)) * stored.itemsize:
            raise CheckpointError(f"{path}: {name} has {end - begin} bytes for shape {entry['shape']}", "get it again")
        if begin == end:  # an empty map cannot be made
            return np.zeros(entry["shape"], dtype=stored)
        return np.memmap(path, stored, "c", offset=start + begin, shape=tuple(entry["shape"]))

    def _entry(self, name: str) -> tuple[Path, int, dict[str, Any]]:
        if name not in self._where:
            raise CheckpointError(f"there is no tensor {name}", "download the checkpoint again")
        return self._where[name]


class TensorRows:
    """Rows of a tensor that are read in float64 when they are indexed: all of a vocabulary's would fill the memory.

    `divisor`: `[K]`, what each column is divided by.
    """

    def __init__(self, mapped: NDArray[Any], dtype: str, divisor: NDArray[np.float64] | None = None) -> None:
        self._mapped, self._dtype, self._divisor = mapped, dtype, divisor

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and columns where it is a matrix."""
        return tuple(self._mapped.shape)

    def over(self, divisor: NDArray[Any]) -> TensorRows:
        """The same rows with each column divided by a number of its own."""
        return TensorRows(self._mapped, self._dtype, divisor.astype(np.float64))

    def __getitem__(self, index: int | np.integer[Any] | slice | NDArray[Any]) -> NDArray[np.float64]:
        found = np.asarray(_widened(self._mapped[index], self._dtype), dtype=np.float64)
        return found if self._divisor is None else np.asarray(found / self._divisor)


def _widened(stored: NDArray[Any], dtype: str) -> NDArray[Any]:
    """Values as floats: bfloat16 is stored as uint16."""
    chosen = np.asarray(stored)
    return (chosen.astype(np.uint32) << 16).view(np.float32) if dtype == "bfloat16" else chosen
