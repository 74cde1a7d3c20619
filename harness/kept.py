"""Answers of a reference, kept: the last ones in memory, and in files what took longer to compute than to read."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from harness.cache import mark_used

Arrays = dict[str, NDArray[Any]]

# Answers kept in memory: the probes of an inference are asked for once a candidate, a prompt's a few times in a row.
_HELD = 8
_HELD_BYTES = 1 << 30


class Kept:
    """Arrays by name. A file that cannot be read is as none; a full disk keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        mark_used(folder)
        self._held: dict[str, Arrays] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._held or self._path(name).is_file()

    def get(self, name: str) -> Arrays | None:
        """What was put under a name, None where it is gone."""
        if name not in self._held:
            found = _read(self._path(name))
            if found is None:
                return None
            self._hold(name, found)
        return self._held[name]

    def put(self, name: str, found: Arrays, *, on_disk: bool) -> Arrays:
        """Keep arrays under a name, and give them back as they are kept."""
        contiguous = {key: np.ascontiguousarray(value) for key, value in found.items()}
        if on_disk:
            _write(self._path(name), contiguous)
        self._hold(name, contiguous)
        return contiguous

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.safetensors"

    def _hold(self, name: str, found: Arrays) -> None:
        self._held = _newest({**self._held, name: found})


def _newest(held: dict[str, Arrays]) -> dict[str, Arrays]:
    """The last answers that may be held together; the very last one whatever its size, since it was asked for."""
    left, size = list(held.items())[-_HELD:], 0
    for first in range(len(left) - 1, -1, -1):
        size += sum(array.nbytes for array in left[first][1].values())
        if size > _HELD_BYTES:
            return dict(left[first + 1 :] or left[-1:])
    return dict(left)


def _read(path: Path) -> Arrays | None:
    try:
        with safe_open(path, framework="np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no mapping
    except (OSError, SafetensorError):
        return None


def _write(path: Path, found: Arrays) -> None:
    partial = path.with_suffix(f".partial-{os.getpid()}")
    with contextlib.suppress(OSError, SafetensorError):
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(found, partial)
        partial.replace(path)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
