from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import family, fixtures, marks
from harness.backend import load_backends
from harness.compare import Outcome, Verdict
from harness.errors import Unsupported
from harness.longrope import crossed, switch_of
from harness.options import POLICY
from harness.policy import read_policy
from harness.prompts import read_suite
from harness.run import Run, Settings
from harness.target import Precision, Target

TARGET = Target("pytorch", "cpu", Precision.FP32)


def verdict(outcome: Outcome, message: str = "", **numbers: float) -> Verdict:
    return Verdict(outcome, numbers, {"ratio": 2.0}, message)


def test_verdicts_are_joined_to_the_largest_of_every_number() -> None:
    found = {
        "one": verdict(Outcome.PASS, ratio=0.5, token=3.0),
        "two": verdict(Outcome.PASS, ratio=1.5, extra=1.0),
    }
    joined = family.joined(found)
    assert joined.outcome is Outcome.PASS
    assert joined.numbers == {"ratio": 1.5, "extra": 1.0, "prompts": 2.0, "wrong_prompts": 0.0}
    assert joined.limits == {"ratio": 2.0}


def test_a_failure_outweighs_what_is_only_unattested_and_every_message_is_kept() -> None:
    found = {
        "one": verdict(Outcome.UNATTESTED, "nothing proves it"),
        "two": verdict(Outcome.PASS),
        "three": verdict(Outcome.FAIL, "wrong"),
    }
    joined = family.joined(found)
    assert joined.outcome is Outcome.FAIL
    assert joined.message == "nothing proves it\nwrong"
    assert joined.numbers["wrong_prompts"] == 2.0
    assert family.joined({"one": found["one"], "two": found["two"]}).outcome is Outcome.UNATTESTED


def test_no_prompts_are_no_pass() -> None:
    assert family.joined({}).outcome is Outcome.FAIL


@pytest.fixture
def run(checkpoint: Any, suite: Any) -> Run:
    settings = Settings(
        checkpoint=checkpoint,
        fingerprint=checkpoint.fingerprint(),
        suites=(suite,),
        golden_roots=(),
        policy=read_policy(POLICY),
        artifacts=(("openvino:*", checkpoint.path),),
        load_options=(("pytorch:*", "attention", "eager"),),
    )
    return Run(settings, load_backends(), print)


@pytest.mark.parametrize("member", family.MEMBERS)
def test_a_members_run_is_the_checkpoints_but_for_what_is_the_checkpoints(run: Run, member: str) -> None:
    beside = family.member_run(run, TARGET, member)
    try:
        assert beside.settings.checkpoint.name == family.MEMBERS[member]
        assert beside.settings.load_options == run.settings.load_options
        assert beside.crew is run.crew
        golden = beside.golden(beside.settings.suites[0])
        switch = switch_of(beside.settings.checkpoint.config)
        for case in golden.manifest.cases:
            n, total = len(case.tokens), len(case.sequence)
            stretch = "across" if crossed(switch, n, total) else "before" if total <= cast(int, switch) else "past"
            assert case.id.startswith(f"{stretch}-")
    finally:
        beside.close()
        assert run.crew.scratch.is_dir()  # the workers of the run beside are not closed with it
        run.close()


def test_the_prompts_lie_on_both_sides_of_the_switch() -> None:
    stretches = {prompt.id.split("-")[0] for prompt in read_suite(family.PROMPTS).prompts}
    assert stretches == {"before", "across", "past"}


def test_a_target_with_a_ready_made_artifact_has_no_members(run: Run) -> None:
    with pytest.raises(Unsupported, match="ready-made artifact"):
        family.member_run(run, Target("openvino", "cpu", Precision.INT4), "phi-4-mini")
    run.close()


class Idle:
    """A worker that was started."""

    running = True
    label = ""

    def stop(self) -> None:
        self.running = False


def test_a_worker_is_kept_for_the_next_member_where_nothing_speaks_against_it(run: Run) -> None:
    beside = family.member_run(run, TARGET, "phi-4-mini")
    first, second = cast(Any, Idle()), cast(Any, Idle())
    beside.dismiss(TARGET, first)
    assert first.running
    assert beside.take_worker(TARGET) is first
    assert first.label == str(TARGET)
    beside.dismiss(TARGET, first)
    beside.dismiss(TARGET, second)  # one is kept, not two
    assert (first.running, second.running) == (False, True)
    run.dismiss(TARGET, second)  # the checkpoint's own sessions have a process each
    assert not second.running
    run.close()


def test_a_process_with_a_large_model_is_not_kept(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.run._SMALL", 4 * run.settings.checkpoint.parameters() - 1)
    session, reference = cast(Any, Idle()), cast(Any, Idle())
    run.dismiss_for_others(TARGET, session)
    run.dismiss_reference(reference)
    assert not session.running
    assert not reference.running
    run.close()


def test_a_small_model_s_references_and_spared_sessions_are_kept(run: Run) -> None:
    session, reference = cast(Any, Idle()), cast(Any, Idle())
    run.dismiss_for_others(TARGET, session)
    run.dismiss_reference(reference)
    assert run.hire_reference() is reference
    assert family.member_run(run, TARGET, "phi-4-mini").take_worker(TARGET) is session
    run.close()


def test_a_library_that_takes_one_model_a_process_gets_one(run: Run) -> None:
    beside = family.member_run(run, TARGET, "phi-4-mini")
    worker = cast(Any, Idle())
    beside.dismiss(Target("npu-library", "cpu", Precision.INT8), worker)
    assert not worker.running
    run.close()


class Item:
    """What a hook is given of a test."""

    def __init__(self, **params: object) -> None:
        self.callspec = SimpleNamespace(params=params)
        self.marks: list[str] = []

    def iter_markers(self, name: str) -> Any:
        return [pytest.mark.slow_but(target="pytorch:cpu:fp32", member="phi-4-mini").mark] if name == "slow_but" else []

    def add_marker(self, name: str) -> None:
        self.marks.append(name)


@pytest.mark.parametrize(
    ("target", "member", "slow"),
    [
        ("pytorch:cpu:fp32", "phi-4-mini", []),
        ("pytorch:cpu:fp32", "phi-3-5-mini", ["slow"]),
        ("openvino:cpu:int4", "phi-4-mini", ["slow"]),
    ],
)
def test_all_but_the_cheapest_are_slow(target: str, member: str, slow: list[str]) -> None:
    item = Item(target=Target.parse(target), member=member)
    marks.pytest_itemcollected(cast(Any, item))
    assert item.marks == slow


def test_a_member_is_closed_with_the_module_before_the_next_ones_tests() -> None:
    """Else the checkpoint's own session would wait for a device that the member's holds."""
    assert fixtures.member._fixture_function_marker.scope == "module"
