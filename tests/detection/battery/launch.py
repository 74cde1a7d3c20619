"""Run the battery in the interpreter that has the runtimes: `python -m detection.battery.launch`, from a light one."""

from __future__ import annotations

import os
import subprocess
import sys

from harness.backend import load_backend, missing_distributions
from harness.devices import find_interpreter
from harness.golden import TREE


def command(*arguments: str) -> list[str]:
    """The command line that runs the battery; empty where no interpreter here has the runtimes."""
    backend = load_backend("openvino")
    interpreter = find_interpreter(backend, {}, TREE)
    if interpreter is None and missing_distributions(backend):
        return []
    return [str(interpreter or sys.executable), "-m", "detection.battery", *arguments]


def environment() -> dict[str, str]:
    """This process's environment, with the folder `tests` on the path."""
    return {**os.environ, "PYTHONPATH": str(TREE / "tests")}


if __name__ == "__main__":
    line = command(*sys.argv[1:])
    sys.exit(subprocess.run(line, env=environment(), check=False).returncode if line else "python -m tox -e runtime")
