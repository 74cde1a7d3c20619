"""Where the time of a run goes: in sessions, in references, in starting processes, in the harness itself.

    python tests/benchmarks/profile_run.py [ARGUMENTS OF PYTEST ...]

Runs pytest with the arguments (conformance/ by default) in this process, without xdist, and prints what the controller
spent where. It waits for one worker at a time, so that each second belongs to one line: what a session or a reference
was asked for, or the controller's own work. Needs an interpreter that has this project, such as `.tox/conformance`.
"""

from __future__ import annotations

import sys
import time

import pytest

from harness.golden import TREE

sys.path.insert(0, str(TREE / "tests"))  # run as a script, this has its own folder there
from benchmarks.clock import Clock


def main() -> None:
    """Run pytest and print the table."""
    clock = Clock()
    began = time.perf_counter()
    arguments = sys.argv[1:] or [str(TREE / "conformance")]
    with clock.watching():
        status = pytest.main(["-c", str(TREE / "pyproject.toml"), "-n", "0", "-q", *arguments])
    total = time.perf_counter() - began
    print(f"\n{total:.1f} s in all")
    clock.tell(total)
    sys.exit(status)


if __name__ == "__main__":
    main()
