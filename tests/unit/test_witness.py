"""The witness of a session, with a session, counters and a clock that are made up."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.backend import SessionInfo
from harness.busy import BusyMeter, Counter, Sample
from harness.target import DeviceKind, Evidence, EvidenceLevel, Unavailable
from harness.witness import Witness

WORD = Evidence(EvidenceLevel.BY_CONSTRUCTION, (DeviceKind.NPU,), ("NPU",), "the runtime's word")


class Clock:
    """Seconds that pass only when somebody sleeps or computes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.slept = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.now += seconds


class Device:
    """A busy counter that runs at `load` while nothing computes, and fully while a session does."""

    device_wide = True

    def __init__(self, clock: Clock, name: str = "accel0", load: float = 0.0) -> None:
        self.name = name
        self.broken = ""
        self._clock = clock
        self._load = load
        self._worked = 0.0
        self._start = clock.now

    def work(self, seconds: float) -> None:
        self._worked += seconds

    def sample(self) -> Sample:
        if self.broken:
            raise OSError(self.broken)
        passed = self._clock.now - self._start
        return Sample(self._worked + self._load * (passed - self._worked), passed, self._clock.now)


class Computing:
    """A session whose calls take `seconds` each, on a device where there is one."""

    def __init__(self, clock: Clock, device: Device | None = None, seconds: float = 0.25) -> None:
        self.calls = 0
        self.info = SessionInfo(4, None, {"luid": "0:7"}, {})
        self.during: Callable[[], None] = lambda: None
        self._clock, self._device, self._seconds = clock, device, seconds

    def reset(self) -> None:
        pass

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        self.calls += 1
        self.during()
        self._clock.now += self._seconds
        if self._device is not None:
            self._device.work(self._seconds)
        return np.zeros((tokens.size, 4), dtype=np.float32)

    def generate(self, prompt: NDArray[np.int64], max_new_tokens: int, end_tokens: Sequence[int]) -> list[int]:
        raise NotImplementedError

    def evidence(self) -> Evidence:
        return WORD

    def close(self) -> None:
        pass


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "perf_counter", made)
    return made


def witness_of(session: Computing, clock: Clock, found: Sequence[Counter] | Unavailable) -> Witness:
    def meter(counters: Sequence[Counter]) -> BusyMeter:
        return BusyMeter(counters, clock=clock, sleep=clock.sleep)

    return Witness(session, DeviceKind.NPU, find=lambda: found, meter=meter)


def call(witness: Witness, session: Computing, times: int = 1) -> None:
    for _ in range(times):
        with witness.work():
            session.append(np.array([1]))


def test_nothing_is_looked_for_and_no_time_is_spent_for_a_processor(clock: Clock) -> None:
    def find() -> Unavailable:
        raise AssertionError("looked for counters")

    session = Computing(clock)
    witness = Witness(session, DeviceKind.CPU, find=find, meter=lambda _: pytest.fail("made a meter"))
    start = clock.now
    with witness.work():
        pass
    assert witness.testify() == WORD
    assert (clock.now, session.calls) == (start, 0)


def test_the_load_of_others_is_measured_before_the_first_work(clock: Clock) -> None:
    device = Device(clock, load=0.25)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])
    assert session.calls == 0
    assert clock.slept >= 1.0, "a counter that is read once a second shows nothing sooner"
    call(witness, session, 8)
    (reading,) = witness.testify().readings
    assert reading.idle_share == pytest.approx(0.25)
    assert (reading.counter, reading.device_wide) == ("accel0", True)
    assert reading.busy_seconds == pytest.approx(2.0)
    assert (reading.work_seconds, reading.elapsed_seconds) == pytest.approx((2.0, 2.0))


def test_pauses_between_calls_are_no_work(clock: Clock) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])
    call(witness, session, 4)
    clock.now += 9.0
    (reading,) = witness.testify().readings
    assert (reading.work_seconds, reading.elapsed_seconds, reading.busy_seconds) == pytest.approx((1.0, 10.0, 1.0))


@pytest.mark.parametrize("calls", [0, 1, 3])
def test_a_session_that_was_asked_for_little_works_on_until_the_counter_has_something_to_show(
    clock: Clock, calls: int
) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])
    call(witness, session, calls)
    found = witness.testify()
    (reading,) = found.readings
    assert session.calls > calls
    assert reading.work_seconds >= 1.0
    assert reading.busy_seconds == pytest.approx(reading.work_seconds)
    assert (found.level, found.devices, found.source, found.unread) == (WORD.level, WORD.devices, WORD.source, "")


def test_a_session_that_has_worked_enough_is_not_made_to_work_on(clock: Clock) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])
    call(witness, session, 5)
    witness.testify()
    assert session.calls == 5


def test_the_readings_are_those_of_the_latest_window(clock: Clock) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])
    call(witness, session, 8)
    assert witness.testify().readings[0].busy_seconds == pytest.approx(2.0)
    elsewhere = Computing(clock, None)  # the same session, had it left the device
    call(witness, elsewhere, 12)
    (reading,) = witness.testify().readings
    assert (reading.busy_seconds, reading.work_seconds) == pytest.approx((0.0, 3.0))


def test_counters_that_are_not_there_are_said_to_be_unread_with_the_remedy(clock: Clock) -> None:
    session = Computing(clock)
    start = clock.now
    found = witness_of(session, clock, Unavailable("the kernel has none", "use Linux 6.11")).testify()
    assert found.readings == ()
    assert "the kernel has none" in found.unread
    assert "use Linux 6.11" in found.unread
    assert found.level is WORD.level
    assert (clock.now, session.calls) == (start, 0), "there is nothing to work on for"


@pytest.mark.parametrize("calls", [0, 2, 8])
def test_a_counter_that_dies_in_mid_run_is_unread_and_the_testimony_still_ends(clock: Clock, calls: int) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])
    call(witness, session, calls)
    device.broken = "No such device"
    start = clock.now
    found = witness.testify()
    assert found.readings == ()
    assert found.unread == "accel0 is read no more: No such device"
    assert clock.now - start <= 5.0


def test_a_counter_that_dies_while_a_session_computes_leaves_the_others(clock: Clock) -> None:
    dying, living = Device(clock, "accel0"), Device(clock, "accel1")
    session = Computing(clock, living)
    witness = witness_of(session, clock, [dying, living])
    session.during = lambda: setattr(dying, "broken", "Input/output error")
    call(witness, session, 4)
    found = witness.testify()
    assert [reading.counter for reading in found.readings] == ["accel1"]
    assert found.unread == "accel0 is read no more: Input/output error"


def test_work_that_raises_is_counted_and_goes_on_raising(clock: Clock) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    witness = witness_of(session, clock, [device])

    def hang() -> None:
        with witness.work():
            session.append(np.array([1]))
            raise RuntimeError("the device hung")

    for _ in range(4):
        with pytest.raises(RuntimeError, match="hung"):
            hang()
    assert witness.testify().readings[0].work_seconds == pytest.approx(1.0)
    assert session.calls == 4


def test_counters_that_exist_only_after_the_first_call_are_found_then(clock: Clock) -> None:
    device = Device(clock)
    session = Computing(clock, device)
    absent = Unavailable("no adapter is in use", "use it")
    witness = Witness(
        session,
        DeviceKind.NPU,
        find=lambda: [device] if session.calls else absent,
        meter=lambda counters: BusyMeter(counters, clock=clock, sleep=clock.sleep),
    )
    call(witness, session)
    found = witness.testify()
    assert found.readings[0].busy_seconds > 0
    assert found.unread == ""


def test_counters_that_are_not_there_are_not_looked_for_for_ever(clock: Clock) -> None:
    looks: list[int] = []

    def find() -> Unavailable:
        looks.append(1)
        return Unavailable("none", "get one")

    session = Computing(clock)
    witness = Witness(session, DeviceKind.NPU, find=find)
    for _ in range(10):
        assert "no busy counter was read: none" in witness.testify().unread
    assert len(looks) == 3
