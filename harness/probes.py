"""The few prompts that a session is asked before any case: the arithmetic in effect is inferred from its answers."""

from __future__ import annotations

from harness.backend import Capabilities, SessionInfo
from harness.run import PromptCase, Run

_PROBES = 6
_PROBE_TOKENS = 56


def choose_probes(run: Run, info: SessionInfo | None) -> list[PromptCase]:
    """A few prompts of middling length, with their answers, which the session can take."""
    able = info.capabilities if info else Capabilities()
    suites = run.settings.suites
    prompts = [run.case(suite, case.id) for suite in suites for case in run.golden(suite).manifest.cases]
    fitting = [p for p in prompts if len(p.case.tokens) > 1]
    fitting = [p for p in fitting if not able.refuses(len(p.case.tokens), len(p.case.continuation))]
    return sorted(fitting, key=lambda prompt: abs(len(prompt.case.sequence) - _PROBE_TOKENS))[:_PROBES]
