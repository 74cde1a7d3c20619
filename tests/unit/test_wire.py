from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from numpy.typing import NDArray

from harness import wire
from harness.errors import ResourceError
from harness.target import DeviceKind, Evidence, EvidenceLevel

_DTYPES = st.sampled_from(["?", "i1", "u1", "<i2", ">i4", "<i8", "u8", "<f2", "<f4", ">f4", "<f8", "<c8"])
_ARRAYS = _DTYPES.flatmap(
    lambda dtype: arrays(np.dtype(dtype), array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
_BUILTINS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


@given(_ARRAYS)
def test_an_array_survives_the_channel(array: NDArray[Any]) -> None:
    packed = wire.pack(array, None)
    assert isinstance(packed["__array__"], bytes)
    assert _same(wire.unpack(packed), array)


@given(_ARRAYS)
def test_a_small_array_goes_by_channel_though_there_is_a_scratch_folder(array: NDArray[Any]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        assert _same(wire.unpack(wire.pack(array, Path(scratch))), array)
        assert not list(Path(scratch).iterdir())


@given(_DTYPES, st.lists(st.integers(1, 3), max_size=2), st.integers(0, 2**16))
def test_a_large_array_survives_a_file_that_is_gone_once_it_was_read(dtype: str, shape: list[int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    array = generator.integers(0, 2, size=(*shape, 1 << 18)).astype(dtype)
    with tempfile.TemporaryDirectory() as scratch:
        packed = wire.pack(array, Path(scratch))
        assert Path(packed["__array__"]).parent == Path(scratch)
        found = wire.unpack(packed)
        assert _same(found, array)
        del found
        assert not list(Path(scratch).iterdir())


@pytest.mark.parametrize("by_file", [True, False])
def test_views_arrive_as_they_look(tmp_path: Path, by_file: bool) -> None:
    base = np.arange(1 << 19, dtype=np.float32).reshape(512, 1024)
    for view in (base[::2], base.T, base[:, ::-1], np.asfortranarray(base)):
        found = wire.unpack(wire.pack(view, tmp_path if by_file else None))
        np.testing.assert_array_equal(found, view)


def test_large_arrays_do_not_go_through_the_channel_in_the_values_that_hold_them(tmp_path: Path) -> None:
    large, small = np.ones((1 << 16, 2)), np.arange(3)
    packed = wire.pack({"a": [large, small], "b": {"c": large}}, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    found = wire.unpack(packed)
    np.testing.assert_array_equal(found["a"][0], large)
    np.testing.assert_array_equal(found["a"][1], small)
    np.testing.assert_array_equal(found["b"]["c"], large)


@given(_BUILTINS)
def test_builtins_stay_as_they_are(value: Any) -> None:
    assert wire.unpack(wire.pack(value, None)) == value


@given(st.binary(max_size=20))
def test_bytes_stay_bytes(value: bytes) -> None:
    assert wire.unpack(wire.pack({"content": value}, None)) == {"content": value}


def test_a_struct_becomes_builtins_that_convert_back() -> None:
    evidence = Evidence(EvidenceLevel.MEASURED, (DeviceKind.NPU,), ("NPU",), "busy counter")
    packed = wire.pack([evidence], None)
    assert msgspec.convert(wire.unpack(packed)[0], Evidence) == evidence


def test_objects_are_not_pickled(tmp_path: Path) -> None:
    array = np.empty(1 << 16, dtype=object)
    for scratch in (tmp_path, None):
        with pytest.raises((ValueError, TypeError)):
            wire.unpack(wire.pack(array, scratch))


def test_on_a_full_disk_an_array_goes_by_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_half(path: Path, *_: Any, **__: Any) -> None:
        path.write_bytes(b"half")
        raise OSError("262144 requested and 4096 written")  # NumPy's words for it

    monkeypatch.setattr(np, "save", write_half)
    array = np.arange(1 << 17, dtype=np.float32).reshape(2, -1)[:, ::2]
    packed = wire.pack(array, tmp_path)
    assert isinstance(packed["__array__"], bytes)
    assert _same(wire.unpack(packed), array)
    assert not list(tmp_path.iterdir())


def test_an_array_that_fits_nowhere_is_an_error_with_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_nothing(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", write_nothing)
    monkeypatch.setattr(wire, "_MESSAGE_BYTES", 1 << 18)
    with pytest.raises(ResourceError, match="No space left") as caught:
        wire.pack(np.zeros(1 << 17, dtype=np.float32), tmp_path)
    assert "TMPDIR" in caught.value.remedy
