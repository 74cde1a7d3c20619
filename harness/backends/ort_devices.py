"""ONNX Runtime GenAI's devices: which build is installed, and which devices it can use."""

from __future__ import annotations

from harness import dxgi
from harness.backend import DeviceReport, versions_of
from harness.target import Unavailable

# The builds that provide the module; only one of them can be installed in an interpreter.
BUILDS = ("onnxruntime-genai", "onnxruntime-genai-winml", "onnxruntime-genai-directml", "onnxruntime-genai-cuda")
_REMEDIES = {
    "dml": "needs Windows with a DirectX 12 GPU, and an interpreter of its own that is found by itself: "
    "python -m tox -e ort-genai-winml",
    "cuda": "needs an NVIDIA GPU and, in an interpreter of its own, python -m pip install onnxruntime-genai-cuda",
}


def find(device: str) -> DeviceReport | Unavailable:
    """A device by its name here, or why it is not there."""
    base = device.split(".")[0]
    build = next(iter(versions_of(BUILDS)))
    if base == "cpu":
        return DeviceReport("cpu", {"build": build})
    provides = {"dml": ("onnxruntime-genai-winml", "onnxruntime-genai-directml"), "cuda": ("onnxruntime-genai-cuda",)}
    if build not in provides.get(base, ()):
        return Unavailable(f"{build} has no {base} execution provider", _REMEDIES.get(base, "name another device"))
    if base == "dml":
        return _find_adapter(device, build)
    return _ask_runtime(base, build)


def _find_adapter(device: str, build: str) -> DeviceReport | Unavailable:
    """DirectML's adapters, before a session is made: `dml.1` is the second, `dml` the one it chooses itself."""
    try:
        adapters = dxgi.hardware_adapters()
    except OSError as error:
        return Unavailable(f"the graphics adapters cannot be listed: {error}", _REMEDIES["dml"])
    index = int(device.partition(".")[2] or 0)
    if index >= len(adapters):
        found = ", ".join(adapter.name for adapter in adapters) or "none"
        return Unavailable(f"{device} is not among the hardware adapters ({found})", _REMEDIES["dml"])
    names = ", ".join(adapter.name for adapter in adapters)
    if device == "dml" and len(adapters) > 1:
        return DeviceReport(f"the adapter that DirectML prefers of {names}", {"build": build})
    adapter = adapters[index]
    properties = {"build": build, "luid": adapter.luid, "dedicated_bytes": str(adapter.dedicated_bytes)}
    return DeviceReport(adapter.name, properties)


def _ask_runtime(base: str, build: str) -> DeviceReport | Unavailable:
    import onnxruntime_genai as og

    # is_*_available answers True for providers that then fail to load, so only False is believed here:
    # a load that raises is an ERROR(load) with the runtime's own words.
    if not getattr(og, f"is_{base}_available")():
        return Unavailable(f"{build} finds no {base} device", _REMEDIES[base])
    return DeviceReport(base, {"build": build})
