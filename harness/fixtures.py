"""The fixtures that conformance tests are written with."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from harness.checkpoint import Checkpoint
from harness.family import MemberSession, member_run
from harness.judge import Judge
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.soak_marks import minutes
from harness.state import STATE
from harness.target import Target, Unavailable

JUDGE: pytest.StashKey[Judge] = pytest.StashKey()
"""The judge of an item, with the verdicts it gave."""
SESSION: pytest.StashKey[TargetSession] = pytest.StashKey()
STARTED: pytest.StashKey[float] = pytest.StashKey()
"""Seconds that starting a target's session took in a set-up; taken out by who counts what the rest of it took."""
"""On the session's node: the target session in use, which outlives the items."""


class CaseId(NamedTuple):
    """What a conformance item judges: the test's name, the target, and `test_name[subject]`.

    The subject is what else the test is parametrised by: a prompt, a suite or something of its own.
    """

    test: str
    target: Target
    case: str
    subject: str


def case_id(item: pytest.Item) -> CaseId | None:
    """The case of an item, None for a test without a target."""
    spec = getattr(item, "callspec", None)
    if spec is None or not isinstance(spec.params.get("target"), Target):
        return None
    test = getattr(item, "originalname", item.name)
    subject = str(spec.id).removeprefix(str(spec.params["target"])).removeprefix("-")
    return CaseId(test, spec.params["target"], f"{test}[{subject}]" if subject else test, subject)


@pytest.fixture(scope="session")
def checkpoint(pytestconfig: pytest.Config) -> Checkpoint:
    """The checkpoint under validation."""
    return pytestconfig.stash[STATE].checkpoint()[0]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The target judged; tests that use it, directly or not, are parametrised over all targets."""
    found: Target = request.param
    return found


@pytest.fixture(scope="session")
def session(target: Target, request: pytest.FixtureRequest, pytestconfig: pytest.Config) -> Iterator[TargetSession]:
    """The target's artifact, loaded in a worker. Skips, with reason and remedy, where the device is absent."""
    state = pytestconfig.stash[STATE]
    run = state.run()
    found = run.find_device(target)
    if isinstance(found, Unavailable):
        pytest.skip(str(found))
    state.begin(target)
    opened = TargetSession(run, target)
    request.session.stash[SESSION] = opened
    began = time.monotonic()
    try:
        opened.start()
        request.session.stash[STARTED] = time.monotonic() - began
        yield opened
    finally:
        opened.close()


@pytest.fixture
def prompt(request: pytest.FixtureRequest, session: TargetSession, pytestconfig: pytest.Config) -> PromptCase:  # noqa: ARG001
    """One prompt with its golden; `session` comes first, so that an absent device skips before a golden is read."""
    state = pytestconfig.stash[STATE]
    suite_name, prompt_id = request.param
    suite = next(s for s in state.suites() if s.name == suite_name)
    return state.run().case(suite, prompt_id)


@pytest.fixture
def suite(request: pytest.FixtureRequest, session: TargetSession, pytestconfig: pytest.Config) -> list[PromptCase]:  # noqa: ARG001
    """All prompts of a suite with their goldens."""
    state = pytestconfig.stash[STATE]
    found = next(s for s in state.suites() if s.name == request.param)
    return [state.run().case(found, p.id) for p in found.prompts]


@pytest.fixture(scope="session")
def soak_seconds(pytestconfig: pytest.Config) -> float:
    """How long each soak goes on."""
    return 60.0 * minutes(pytestconfig)


@pytest.fixture
def judge(request: pytest.FixtureRequest, session: TargetSession, pytestconfig: pytest.Config) -> Judge:
    """Gives the verdicts of this case."""
    state: Any = pytestconfig.stash[STATE]
    made = Judge(session, state.policy(), state.checkpoint()[0])
    request.node.stash[JUDGE] = made
    return made


@pytest.fixture(scope="module")
def member(
    request: pytest.FixtureRequest, session: TargetSession, pytestconfig: pytest.Config
) -> Iterator[TargetSession]:
    """A member of the Phi-3 family, loaded by the same recipe on the target's device; see `harness.family`.

    Where only one session may use the device, the checkpoint's own lets go of it and is loaded again afterwards. The
    scope is the module, so that a member is closed before the next module's tests begin.
    """
    run = member_run(pytestconfig.stash[STATE].run(), session.target, request.param)
    session.rest()
    opened = MemberSession(run, session.target)
    try:
        opened.start()
        yield opened
    finally:
        opened.close()
        run.close()


@pytest.fixture
def member_judge(request: pytest.FixtureRequest, member: TargetSession, pytestconfig: pytest.Config) -> Judge:
    """Gives the verdicts of a case on a member of the family."""
    made = Judge(member, pytestconfig.stash[STATE].policy(), member.run.settings.checkpoint)
    request.node.stash[JUDGE] = made
    return made
