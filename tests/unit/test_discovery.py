"""Asking runtimes for devices, with workers that answer from a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from harness.backend import DeviceReport
from harness.discovery import Discovery, RuntimeReport
from harness.errors import Stage, StageError, WorkerDied, WorkerRaised
from harness.target import DeviceKind, Target, Unavailable

CPU, GPU, GPU1, NPU = (Target.parse(f"rt:{device}:fp32") for device in ("cpu", "gpu", "gpu.1", "npu"))
OTHER = Target.parse("other:cpu:fp32")
HERE: dict[str, DeviceReport | Unavailable] = {
    "cpu": DeviceReport("a processor", {"threads": "4"}),
    "gpu": Unavailable("there is no GPU", "put one in"),
    "gpu.1": DeviceReport("the second GPU"),
    "npu": DeviceReport("an NPU"),
}


class FakeWorker:
    """Answers `open` and `discover` as a worker does, in builtins; `devices` and `missing` may be errors."""

    def __init__(self, answers: Any) -> None:
        self.python = "3.11.7"
        self.running = False
        self.stopped = False
        self.asked: list[list[str]] = []
        self._answers = answers

    def start(self, stage: Stage) -> None:
        if self._answers.start is not None:
            raise self._answers.start
        assert stage is Stage.DISCOVER
        self.running = True

    def call(self, stage: Stage, operation: str, **arguments: Any) -> Any:
        assert self.running
        assert stage is Stage.DISCOVER
        if operation == "open":
            return {"versions": {"rt": "1.0"}, "missing": self._answers.missing}
        self.asked.append(list(arguments["devices"]))
        devices = self._answers.devices
        if isinstance(devices, StageError):
            self.running = not isinstance(devices, WorkerDied)
            raise devices
        return {name: msgspec.to_builtins(devices[name]) for name in arguments["devices"] if name in devices}

    def stop(self) -> None:
        self.running = False
        self.stopped = True


class Fakes:
    """A discovery of two backends; `pythons` names the interpreter of a device."""

    def __init__(
        self,
        devices: Mapping[str, DeviceReport | Unavailable] | StageError = HERE,
        missing: Sequence[str] = (),
        start: StageError | None = None,
        pythons: Mapping[str, str] | None = None,
    ) -> None:
        self.answers = SimpleNamespace(devices=devices, missing=list(missing), start=start)
        self.hired: list[FakeWorker] = []
        kinds = {"cpu": DeviceKind.CPU, "gpu": DeviceKind.GPU, "npu": DeviceKind.NPU}
        backends: Any = {
            name: SimpleNamespace(name=name, devices=kinds, install=f"pip install {name}") for name in ("rt", "other")
        }
        hire: Any = self._hire
        self.discovery = Discovery(backends, hire, lambda target: (pythons or {}).get(target.base_device))

    def _hire(self, _label: str, _target: Target) -> FakeWorker:
        self.hired.append(FakeWorker(self.answers))
        return self.hired[-1]

    @property
    def asked(self) -> list[list[str]]:
        return [devices for worker in self.hired for devices in worker.asked]

    def report(self) -> RuntimeReport:
        (report,) = self.discovery.reports()
        return report


def failed(fakes: Fakes, target: Target = CPU) -> StageError:
    with pytest.raises(StageError) as caught:
        fakes.discovery.find(target)
    assert caught.value.stage is Stage.DISCOVER
    return caught.value


def test_an_interpreter_is_asked_once_for_all_devices_of_a_backend() -> None:
    fakes = Fakes()
    assert [fakes.discovery.find(target) for target in (CPU, GPU, NPU, CPU)] == [
        HERE["cpu"],
        HERE["gpu"],
        HERE["npu"],
        HERE["cpu"],
    ]
    assert fakes.asked == [["cpu", "gpu", "npu"]]
    assert len(fakes.hired) == 1
    assert fakes.report() == RuntimeReport(
        "rt", None, "3.11.7", {"rt": "1.0"}, {name: HERE[name] for name in ("cpu", "gpu", "npu")}
    )


def test_two_devices_under_two_interpreters_are_asked_separately() -> None:
    fakes = Fakes(pythons={"gpu": "its-own"})
    assert [fakes.discovery.find(target) for target in (CPU, GPU, NPU)] == [HERE["cpu"], HERE["gpu"], HERE["npu"]]
    assert fakes.asked == [["cpu", "npu"], ["gpu"]]
    assert [set(report.devices) for report in fakes.discovery.reports()] == [{"cpu", "npu"}, {"gpu"}]


def test_backends_and_hosts_have_answers_of_their_own() -> None:
    fakes = Fakes()
    on_host = msgspec.structs.replace(CPU, host="lab1")
    for target in (CPU, OTHER, on_host):
        assert fakes.discovery.find(target) == HERE["cpu"]
    reports = fakes.discovery.reports()
    assert [(report.backend, report.host) for report in reports] == [("rt", None), ("other", None), ("rt", "lab1")]


def test_an_indexed_device_is_asked_for_once_it_is_wanted_and_of_the_same_worker() -> None:
    fakes = Fakes()
    fakes.discovery.find(GPU)
    for _ in range(2):
        assert fakes.discovery.find(GPU1) == HERE["gpu.1"]
    assert fakes.asked == [["cpu", "gpu", "npu"], ["gpu.1"]]
    assert len(fakes.hired) == 1
    assert set(fakes.report().devices) == {"cpu", "gpu", "npu", "gpu.1"}


@pytest.mark.parametrize("first", [GPU, GPU1])
def test_an_indexed_device_is_found_though_the_first_worker_was_taken(first: Target) -> None:
    fakes = Fakes()
    fakes.discovery.find(first)
    assert fakes.discovery.take_spare(first) is not None
    assert fakes.discovery.find(GPU1) == HERE["gpu.1"]
    assert fakes.discovery.find(CPU) == HERE["cpu"]


def test_a_runtime_that_is_not_installed_is_unavailable_with_the_command_that_installs_it() -> None:
    fakes = Fakes(missing=["rt-cpu|rt-gpu", "numpy"])
    expected = Unavailable("rt-cpu, numpy not installed", "pip install rt")
    assert [fakes.discovery.find(target) for target in (CPU, GPU1)] == [expected, expected]
    assert fakes.asked == []
    assert [worker.stopped for worker in fakes.hired] == [True]
    assert fakes.discovery.take_spare(CPU) is None
    report = fakes.report()
    assert (report.devices, report.error, report.versions) == ({"*": expected}, "", {"rt": "1.0"})


@pytest.mark.parametrize(
    "fault",
    [
        {"devices": WorkerRaised(Stage.DISCOVER, "libdriver.so: cannot open", "reinstall it")},
        {"devices": WorkerDied(Stage.DISCOVER, "died by SIGSEGV", "reinstall it")},
        {"start": StageError(Stage.DISCOVER, "no worker for rt", "reinstall it")},
    ],
)
def test_an_error_is_remembered_and_raised_each_time(fault: dict[str, Any]) -> None:
    fakes = Fakes(**fault)
    first = failed(fakes)
    assert first is next(iter(fault.values()))
    assert [failed(fakes, target) for target in (CPU, GPU, GPU1)] == [first] * 3
    assert [worker.stopped for worker in fakes.hired] == [True]
    assert fakes.discovery.take_spare(CPU) is None
    assert fakes.report().error == str(first)
    assert "reinstall it" in fakes.report().error


def test_an_error_of_one_interpreter_is_not_anothers() -> None:
    fakes = Fakes(WorkerDied(Stage.DISCOVER, "died by SIGSEGV"), pythons={"gpu": "its-own"})
    failed(fakes, GPU)
    fakes.answers.devices = HERE
    assert fakes.discovery.find(CPU) == HERE["cpu"]
    failed(fakes, GPU)


def test_a_device_that_the_backend_says_nothing_of_is_an_error_that_names_both() -> None:
    fakes = Fakes({"cpu": HERE["cpu"]})
    for _ in range(2):
        assert "rt says nothing of the device npu" in failed(fakes, NPU).problem
    assert fakes.discovery.find(CPU) == HERE["cpu"]


def test_the_worker_that_was_asked_is_handed_out_once() -> None:
    fakes = Fakes()
    assert fakes.discovery.take_spare(CPU) is None
    fakes.discovery.find(CPU)
    assert fakes.discovery.take_spare(GPU) is fakes.hired[0]  # type: ignore[comparison-overlap]
    assert fakes.discovery.take_spare(GPU) is None
    assert fakes.discovery.take_spare(CPU) is None
    assert not fakes.hired[0].stopped


def test_a_worker_of_another_interpreter_is_not_handed_out() -> None:
    fakes = Fakes(pythons={"gpu": "its-own"})
    fakes.discovery.find(GPU)
    assert fakes.discovery.take_spare(CPU) is None
    assert fakes.discovery.take_spare(GPU) is not None


def test_a_worker_that_has_died_is_not_handed_out() -> None:
    fakes = Fakes()
    fakes.discovery.find(CPU)
    fakes.hired[0].running = False
    assert fakes.discovery.take_spare(CPU) is None
    assert fakes.discovery.find(GPU1) == HERE["gpu.1"]
    assert len(fakes.hired) == 2


def test_nothing_is_reported_before_anything_was_asked() -> None:
    assert Fakes().discovery.reports() == []
