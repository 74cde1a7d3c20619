"""What a runtime says of its device, weighed against busy counters."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.attest import Weight, attest, weigh
from harness.policy import BusyLimits, Limit, Policy
from harness.target import DeviceKind, Evidence, EvidenceLevel, Placement, Reading

NONE, CONSTRUCTED, MEASURED = EvidenceLevel.NONE, EvidenceLevel.BY_CONSTRUCTION, EvidenceLevel.MEASURED
NPU, GPU, CPU = DeviceKind.NPU, DeviceKind.GPU, DeviceKind.CPU
BUSY = BusyLimits(
    seconds_min=Limit(1.0, "a test"),
    share_min=Limit(0.1, "a test"),
    still_max=Limit(0.01, "a test"),
    idle_factor=Limit(2.0, "a test"),
    engines_max=Limit(4.0, "a test"),
)
POLICY = Policy(schema=1, attestation={CPU: CONSTRUCTED, GPU: CONSTRUCTED, NPU: MEASURED}, busy=BUSY, limits={})

SHARES = st.floats(0, 1)
SECONDS = st.floats(1, 100)
LEVELS = st.sampled_from(EvidenceLevel)


def reading(busy: float, *, work: float = 2.0, elapsed: float = 2.0, idle: float = 0.0, name: str = "c0") -> Reading:
    return Reading(name, True, idle, busy, elapsed, work)


BUSY_ONE, STILL_ONE = reading(1.0), reading(0.0)


def moved(found: Reading) -> bool:
    return weigh(found, BUSY)[0] is Weight.MOVED


def evidence(level: EvidenceLevel, *readings: Reading, kinds: tuple[DeviceKind, ...] = (NPU,), **more: Any) -> Evidence:
    devices = more.pop("devices", tuple(kind.value.upper() for kind in kinds))
    return Evidence(level, kinds, devices, "DEVICES of the model", readings=readings, **more)


# A counter outweighs the runtime's word, both ways.


@pytest.mark.parametrize("level", list(EvidenceLevel))
def test_a_counter_that_moved_makes_any_word_of_the_runtime_measured(level: EvidenceLevel) -> None:
    found = attest(evidence(level, BUSY_ONE), NPU, POLICY)
    assert (found.level, found.sufficient, found.reason, found.contradicted) == (MEASURED, True, "", False)
    assert found.rank == 2


@pytest.mark.parametrize("kind", [NPU, GPU])
@pytest.mark.parametrize("level", list(EvidenceLevel))
def test_a_counter_that_stood_still_outweighs_the_word_of_the_runtime(kind: DeviceKind, level: EvidenceLevel) -> None:
    found = attest(evidence(level, STILL_ONE, kinds=(kind,)), kind, POLICY)
    assert (found.level, found.sufficient, found.contradicted) == (NONE, False, True)
    assert found.rank == 0


def test_a_counter_that_stood_still_outweighs_a_profile_of_the_runtime() -> None:
    placements = (Placement("DmlExecutionProvider", 10, 5, 100),)
    profiled = evidence(MEASURED, STILL_ONE, kinds=(GPU,), placements=placements)
    assert attest(msgspec.structs.replace(profiled, readings=()), GPU, POLICY).sufficient
    assert attest(profiled, GPU, POLICY).contradicted


def test_one_counter_of_several_that_moved_suffices() -> None:
    assert attest(evidence(NONE, STILL_ONE, BUSY_ONE), NPU, POLICY).level is MEASURED


def test_a_counter_that_stood_still_is_reported_with_its_figures() -> None:
    slow = reading(0.0123, work=4.5, elapsed=6.25, idle=0.031, name="accel0 npu_busy_time_us")
    reason = attest(evidence(CONSTRUCTED, slow), NPU, POLICY).reason
    for words in ("DEVICES of the model names NPU", "accel0 npu_busy_time_us", "0.0123 s", "6.25 s", "4.5 s", "3.1 %"):
        assert words in reason


# Too little work, and counters that were not read.


@given(LEVELS, st.floats(0, 0.999), st.floats(0, 8))
def test_too_little_work_proves_nothing_either_way(level: EvidenceLevel, work: float, busy: float) -> None:
    short = reading(busy, work=work)
    found, without = (attest(evidence(level, *readings), NPU, POLICY) for readings in ([short], []))
    assert (found.level, found.sufficient, found.contradicted) == (without.level, without.sufficient, False)


@given(LEVELS)
def test_a_short_reading_does_not_hide_a_long_one(level: EvidenceLevel) -> None:
    still, short = reading(0.0, work=1.0), reading(2.0, work=0.5)
    assert attest(evidence(level, short, still), NPU, POLICY).contradicted


@given(LEVELS, st.sampled_from(DeviceKind))
def test_without_readings_the_word_of_the_runtime_is_held_against_the_policy(
    level: EvidenceLevel, kind: DeviceKind
) -> None:
    ranks = [NONE, CONSTRUCTED, MEASURED]
    found = attest(evidence(level, kinds=(kind,)), kind, POLICY)
    assert found.level is level
    assert found.sufficient is (ranks.index(level) >= ranks.index(POLICY.attestation[kind]))
    assert bool(found.reason) is not found.sufficient
    assert not found.contradicted


def test_the_reason_says_why_no_counter_was_read() -> None:
    unread = "no busy counter was read: the kernel has none; use 6.11"
    reason = attest(evidence(CONSTRUCTED, unread=unread), NPU, POLICY).reason
    assert "the evidence is by-construction (DEVICES of the model: NPU)" in reason
    assert "the policy asks for measured" in reason
    assert reason.endswith(unread)


# What counts as moved.


@given(SECONDS, st.floats(0.12, 4.0))
def test_a_device_busy_for_its_share_of_the_work_has_moved(work: float, share: float) -> None:
    assert moved(reading(share * work, work=work, elapsed=work))


@given(SECONDS, st.floats(0, 0.09))
def test_a_device_busy_for_less_than_its_share_of_the_work_has_not_moved(work: float, share: float) -> None:
    assert not moved(reading(share * work, work=work, elapsed=work))


@given(SHARES, SECONDS, st.floats(0, 100), st.floats(0, 2))
def test_a_load_of_others_at_most_doubled_is_not_taken_for_work(
    idle: float, work: float, pause: float, growth: float
) -> None:
    elapsed = work + pause
    assert not moved(reading(growth * idle * elapsed, work=work, elapsed=elapsed, idle=idle))


def test_an_idle_load_as_high_as_that_of_the_work_does_not_attest() -> None:
    assert not attest(evidence(CONSTRUCTED, reading(0.9, idle=0.45)), NPU, POLICY).sufficient
    assert attest(evidence(CONSTRUCTED, reading(0.9, idle=0.1)), NPU, POLICY).sufficient


@given(SECONDS, st.floats(4.01, 1e6))
def test_a_counter_that_claims_more_than_all_engines_could_is_not_believed(elapsed: float, times: float) -> None:
    jumped = reading(times * elapsed, work=elapsed, elapsed=elapsed)
    assert not moved(jumped)
    assert not attest(evidence(CONSTRUCTED, jumped), NPU, POLICY).sufficient


# Kind and index.


@given(st.lists(st.sampled_from(DeviceKind), max_size=3).map(tuple), LEVELS, st.booleans())
def test_other_kinds_than_the_one_asked_for_never_suffice_and_contradict(
    kinds: tuple[DeviceKind, ...], level: EvidenceLevel, read: bool
) -> None:
    found = attest(evidence(level, *([BUSY_ONE] if read else []), kinds=kinds), GPU, POLICY)
    if kinds == (GPU,):
        assert not found.contradicted
        return
    assert (found.level, found.sufficient) == (NONE, False)
    assert found.contradicted is bool(kinds)
    assert "gpu was asked for" in found.reason
    assert all(kind.value.upper() in found.reason for kind in kinds)


@pytest.mark.parametrize(
    ("devices", "index", "sufficient"),
    [
        (("GPU.1",), 1, True),
        (("cuda:1",), 1, True),
        (("GPU.1",), None, True),
        (("GPU.0",), 1, False),
        (("GPU.11",), 1, False),
        (("GPU.1", "GPU.0"), 1, False),
        (("GPU",), 1, False),
    ],
)
def test_a_device_that_was_asked_for_by_index_must_be_the_one_that_is_named(
    devices: tuple[str, ...], index: int | None, sufficient: bool
) -> None:
    found = attest(evidence(MEASURED, kinds=(GPU,), devices=devices), GPU, POLICY, index)
    assert found.sufficient is sufficient
    assert found.contradicted is not sufficient
    if not sufficient:
        assert f"index {index} was asked for" in found.reason
        assert ", ".join(devices) in found.reason


def test_a_counter_that_moved_does_not_make_up_for_another_index() -> None:
    assert not attest(evidence(MEASURED, BUSY_ONE, kinds=(GPU,), devices=("GPU.0",)), GPU, POLICY, 1).sufficient


@given(SECONDS, st.floats(0.011, 0.099))
def test_a_counter_that_moved_hardly_proves_nothing_either_way(work: float, share: float) -> None:
    hardly = reading(share * work, work=work, elapsed=work)
    found = attest(evidence(CONSTRUCTED, hardly), NPU, POLICY)
    assert weigh(hardly, BUSY)[0] is Weight.NOTHING
    assert (found.level, found.sufficient, found.contradicted) == (CONSTRUCTED, False, False)
    assert "hardly more than it does by itself" in found.reason


def test_the_reason_gives_the_figures_of_a_counter_that_could_not_tell() -> None:
    busy = attest(evidence(CONSTRUCTED, reading(1.9, idle=0.6, name="accel0")), NPU, POLICY)
    assert "accel0 (all processes): busy 1.9 s of 2 s" in busy.reason
    assert "run again on an idle machine" in busy.reason
    short = attest(evidence(CONSTRUCTED, reading(0.1, work=0.2)), NPU, POLICY)
    assert "too little work to tell" in short.reason
