"""Graphics adapters of Windows, from DXGI, by COM calls through ctypes. Not yet run on Windows.

An adapter's LUID is its name for Windows, until it restarts: performance counters, D3D12 and ONNX Runtime GenAI's
DirectML provider (option `luid`, two decimal numbers `high:low`, src/dml/session_options.cpp) know it by that.
That provider's `device_index` is another thing than the index here: it counts adapters from the most performant
down, up to the first software one (EnumerateAdapters in src/dml/dml_helpers.cpp). Use the LUID.

Layouts and the order of the methods are those of dxgi.h in the Windows SDK.
"""

from __future__ import annotations

import ctypes
import struct
import sys
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

if sys.platform == "win32":
    _METHOD = ctypes.WINFUNCTYPE
else:
    _METHOD = ctypes.CFUNCTYPE  # For tests: 64-bit processors have one convention for both.

_IID_FACTORY1 = uuid.UUID("770aae78-f26f-4dba-a829-253c83d1b387")
# Places in the tables of methods: three of IUnknown, four of IDXGIObject, then five of IDXGIFactory before those
# of IDXGIFactory1, and three of IDXGIAdapter before those of IDXGIAdapter1.
_RELEASE = 2
_FACTORY1_ENUM_ADAPTERS1 = 12
_ADAPTER1_GET_DESC1 = 10
_NOT_FOUND = 0x887A0002

# DXGI_ADAPTER_DESC1 of a 64-bit process: WCHAR Description[128]; UINT vendor, device, subsystem, revision;
# SIZE_T dedicated video, dedicated system, shared system memory; LUID {DWORD low; LONG high}; UINT flags; padding.
_DESC1 = struct.Struct("<256s4I3QIiI4x")
_FLAG_SOFTWARE = 2
_BASIC_RENDER_DRIVER = (0x1414, 0x8C)


class Adapter(msgspec.Struct, frozen=True):
    """One adapter. `index` counts all adapters in DXGI's order, as ONNX Runtime's `device_id` does.

    `dedicated_bytes` is its own video memory; `luid` is `high:low` in decimal; `software` adapters compute on
    the processor.
    """

    index: int
    name: str
    vendor_id: int
    device_id: int
    dedicated_bytes: int
    luid: str
    software: bool


def parse_adapter(index: int, description: bytes) -> Adapter:
    """Read a DXGI_ADAPTER_DESC1 of a 64-bit process, 312 bytes. Raises ValueError where the size is another."""
    if len(description) != _DESC1.size:
        raise ValueError(f"a DXGI_ADAPTER_DESC1 has {_DESC1.size} bytes, not {len(description)}")
    text, vendor, device, _, _, dedicated, _, _, low, high, flags = _DESC1.unpack(description)
    name = text.decode("utf-16-le", errors="replace").split("\0")[0]
    software = bool(flags & _FLAG_SOFTWARE) or (vendor, device) == _BASIC_RENDER_DRIVER
    return Adapter(index, name, vendor, device, dedicated, f"{high}:{low}", software)


def list_adapters() -> list[Adapter]:
    """Every adapter of this machine, in DXGI's order. Raises OSError where DXGI fails or this is not Windows."""
    if sys.platform != "win32":
        raise OSError("DXGI is a part of Windows")
    create = ctypes.WinDLL("dxgi").CreateDXGIFactory1
    create.argtypes = [ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p)]
    create.restype = ctypes.c_int32
    factory = ctypes.c_void_p()
    _check("CreateDXGIFactory1", create(_IID_FACTORY1.bytes_le, ctypes.pointer(factory)))
    try:
        return adapters_of(factory)
    finally:
        _release(factory)


def hardware_adapters() -> list[Adapter]:
    """The adapters that are hardware. Raises OSError as `list_adapters` does."""
    return [adapter for adapter in list_adapters() if not adapter.software]


def adapters_of(factory: ctypes.c_void_p) -> list[Adapter]:
    """Every adapter that an IDXGIFactory1 lists; the factory stays the caller's. Raises OSError where it fails."""
    enumerate_adapters = _method(
        factory, _FACTORY1_ENUM_ADAPTERS1, ctypes.c_int32, ctypes.c_uint32, ctypes.POINTER(ctypes.c_void_p)
    )
    adapters: list[Adapter] = []
    while True:
        adapter = ctypes.c_void_p()
        status = enumerate_adapters(len(adapters), ctypes.pointer(adapter))
        if status & 0xFFFFFFFF == _NOT_FOUND:
            return adapters
        _check("IDXGIFactory1::EnumAdapters1", status)
        try:
            adapters.append(_describe(len(adapters), adapter))
        finally:
            _release(adapter)


def _describe(index: int, adapter: ctypes.c_void_p) -> Adapter:
    description = ctypes.create_string_buffer(_DESC1.size)
    get_description = _method(adapter, _ADAPTER1_GET_DESC1, ctypes.c_int32, ctypes.c_void_p)
    _check("IDXGIAdapter1::GetDesc1", get_description(ctypes.cast(description, ctypes.c_void_p)))
    return parse_adapter(index, description.raw)


def _method(instance: ctypes.c_void_p, place: int, result: Any, *arguments: Any) -> Callable[..., int]:
    """A method of a COM object, whose first field points to its table of methods."""
    table = ctypes.cast(instance, ctypes.POINTER(ctypes.POINTER(ctypes.c_void_p))).contents
    function = _METHOD(result, ctypes.c_void_p, *arguments)(table[place])

    def call(*values: Any) -> int:
        return int(function(instance, *values))

    return call


def _release(instance: ctypes.c_void_p) -> None:
    _method(instance, _RELEASE, ctypes.c_uint32)()


def _check(what: str, status: int) -> None:
    if status & 0x80000000:
        raise OSError(f"{what} failed with HRESULT 0x{status & 0xFFFFFFFF:08X}")
