"""What machine this is, and which interpreter runs a backend."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

import msgspec
import psutil

from harness.accelerators import Accelerator, accelerators
from harness.backend import Backend, missing_distributions
from harness.connection import path_there
from harness.errors import UsageError
from harness.power import power_mode


class Machine(msgspec.Struct, frozen=True, omit_defaults=True):
    """The machine and the software below the runtimes. Names no user and no host: records are passed on.

    What is empty is left out where it is written, so that a golden's manifest reads as it was sealed.
    """

    system: str
    release: str
    architecture: str
    processor: str
    cores: int
    memory_bytes: int
    python: str
    accelerators: tuple[Accelerator, ...] = ()
    unread: str = ""
    """Why the system could not be asked for accelerators."""
    power: str = ""
    """The power settings in the system's own words, as `harness.power` reads them."""


def this_machine() -> Machine:
    """The machine that this process runs on."""
    found, unread = accelerators()
    return Machine(
        system=platform.system(),
        release=platform.release(),
        architecture=platform.machine(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
        python=platform.python_version(),
        accelerators=found,
        unread=unread,
        power=power_mode(),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def find_interpreter(backend: Backend, named: Mapping[str, PurePath], root: Path, device: str = "") -> Path | None:
    """The Python that runs a backend's workers for a device: None for the one running now.

    In this order: the one named by the user, for the device (`ort-genai:dml`) or the backend; an environment of
    tox that the backend has for this device alone; this one, if the backend's distributions are installed here;
    `.tox/<backend>`; `.tox/runtime`; this one, which will then say what is missing.
    """
    for key in (f"{backend.name}:{device.split('.')[0]}", backend.name):
        if key in named:
            return Path(named[key])
    environments: Mapping[str, Sequence[str]] = getattr(backend, "environments", {})
    own = _python_of(root, environments.get(device.split(".")[0], ()))
    if own is not None:
        return own
    if not missing_distributions(backend):
        return None
    return _python_of(root, (backend.name, "runtime"))


def _python_of(root: Path, environments: Sequence[str]) -> Path | None:
    """The Python of the first tox environment that has been made."""
    for environment in environments:
        python = root / ".tox" / environment / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if python.is_file():
            return python
    return None


def parse_interpreters(texts: list[str]) -> dict[str, PurePath]:
    """Read `BACKEND=PATH`, `BACKEND:DEVICE=PATH` and `BACKEND:HOST=PATH` options.

    Raises UsageError where the form is another, or no file of this machine is there.
    """
    found: dict[str, PurePath] = {}
    for text in texts:
        backend, equals, path = text.partition("=")
        there = ":" in backend  # BACKEND:HOST=PATH, a path of that host, or BACKEND:DEVICE=PATH
        if not equals or not path:
            raise UsageError(f"--interpreter {text!r} names no Python", "write --interpreter BACKEND=PATH")
        if not (there or Path(path).is_file()):
            raise UsageError(f"--interpreter {text!r} names no Python: there is no file {path}", "name its executable")
        found[backend] = path_there(path) if there else Path(path).absolute()
    return found
