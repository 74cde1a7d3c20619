"""Wear planted in a session: each kind is found by the soak that exists for it, and named."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from direct import DirectTarget
from harness import soak
from harness.backend import SessionInfo
from harness.compare import Outcome, Verdict
from harness.endurance import Endurance
from harness.sessions import TargetSession
from harness.target import DeviceKind, Target
from support import PLANTED, Tiny

ENOUGH = soak.ENOUGH
CHECKS: dict[str, Callable[[TargetSession], Verdict]] = {
    "loads": partial(soak.loads, least=ENOUGH),
    "loads-short": soak.loads,
    "calls": partial(soak.calls, least=ENOUGH),
    "cancels": soak.cancels,
    "two-sessions": soak.two_sessions,
}
FAULTS = (
    ("leaks-memory", "loads", "memory grows by 2 MiB a load"),
    ("leaks-handles", "loads", "handles grow by 1 a load"),
    ("leaks-handles", "loads-short", "handles grow with every load"),
    ("leaks-threads", "loads", "threads grow by 1 a load"),
    ("leaks-threads", "loads-short", "threads grow with every load"),
    ("leaks-in-calls", "calls", "MiB a call"),
    ("breaks-after-cancel", "cancels", "after a stop by another-flag (cancelled)"),
    ("ignores-cancel", "cancels", "a-flag: the generation was not stopped after 3 tokens, it gave 48"),
    ("sessions-mix", "two-sessions", "second of two sessions in turns"),
    ("drifts", "calls", "bit for bit as at first"),
    ("drifts", "loads-short", "bit for bit as at first"),
)


class _NoWitness:
    def work(self) -> Any:
        return contextlib.nullcontext()


class WornTarget(DirectTarget):
    """The wearing session in this process, with the operations of endurance."""

    kind = DeviceKind.CPU
    inference = None

    def __init__(self, tiny: Tiny) -> None:
        super().__init__(tiny)
        sys.path.append(str(PLANTED))
        try:
            self._backend = importlib.import_module("planted_wear").WearingBackend()
        finally:
            sys.path.remove(str(PLANTED))
        self.loading = {"artifact": str(tiny.checkpoint), "target": "planted-wear:cpu:fp32"}
        self._endurance = Endurance(lambda: self._backend, lambda: self.session, lambda: cast(Any, _NoWitness()))
        self._load()

    @property
    def info(self) -> SessionInfo:
        return self.session.info

    def call(self, operation: str, **arguments: Any) -> Any:
        if operation == "load":
            return self._load()
        if operation == "load_beside":
            arguments = {**arguments, "options": {}, "trust_remote_code": False}
        found = getattr(self._endurance, f"do_{operation}", None)
        return super().call(operation, **arguments) if found is None else found(**arguments)

    def _load(self) -> None:
        target = Target.parse(self.loading["target"])
        self.session = self._backend.load(Path(self.loading["artifact"]), target, options={}, trust_remote_code=False)


@pytest.fixture
def worn(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], TargetSession]:
    def with_fault(fault: str) -> TargetSession:
        monkeypatch.setenv("PLANTED_FAULT", fault)
        return cast(TargetSession, WornTarget(tiny))

    return with_fault


@pytest.mark.parametrize("check", CHECKS)
def test_a_session_that_does_not_wear_passes(worn: Any, check: str) -> None:
    verdict = CHECKS[check](worn(""))
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert verdict.numbers["same_positions"] > 0
    assert verdict.numbers["same_identical_positions"] == verdict.numbers["same_positions"]


@pytest.mark.parametrize(("fault", "check", "words"), FAULTS, ids=[f"{fault}-{check}" for fault, check, _ in FAULTS])
def test_wear_is_found(worn: Any, fault: str, check: str, words: str) -> None:
    verdict = CHECKS[check](worn(fault))
    assert verdict.outcome is Outcome.FAIL
    assert words in verdict.message


def test_processes_are_killed_and_answer_as_before(conform: Any) -> None:
    chosen = ("-m", "soak", "--minutes", "0.02", "-k", "processes")
    result = conform(*chosen, suites=("test_soak",), targets="planted-wear:cpu:fp32")
    assert result.outcomes() == {"PASS": 2}, result.text
    rounds = {case.test: case.numbers["rounds"] for case in result.cases}
    assert rounds["test_soak_processes"] >= 4  # a third death would have it given up, but these were told to die


def test_soaks_are_left_out_and_counted_so_unless_they_are_asked_for(conform: Any) -> None:
    short = conform("--collect-only", "-q", suites=("test_soak",), targets="planted-wear:cpu:fp32")
    assert "3/9 tests collected (6 deselected)" in short.text
    for asked in (("--minutes", "1"), ("-m", "slow or soak")):
        every = conform("--collect-only", "-q", *asked, suites=("test_soak",), targets="planted-wear:cpu:fp32")
        assert "9 tests collected" in every.text
    refused = conform("--minutes", "0", suites=("test_soak",), targets="planted-wear:cpu:fp32")
    assert "--minutes 0 is no time" in refused.text
