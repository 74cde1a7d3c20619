"""DXGI's adapters: descriptions laid out as the Windows SDK does, and the calls on stand-ins for COM objects."""

from __future__ import annotations

import ctypes
import struct
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import dxgi
from harness.dxgi import Adapter, adapters_of, hardware_adapters, list_adapters, parse_adapter

E_FAIL = -0x7FFFBFFB  # 0x80004005
NOT_FOUND = 0x887A0002 - (1 << 32)


def description(
    text: str = "Intel(R) Arc(TM) Graphics",
    vendor: int = 0x8086,
    device: int = 0x7D55,
    dedicated: int = 128 << 20,
    luid: tuple[int, int] = (0, 74918),
    flags: int = 0,
) -> bytes:
    """A DXGI_ADAPTER_DESC1, field by field at the SDK's offsets and not by the parser's format."""
    data = bytearray(312)
    encoded = text.encode("utf-16-le")
    data[: len(encoded)] = encoded
    high, low = luid
    struct.pack_into("<II", data, 256, vendor, device)
    struct.pack_into("<II", data, 264, 0x11112222, 8)
    struct.pack_into("<QQQ", data, 272, dedicated, 1, 16 << 30)
    struct.pack_into("<Ii", data, 296, low, high)
    struct.pack_into("<I", data, 304, flags)
    return bytes(data)


@given(
    text=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=63),
    ids=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)),
    dedicated=st.integers(0, 2**63),
    luid=st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 2**32 - 1)),
)
def test_a_description_is_read_as_it_was_laid_out(
    text: str, ids: tuple[int, int], dedicated: int, luid: tuple[int, int]
) -> None:
    vendor, device = ids
    adapter = parse_adapter(3, description(text, vendor, device, dedicated, luid, flags=1))
    software = ids == (0x1414, 0x8C)
    assert adapter == Adapter(3, text, vendor, device, dedicated, f"{luid[0]}:{luid[1]}", software)


@pytest.mark.parametrize(
    "data", [description(flags=2), description("Microsoft Basic Render Driver", vendor=0x1414, device=0x8C)]
)
def test_software_adapters_are_known_by_flag_or_by_being_the_basic_render_driver(data: bytes) -> None:
    assert parse_adapter(0, data).software


@pytest.mark.parametrize("size", [0, 292, 311, 313])
def test_a_description_of_another_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="312"):
        parse_adapter(0, bytes(size))


METHOD = getattr(ctypes, "WINFUNCTYPE", ctypes.CFUNCTYPE)


class ComObject:
    """A COM object with Release and one more method, at a place of its table; every other place is empty."""

    def __init__(self, place: int, result: Any, arguments: tuple[Any, ...], function: Any) -> None:
        self.released = 0
        table = (ctypes.c_void_p * 16)()
        release = METHOD(ctypes.c_uint32, ctypes.c_void_p)(self._release)
        method = METHOD(result, ctypes.c_void_p, *arguments)(function)
        table[2] = ctypes.cast(release, ctypes.c_void_p).value
        table[place] = ctypes.cast(method, ctypes.c_void_p).value
        self._keep = (release, method, table)
        self._object = ctypes.c_void_p(ctypes.addressof(table))
        self.pointer = ctypes.c_void_p(ctypes.addressof(self._object))

    def _release(self, _this: int) -> int:
        self.released += 1
        return 0


def fake_adapter(data: bytes, status: int = 0) -> ComObject:
    def get_desc1(_this: int, target: int) -> int:
        ctypes.memmove(target, data, len(data))
        return status

    return ComObject(10, ctypes.c_int32, (ctypes.c_void_p,), get_desc1)


def fake_factory(*adapters: ComObject, end: int = NOT_FOUND) -> ComObject:
    def enum_adapters1(_this: int, index: int, target: Any) -> int:
        if index >= len(adapters):
            return end
        target[0] = adapters[index].pointer.value
        return 0

    return ComObject(12, ctypes.c_int32, (ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)), enum_adapters1)


def test_all_adapters_are_listed_in_order_and_let_go() -> None:
    adapters = [
        fake_adapter(description("NVIDIA GeForce RTX 4070", 0x10DE, luid=(0, 7))),
        fake_adapter(description(luid=(-1, 9))),
        fake_adapter(description("Microsoft Basic Render Driver", 0x1414, 0x8C)),
    ]
    factory = fake_factory(*adapters)
    found = adapters_of(factory.pointer)
    assert [(adapter.index, adapter.luid, adapter.software) for adapter in found] == [
        (0, "0:7", False),
        (1, "-1:9", False),
        (2, "0:74918", True),
    ]
    assert [adapter.released for adapter in adapters] == [1, 1, 1]
    assert factory.released == 0, "the factory is the caller's"


def test_a_failing_call_is_an_error_with_its_number() -> None:
    with pytest.raises(OSError, match="EnumAdapters1 failed with HRESULT 0x80004005"):
        adapters_of(fake_factory(end=E_FAIL).pointer)
    adapter = fake_adapter(description(), status=E_FAIL)
    with pytest.raises(OSError, match="GetDesc1 failed with HRESULT 0x80004005"):
        adapters_of(fake_factory(adapter).pointer)
    assert adapter.released == 1


def test_hardware_adapters_keep_their_index_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [parse_adapter(0, description(flags=2)), parse_adapter(1, description())]
    monkeypatch.setattr(dxgi, "list_adapters", lambda: listed)
    assert hardware_adapters() == listed[1:]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has DXGI")
def test_elsewhere_than_on_windows_there_is_no_dxgi() -> None:
    with pytest.raises(OSError, match="Windows"):
        list_adapters()
