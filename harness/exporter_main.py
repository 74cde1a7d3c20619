"""Runs a module as `python -m MODULE ARGS...` does, in a process that does not outlive the worker that started it.

    python -m harness.exporter_main MODULE ARGS...

An exporter that went on after its run was killed would write into a folder that nobody holds a lock on.
"""

from __future__ import annotations

import os
import runpy
import sys

from harness.orphans import PARENT, die_with


def main() -> None:
    """Run the module that the command line names."""
    if os.environ.get(PARENT, "").isdigit():
        die_with(int(os.environ[PARENT]))
    if not getattr(sys.flags, "safe_path", False):
        del sys.path[0]  # the folder we were started in, put there by -m: a file torch.py in it is not torch
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
