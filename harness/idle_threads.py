"""Under pytest-xdist the idle threads of OpenMP sleep, rather than spin.

GNU's OpenMP, which PyTorch brings, has threads that wait for their next loop ask for it over and over. Where two
workers share the processors, those threads keep the others' from working: on two cores PyTorch's FP16 took 146 s beside
the NPU library's for three suites that take 52 s when they sleep. What is computed stays the same to the last bit; a
small model is timed slower, by up to 1.8 times, so that speeds are measured without xdist: see docs/speed.md.
"""

from __future__ import annotations

import os

import pytest

VARIABLE = "OMP_WAIT_POLICY"
_SET: pytest.StashKey[bool] = pytest.StashKey()


def pytest_configure(config: pytest.Config) -> None:
    """In the main process, before the workers start, which inherit it; whoever has set the variable knows better."""
    if len(config.getoption("tx", [])) > 1 and VARIABLE not in os.environ:
        os.environ[VARIABLE] = "PASSIVE"
        config.stash[_SET] = True


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave the process as it was."""
    if config.stash.get(_SET, False):
        os.environ.pop(VARIABLE, None)
