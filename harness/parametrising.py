"""Conformance tests are parametrised by target, with its marks, and by prompt or suite."""

from __future__ import annotations

from typing import Any

import pytest

from harness.backend import HasSlowTargets
from harness.errors import HarnessError
from harness.prompts import PromptSuite, quick_prompts
from harness.state import STATE, State
from harness.target import Target


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise by target, with its markers, and by prompt or suite."""
    if "target" not in metafunc.fixturenames or _has_its_own(metafunc, "target"):
        return
    state = metafunc.config.stash[STATE]
    try:
        targets, suites = state.targets(), [(suite, quick_prompts(suite)) for suite in state.suites()]
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    metafunc.parametrize("target", [_param(state, t) for t in targets], indirect=True, scope="session")
    if "prompt" in metafunc.fixturenames:
        metafunc.parametrize("prompt", [_prompt(s, p.id, q) for s, q in suites for p in s.prompts], indirect=True)
    elif "suite" in metafunc.fixturenames:
        found = [pytest.param(s.name, id=s.name, marks=[pytest.mark.slow]) for s, _ in suites]  # it asks all prompts
        metafunc.parametrize("suite", found, indirect=True)


def _has_its_own(metafunc: pytest.Metafunc, name: str) -> bool:
    """Whether a test parametrises an argument itself, with a meaning of its own."""
    names = [mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")]
    return any(name in (n.replace(",", " ").split() if isinstance(n, str) else n) for n in names)


def _param(state: State, target: Target) -> Any:
    marks = [getattr(pytest.mark, n) for n in (state.kind(target).value, target.backend, target.precision.value)]
    backend = state.backends[target.backend]
    if isinstance(backend, HasSlowTargets) and backend.is_slow(target):
        marks.append(pytest.mark.slow)
    return pytest.param(target, id=str(target), marks=marks)


def _prompt(suite: PromptSuite, prompt_id: str, quick: frozenset[str]) -> Any:
    marks = [] if prompt_id in quick else [pytest.mark.slow]
    return pytest.param((suite.name, prompt_id), id=prompt_id, marks=marks)
