"""One session at a time on an NPU: across runs by a lock, under xdist by the scheduler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.device_lock import DeviceLock
from harness.target import DeviceKind

NPU = "planted:pretender:fp32"
ALONE = "one-at-a-time,counter"
FEW = ("-k", "first or test_attestation")


def taken_twice(conform: Any) -> bool:
    """Whether the planted device noticed that it was used by two sessions at once."""
    return bool(conform.mark.with_suffix(".taken-twice").exists())


def test_two_runs_take_turns_and_the_second_says_whom_it_waits_for(conform: Any) -> None:
    first = conform.start(*FEW, targets=NPU, fault=ALONE)
    second = conform.start(*FEW, targets=NPU, fault=ALONE)
    results = [conform.end(first), conform.end(second)]
    assert [result.status for result in results] == [0, 0], results
    assert not taken_twice(conform)
    waited = [result for result in results if f"{NPU} waits for its device: process" in result.text]
    assert len(waited) == 1


def test_the_planted_device_notices_runs_that_do_not_know_of_each_other(
    conform: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = conform.start(*FEW, targets=NPU, fault=ALONE)
    plant = conform.plant

    def plant_elsewhere(fault: str) -> None:
        plant(fault)
        monkeypatch.setenv("PHI3_CONFORMANCE_LOCKS", str(tmp_path / "other-locks"))

    monkeypatch.setattr(conform, "plant", plant_elsewhere)
    second = conform.start(*FEW, targets=NPU, fault=ALONE)
    conform.end(first), conform.end(second)
    assert taken_twice(conform)


def test_under_xdist_all_sessions_of_a_device_stay_on_one_worker(conform: Any) -> None:
    targets = ("--targets=planted:pretender:fp32", "--targets=planted:pretender.1:fp32", "--targets=planted:cpu:fp32")
    result = conform(*FEW, "-n", "2", *targets, targets="", fault=ALONE)
    assert not taken_twice(conform)
    assert len(result.cases) == 3 * 5
    assert result.record is not None
    parents = {s.target: s.info.properties["parent"] for s in result.record.sessions}
    assert parents["planted:pretender:fp32"] == parents["planted:pretender.1:fp32"]


def test_processors_are_shared(conform: Any) -> None:
    held = DeviceLock(DeviceKind.CPU, conform.mark.parent / "locks")
    assert held.claim("another run") is None
    try:
        assert conform(*FEW, "--device-wait=0").status == 0
    finally:
        held.release()


def test_a_wait_ends_in_an_error_that_names_the_holder(conform: Any) -> None:
    held = DeviceLock(DeviceKind.NPU, conform.mark.parent / "locks")
    assert held.claim("openvino:npu:int4") is None
    try:
        result = conform(*FEW, "--device-wait=1", targets=NPU, fault="counter")
    finally:
        held.release()
    assert set(result.outcomes()) == {"ERROR(load)"}
    assert "is in use by process" in result.text
    assert "with openvino:npu:int4, since" in result.text
    assert "--device-wait SECONDS" in result.text


def test_the_lock_of_a_run_that_was_killed_is_free(conform: Any) -> None:
    killed = conform.start(*FEW, targets=NPU, fault="hang-in-prefill,counter")
    harm = Path(f"{conform.mark}.harm")
    while not harm.exists():
        assert killed.poll() is None, conform.end(killed)
    killed.kill()
    conform.end(killed)
    assert not conform.leftovers(5.0)
    assert conform(*FEW, "--device-wait=0", targets=NPU, fault="counter").status == 0
