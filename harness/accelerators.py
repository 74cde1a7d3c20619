"""Accelerators and their drivers as the operating system knows them, whether or not a runtime can use them.

Written from the kernel's documentation and Microsoft's; the readers are tested on recorded trees and outputs and
have not yet run on a machine with an NPU.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from harness.target import DeviceKind

# Signed drivers of the classes that Windows has for graphics and for NPUs.
_POWERSHELL = (
    "Get-CimInstance Win32_PnPSignedDriver | Where-Object { $_.DeviceClass -in 'DISPLAY', 'COMPUTEACCELERATOR' } | "
    "Select-Object DeviceClass, DeviceName, DriverVersion, DriverProviderName, DeviceID | ConvertTo-Json -Compress"
)
_POWERSHELL_SECONDS = 60.0
_VENDORS = {"0x8086": "Intel", "0x1002": "AMD", "0x10de": "NVIDIA", "0x1022": "AMD", "0x17cb": "Qualcomm"}
_NPU_ARCHITECTURES = {
    "0x7d1d": "NPU 3720 (Meteor Lake)",
    "0xad1d": "NPU 3720 (Arrow Lake)",
    "0x643e": "NPU 4000 (Lunar Lake)",
    "0xb03e": "NPU 5010 (Panther Lake)",
}


class Accelerator(msgspec.Struct, frozen=True):
    """One GPU or NPU. `driver_version` and `firmware` are in the system's own words, empty where unreadable."""

    kind: DeviceKind
    name: str
    driver: str
    driver_version: str = ""
    firmware: str = ""


@functools.cache
def accelerators() -> tuple[tuple[Accelerator, ...], str]:
    """The accelerators of this machine, and why the system could not be asked, empty where it could."""
    if sys.platform == "win32":
        text, unread = _ask_windows()
        return parse_windows(text), unread
    if sys.platform == "linux":
        return tuple(read_linux(Path("/"))), ""
    return (), f"no way to ask {sys.platform} is known"


def read_linux(root: Path) -> Iterator[Accelerator]:
    """NPUs below /sys/class/accel and GPUs below /sys/class/drm; `root` is for tests."""
    for folder in sorted((root / "sys/class/accel").glob("accel[0-9]*")):
        yield _read_linux(root, folder, DeviceKind.NPU)
    for folder in sorted((root / "sys/class/drm").glob("card[0-9]*")):
        if re.fullmatch(r"card\d+", folder.name) and (folder / "device/vendor").is_file():
            yield _read_linux(root, folder, DeviceKind.GPU)


def _read_linux(root: Path, folder: Path, kind: DeviceKind) -> Accelerator:
    vendor, device = _text(folder / "device/vendor"), _text(folder / "device/device")
    driver = _driver_name(folder / "device/driver")
    name = _NPU_ARCHITECTURES.get(device) if kind is DeviceKind.NPU else None
    # Drivers in the kernel's own tree have no version but the kernel's.
    version = _text(root / "sys/module" / driver / "version") or _text(root / "proc/sys/kernel/osrelease")
    firmware = _text(root / "sys/kernel/debug/accel" / folder.name.removeprefix("accel") / "fw_version")
    label = f"{_VENDORS.get(vendor, vendor)} {name or f'{kind.value.upper()} {device}'}"
    return Accelerator(kind, label, driver, version, firmware)


def _driver_name(link: Path) -> str:
    with contextlib.suppress(OSError):
        return link.resolve(strict=True).name
    return "no driver"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # absent, or for root only
        return ""


def _ask_windows() -> tuple[str, str]:
    """What PowerShell printed, and what is in the way where it did not."""
    command = ["powershell", "-NoProfile", "-NonInteractive", "-Command", _POWERSHELL]
    try:
        found = subprocess.run(
            command, capture_output=True, check=False, timeout=_POWERSHELL_SECONDS, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return "", f"PowerShell cannot be asked: {error}"
    unread = f"PowerShell ended with status {found.returncode}" if found.returncode else ""
    return found.stdout.decode("utf-8", errors="replace"), unread


def parse_windows(text: str) -> tuple[Accelerator, ...]:
    """Read what PowerShell printed: one object, or a list of them, or nothing."""
    try:
        found: Any = json.loads(text) if text.strip() else []
    except ValueError:
        return ()
    rows = found if isinstance(found, list) else [found]
    return tuple(_of_windows(row) for row in rows if isinstance(row, dict) and row.get("DeviceName"))


def _of_windows(row: dict[str, Any]) -> Accelerator:
    npu = str(row.get("DeviceClass", "")).upper() == "COMPUTEACCELERATOR"
    return Accelerator(
        kind=DeviceKind.NPU if npu else DeviceKind.GPU,
        name=str(row["DeviceName"]),
        driver=str(row.get("DriverProviderName") or ""),
        driver_version=str(row.get("DriverVersion") or ""),
    )
