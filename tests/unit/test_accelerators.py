"""Accelerators as Linux's sysfs and Windows' PowerShell describe them, on recorded and on broken answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.accelerators import Accelerator, accelerators, parse_windows, read_linux
from harness.target import DeviceKind

needs_links = pytest.mark.skipif(sys.platform == "win32", reason="makes symbolic links as sysfs has them")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n", encoding="utf-8")


def plant(root: Path, name: str, driver: str | None, vendor: str = "0x8086", device: str = "0x7d1d") -> Path:
    """A device with its links, as the kernel lays them out: class/<kind>/<name>/device/driver -> drivers/<driver>."""
    folder = root / "sys/class" / ("accel" if name.startswith("accel") else "drm") / name
    write(folder / "device/vendor", vendor)
    write(folder / "device/device", device)
    if driver is not None:
        bus = root / "sys/bus/pci/drivers" / driver
        bus.mkdir(parents=True, exist_ok=True)
        (folder / "device/driver").symlink_to(bus)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "proc/sys/kernel/osrelease", "6.11.0-generic")
    return tmp_path


@needs_links
def test_an_npu_is_read_with_its_generation_driver_and_firmware(root: Path) -> None:
    plant(root, "accel0", "intel_vpu", device="0x643e")
    write(root / "sys/kernel/debug/accel/0/fw_version", "20240916*MTL_CLIENT_SILICON")
    expected = Accelerator(
        DeviceKind.NPU, "Intel NPU 4000 (Lunar Lake)", "intel_vpu", "6.11.0-generic", "20240916*MTL_CLIENT_SILICON"
    )
    assert list(read_linux(root)) == [expected]


@needs_links
@pytest.mark.parametrize(
    ("driver", "vendor", "name"), [("i915", "0x8086", "Intel"), ("xe", "0x8086", "Intel"), ("amdgpu", "0x1002", "AMD")]
)
def test_a_gpu_is_read_with_its_vendor_and_driver(root: Path, driver: str, vendor: str, name: str) -> None:
    plant(root, "card1", driver, vendor, "0x1234")
    assert list(read_linux(root)) == [Accelerator(DeviceKind.GPU, f"{name} GPU 0x1234", driver, "6.11.0-generic")]


@needs_links
def test_a_driver_from_outside_the_kernel_has_its_own_version(root: Path) -> None:
    plant(root, "card0", "nvidia", "0x10de")
    write(root / "sys/module/nvidia/version", "570.86.15")
    assert [(found.driver, found.driver_version) for found in read_linux(root)] == [("nvidia", "570.86.15")]


@needs_links
def test_connectors_and_render_nodes_are_no_devices(root: Path) -> None:
    plant(root, "card0", "i915")
    for name in ("card0-HDMI-A-1", "card0-eDP-1", "renderD128", "controlD64"):
        plant(root, name, "i915")
    (root / "sys/class/drm/card7").mkdir()  # simpledrm: a screen without a device behind it
    write(root / "sys/class/drm/version", "drm 1.1.0 20060810")
    assert len(list(read_linux(root))) == 1


@needs_links
def test_npus_come_first_and_all_of_a_kind_are_found(root: Path) -> None:
    for name in ("card0", "card1", "accel0", "accel1"):
        plant(root, name, "intel_vpu" if name.startswith("accel") else "xe")
    assert [found.kind.value for found in read_linux(root)] == ["npu", "npu", "gpu", "gpu"]


@needs_links
@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "input/output error")])
def test_firmware_that_only_root_may_read_is_left_empty(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    plant(root, "accel0", "intel_vpu")
    read_text = Path.read_text

    def refuse(path: Path, *args: Any, **kwargs: Any) -> str:
        if "debug" in path.parts:
            raise error
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)
    assert [(found.name, found.firmware) for found in read_linux(root)] == [("Intel NPU 3720 (Meteor Lake)", "")]


@needs_links
def test_a_device_without_a_driver_is_listed_as_such(root: Path) -> None:
    plant(root, "accel0", None)
    (plant(root, "card0", None) / "device/driver").symlink_to(root / "gone")
    assert [found.driver for found in read_linux(root)] == ["no driver", "no driver"]


@needs_links
def test_an_unknown_vendor_and_device_keep_their_numbers(root: Path) -> None:
    plant(root, "accel0", "mystery", "0xbeef", "0xcafe")
    plant(root, "card0", "mystery", "0xbeef", "0x7d1d")  # an NPU's number on a GPU says nothing
    assert [found.name for found in read_linux(root)] == ["0xbeef NPU 0xcafe", "0xbeef GPU 0x7d1d"]


def test_a_system_without_accelerators_has_none(tmp_path: Path) -> None:
    assert list(read_linux(tmp_path)) == []


@needs_links
def test_bytes_that_are_no_text_are_replaced(root: Path) -> None:
    plant(root, "accel0", "intel_vpu")
    write(root / "sys/kernel/debug/accel/0/fw_version", "")
    (root / "sys/kernel/debug/accel/0/fw_version").write_bytes(b"fw\xff\n")
    assert [found.firmware for found in read_linux(root)] == ["fw\ufffd"]


NPU = {
    "DeviceClass": "COMPUTEACCELERATOR",
    "DeviceName": "Intel(R) AI Boost",
    "DriverVersion": "32.0.100.3104",
    "DriverProviderName": "Intel Corporation",
    "DeviceID": "PCI\\VEN_8086&DEV_643E",
}
GPU = {**NPU, "DeviceClass": "DISPLAY", "DeviceName": "Intel(R) Arc(TM) 140V GPU"}
READ_NPU = Accelerator(DeviceKind.NPU, "Intel(R) AI Boost", "Intel Corporation", "32.0.100.3104")
READ_GPU = Accelerator(DeviceKind.GPU, "Intel(R) Arc(TM) 140V GPU", "Intel Corporation", "32.0.100.3104")


def test_powershell_prints_one_device_as_an_object_and_several_as_a_list() -> None:
    assert parse_windows(json.dumps(NPU) + "\r\n") == (READ_NPU,)
    assert parse_windows(json.dumps([GPU, NPU])) == (READ_GPU, READ_NPU)


def test_the_class_of_a_device_is_read_in_either_case() -> None:
    assert [found.kind for found in parse_windows(json.dumps({**NPU, "DeviceClass": "ComputeAccelerator"}))] == [
        DeviceKind.NPU
    ]


@pytest.mark.parametrize(
    "text", ["", "\r\n", "Get-CimInstance : Access denied", "{", "null", "7", '"text"', "[null, 3]"]
)
def test_an_answer_without_devices_has_none(text: str) -> None:
    assert parse_windows(text) == ()


def test_fields_that_windows_leaves_empty_are_empty() -> None:
    row = {**GPU, "DriverVersion": None, "DriverProviderName": None}
    assert parse_windows(json.dumps(row)) == (Accelerator(DeviceKind.GPU, "Intel(R) Arc(TM) 140V GPU", ""),)
    assert parse_windows(json.dumps([{**GPU, "DeviceName": None}, NPU])) == (READ_NPU,)


_SCALARS = st.none() | st.booleans() | st.integers() | st.text()
_ROWS = st.dictionaries(st.sampled_from([*NPU, "other"]), _SCALARS | st.lists(_SCALARS, max_size=2))


@given(st.text() | (st.lists(_ROWS | _SCALARS, max_size=3) | _ROWS).map(json.dumps))
def test_no_answer_is_a_crash_and_every_device_has_a_name(text: str) -> None:
    assert all(found.name for found in parse_windows(text))


def ask_windows(monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception) -> tuple[tuple[Accelerator, ...], str]:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        if isinstance(answer, Exception):
            raise answer
        return subprocess.CompletedProcess(command, 0, stdout=answer)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(subprocess, "run", run)
    found: tuple[tuple[Accelerator, ...], str] = accelerators.__wrapped__()
    return found


def test_windows_is_asked_by_powershell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask_windows(monkeypatch, json.dumps(NPU).encode()) == ((READ_NPU,), "")


@pytest.mark.parametrize(
    "answer", [b"", b"\xff\xfe", FileNotFoundError("powershell"), subprocess.TimeoutExpired("powershell", 60)]
)
def test_a_windows_that_does_not_answer_has_no_accelerators(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | Exception
) -> None:
    found, unread = ask_windows(monkeypatch, answer)
    assert found == ()
    assert ("PowerShell cannot be asked" in unread) is isinstance(answer, Exception)


def test_another_system_says_that_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert accelerators.__wrapped__() == ((), "no way to ask darwin is known")
