"""How values cross between controller and worker: builtins as they are, arrays by file or by channel.

A large array is written to the scratch folder, memory-mapped by the receiver and unlinked, so that it
is never copied through a pipe. Small ones, and all of them where the two do not share a disk or the disk
is full, travel as bytes in the message.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.errors import ResourceError

_BY_CHANNEL_BYTES = 1 << 18
# A message of execnet is shorter than 2 GiB; this leaves room for what is around the array.
_MESSAGE_BYTES = (1 << 31) - (1 << 20)
_ARRAY = "__array__"
_serial = itertools.count()


def pack(value: Any, scratch: Path | None) -> Any:
    """Turn an array or a Struct into builtins; `scratch` is the shared folder, None where there is none."""
    if isinstance(value, np.ndarray):
        return _pack_array(value, scratch)
    if isinstance(value, dict):
        return {key: pack(item, scratch) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(item, scratch) for item in value]
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def unpack(value: Any) -> Any:
    """The inverse of `pack` for arrays; Structs stay builtins and are converted by who knows their type."""
    if isinstance(value, dict):
        if _ARRAY in value:
            return _unpack_array(value)
        return {key: unpack(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unpack(item) for item in value]
    return value


def _pack_array(array: NDArray[Any], scratch: Path | None) -> dict[str, Any]:
    if scratch is None or array.nbytes < _BY_CHANNEL_BYTES:
        return _in_message(array)
    path = scratch / f"{os.getpid()}-{next(_serial)}.npy"
    try:
        np.save(path, array, allow_pickle=False)
    except OSError as error:  # a full disk, of which NumPy tells without the errno
        with contextlib.suppress(OSError):
            path.unlink()
        if array.nbytes > _MESSAGE_BYTES:
            raise ResourceError(
                f"an array of {array.nbytes} bytes fits neither into {scratch} ({error}) nor into a message",
                "free space, or set TMPDIR (TEMP on Windows) to a folder on another disk",
            ) from None
        return _in_message(array)
    return {_ARRAY: str(path)}


def _in_message(array: NDArray[Any]) -> dict[str, Any]:
    content = np.ascontiguousarray(array).tobytes()
    return {_ARRAY: content, "dtype": array.dtype.str, "shape": list(array.shape)}


def _unpack_array(value: dict[str, Any]) -> NDArray[Any]:
    content = value[_ARRAY]
    if isinstance(content, bytes):
        return np.frombuffer(content, dtype=value["dtype"]).reshape(value["shape"])
    # POSIX keeps a mapping alive without its name; Windows would keep the file, so there it is read.
    found: NDArray[Any] = np.load(content, mmap_mode=None if sys.platform == "win32" else "r", allow_pickle=False)
    with contextlib.suppress(PermissionError):
        Path(content).unlink()
    return found
