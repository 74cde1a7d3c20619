"""Reading the system's power settings from recorded trees and outputs."""

from __future__ import annotations

from pathlib import Path

from harness.power import parse_powercfg, read_linux


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def test_linux_profile_governors_and_supply_are_named_once(tmp_path: Path) -> None:
    write(tmp_path / "sys/firmware/acpi/platform_profile", "balanced")
    for core in range(4):
        write(tmp_path / f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor", "powersave")
    write(tmp_path / "sys/class/power_supply/AC/online", "0")
    write(tmp_path / "sys/class/power_supply/BAT0/status", "Discharging")
    assert read_linux(tmp_path) == "profile balanced, governor powersave, on battery"
    write(tmp_path / "sys/class/power_supply/AC/online", "1")
    assert read_linux(tmp_path).endswith("on mains")


def test_a_machine_that_has_none_of_it_says_nothing(tmp_path: Path) -> None:
    assert read_linux(tmp_path) == ""


def test_windows_scheme_is_named_by_its_identifier_in_any_language() -> None:
    text = "GUID des Energieschemas: 381b4222-f694-41f0-9685-ff5bb260df2e  (Ausbalanciert)"
    assert parse_powercfg(text) == "scheme 381b4222-f694-41f0-9685-ff5bb260df2e"
    assert parse_powercfg("") == ""
