"""What machine this is, and which interpreter runs a backend."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

import msgspec
import psutil

from harness.backend import Backend, missing_distributions
from harness.errors import UsageError


class Machine(msgspec.Struct, frozen=True):
    """The machine and the software below the runtimes. Names no user and no host: records are passed on."""

    system: str
    release: str
    architecture: str
    processor: str
    cores: int
    memory_bytes: int
    python: str


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        system=platform.system(),
        release=platform.release(),
        architecture=platform.machine(),
        processor=_processor(),
        cores=os.cpu_count() or 1,
        memory_bytes=int(psutil.virtual_memory().total),
        python=platform.python_version(),
    )


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"


def find_interpreter(backend: Backend, named: Mapping[str, Path], root: Path) -> Path | None:
    """The Python that runs a backend's workers: None for the one running now.

    In this order: the one named by the user; this one, if the backend's distributions are installed here;
    `.tox/<backend>`; `.tox/runtime`; this one, which will then say what is missing.
    """
    if backend.name in named:
        return named[backend.name]
    if not missing_distributions(backend):
        return None
    for environment in (backend.name, "runtime"):
        folder = root / ".tox" / environment
        python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
        if python.is_file():
            return python
    return None


def parse_interpreters(texts: list[str]) -> dict[str, Path]:
    """Read `BACKEND=PATH` options. Raises UsageError where the form is another or the file is not there."""
    found = {}
    for text in texts:
        backend, equals, path = text.partition("=")
        if not equals or not Path(path).is_file():
            raise UsageError(f"--interpreter {text!r} names no Python", "write --interpreter BACKEND=PATH")
        found[backend] = Path(path).absolute()
    return found
