"""OpenVINO's devices: which are there, what they say of themselves, and how much of their memory is in use."""

from __future__ import annotations

import contextlib
from typing import Any

from harness.backend import DeviceReport
from harness.backends import openvino_npuw as npuw
from harness.target import Unavailable

_DEVICE_PROPERTIES = (
    "FULL_DEVICE_NAME",
    "DEVICE_ARCHITECTURE",
    "DEVICE_TYPE",
    "DEVICE_LUID",
    "DEVICE_PCI_INFO",
    "NPU_DRIVER_VERSION",
    "NPU_COMPILER_VERSION",
    "NPU_MAX_TILES",
    "NPU_DEVICE_TOTAL_MEM_SIZE",
    "GPU_DRIVER_VERSION",
    "GPU_DEVICE_TOTAL_MEM_SIZE",
    "GPU_EXECUTION_UNITS_COUNT",
)
_REMEDIES = {
    "gpu": "needs an Intel GPU and its compute runtime: on Linux intel-opencl-icd and membership of the render group, "
    "on Windows the graphics driver",
    "npu": "needs an Intel NPU and its driver: on Linux intel-level-zero-npu, intel-driver-compiler-npu and membership "
    "of the render group, on Windows the NPU driver",
}


def find(openvino: Any, core: Any, device: str) -> DeviceReport | Unavailable:
    """A device by its name here, or why it is not there; `openvino` is the module, `core` its core."""
    release = openvino.__version__.split("-")[0]
    if device == npuw.REHEARSAL:
        return _rehearsal(core, release)
    listed = list(core.available_devices)
    wanted = device.upper()
    present = any(name == wanted or (name.startswith(f"{wanted}.") and "." not in wanted) for name in listed)
    if not present:
        base = device.split(".")[0]
        return Unavailable(
            f"OpenVINO {release} lists {', '.join(listed)} and no {wanted}",
            _REMEDIES.get(base, "name a device that is listed"),
        )
    properties = {}
    for key in _DEVICE_PROPERTIES:
        with contextlib.suppress(Exception):
            properties[key] = str(core.get_property(wanted, key))
    return DeviceReport(properties.get("FULL_DEVICE_NAME", wanted), properties)


def _rehearsal(core: Any, release: str) -> DeviceReport | Unavailable:
    try:
        plugin = core.get_versions("NPU")
    except Exception as error:  # noqa: BLE001 - the runtime raises RuntimeError of many origins
        return Unavailable(f"OpenVINO {release} has no NPU plugin: {error}", "python -m pip install openvino")
    build = ", ".join(str(version.build_number) for version in plugin.values())
    return DeviceReport(f"NPUW on {core.get_property('CPU', 'FULL_DEVICE_NAME')}", {"NPU plugin": build})


def memory_in_use(core: Any, device: str) -> int | None:
    """Bytes in use on a GPU or NPU, None where the plugin tells of none. Never yet run with either.

    `NPU_DEVICE_ALLOC_MEM_SIZE` is a number; `GPU_MEMORY_STATISTICS` one for each kind of memory of this process.
    """
    with contextlib.suppress(Exception):  # each driver refuses in its own way
        if device.startswith("npu") and device != npuw.REHEARSAL:
            return int(core.get_property(device.upper(), "NPU_DEVICE_ALLOC_MEM_SIZE"))
        if device.startswith("gpu"):
            return sum(map(int, core.get_property(device.upper(), "GPU_MEMORY_STATISTICS").values()))
    return None
