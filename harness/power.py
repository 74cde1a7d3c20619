"""How the operating system is told to spend power: what makes the same machine fast on one day and slow on another."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
from pathlib import Path

_POWERCFG_SECONDS = 10.0


@functools.cache
def power_mode() -> str:
    """The power settings in the system's own words, such as `profile balanced, governor powersave, on battery`.

    Empty where none can be read, as in a virtual machine.
    """
    if sys.platform == "win32":
        return parse_powercfg(_ask_powercfg())
    return read_linux(Path("/")) if sys.platform == "linux" else ""


def read_linux(root: Path) -> str:
    """ACPI's platform profile, the processors' frequency governors, and the supply; `root` is for tests."""
    profile = _text(root / "sys/firmware/acpi/platform_profile")
    governors = {_text(path) for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_governor")}
    mains = {_text(path) for path in (root / "sys/class/power_supply").glob("*/online")} - {""}
    parts = [f"profile {profile}"] if profile else []
    parts += [f"governor {governor}" for governor in sorted(governors - {""})]
    if mains:
        parts.append("on mains" if "1" in mains else "on battery")
    return ", ".join(parts)


def parse_powercfg(text: str) -> str:
    """The scheme's identifier of `powercfg /getactivescheme`: its name is in the user's language."""
    found = re.search(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text)
    return f"scheme {found.group().lower()}" if found else ""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _ask_powercfg() -> str:
    try:
        found = subprocess.run(
            ["powercfg", "/getactivescheme"],
            capture_output=True,
            check=False,
            timeout=_POWERCFG_SECONDS,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.decode("utf-8", errors="replace")
