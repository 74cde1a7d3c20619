"""The page of text about a machine, its runtimes and its targets."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.accelerators import Accelerator
from harness.backend import DeviceReport
from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.report.devices import DevicesReport, TargetReport, describe_devices
from harness.target import DeviceKind, Unavailable

MACHINE = Machine("Linux", "6.11", "x86_64", "a processor", 16, 32 << 30, "3.11.7")
NPU = Accelerator(DeviceKind.NPU, "Intel NPU 4000 (Lunar Lake)", "intel_vpu", "6.11.0", "20240916")
PROPERTIES = {"name": "a processor", "threads": "4"}


def running(target: str, device: str = "a processor") -> TargetReport:
    return TargetReport(target, DeviceKind.CPU, True, device=device, properties=PROPERTIES)


def idle(target: str, reason: str = "there is no NPU", remedy: str = "put one in") -> TargetReport:
    return TargetReport(target, DeviceKind.NPU, False, reason=reason, remedy=remedy)


def report(**changes: Any) -> DevicesReport:
    fields: dict[str, Any] = {"schema": 1, "harness": "0.1.0", "machine": MACHINE, "hosts": {}, "runtimes": []}
    return DevicesReport(**{**fields, "targets": [], **changes})


def blocks(shown: DevicesReport) -> list[list[str]]:
    """The paragraphs of the text, as lines without indentation."""
    text = describe_devices(shown)
    return [[line.strip() for line in block.splitlines()] for block in text.split("\n\n")]


def test_a_machine_is_described_with_its_accelerators() -> None:
    (first, *_) = blocks(report(machine=msgspec.structs.replace(MACHINE, accelerators=(NPU,))))
    assert first == [
        "this machine: a processor, 16 cores, 32 GiB",
        "Linux 6.11 on x86_64, Python 3.11.7",
        "npu: Intel NPU 4000 (Lunar Lake), driver intel_vpu 6.11.0, firmware 20240916",
    ]


def test_a_machine_without_accelerators_says_so_and_unread_firmware_is_left_out() -> None:
    assert "knows no GPU and no NPU" in blocks(report())[0][-1]
    bare = msgspec.structs.replace(NPU, firmware="")
    assert "firmware" not in describe_devices(report(machine=msgspec.structs.replace(MACHINE, accelerators=(bare,))))


def test_hosts_are_described_after_this_machine() -> None:
    (_, second, *_) = blocks(report(hosts={"lab1": MACHINE}))
    assert second[0] == "host lab1: a processor, 16 cores, 32 GiB"


def test_runtimes_are_listed_with_their_versions_or_their_error() -> None:
    runtimes = [
        RuntimeReport("openvino", None, "3.11.7", {"openvino": "2026.4", "nncf": "3.4"}, {}),
        RuntimeReport("pytorch", "lab1", "", {}, {}, error="cannot be opened\n  remedy: reinstall it"),
    ]
    _, lines, *_ = blocks(report(runtimes=runtimes))
    assert lines == [
        "runtimes:",
        "openvino        Python 3.11.7: nncf 3.4, openvino 2026.4",
        "pytorch on lab1 Python ?: none of its packages",
        "cannot be opened",
        "remedy: reinstall it",
    ]


def test_precisions_of_a_device_share_a_line_and_a_property_that_repeats_its_name_is_left_out() -> None:
    targets = [running("rt:cpu:fp32"), running("rt:cpu:int4"), running("rt:gpu.1:int4", "a card")]
    lines = blocks(report(targets=targets))[-1]
    assert [line.split() for line in lines[1:]] == [
        ["rt:cpu", "fp32", "int4", "a", "processor", "(threads", "4)"],
        ["rt:gpu.1", "int4", "a", "card", "(name", "a", "processor,", "threads", "4)"],
    ]


def test_targets_of_hosts_are_told_from_those_of_this_machine() -> None:
    lines = blocks(report(targets=[running("rt:cpu:fp32"), running("rt:cpu:fp32:lab1")]))[-1]
    assert [line.split()[0] for line in lines[1:]] == ["rt:cpu", "rt:cpu:lab1"]


def test_targets_that_do_not_run_are_listed_by_reason_and_remedy() -> None:
    targets = [idle("rt:npu:int8"), idle("rt:gpu:int4", "no GPU"), idle("rt:npu:int4"), idle("x:npu:int4", remedy="")]
    assert blocks(report(targets=targets))[-2:] == [
        ["no target runs here"],
        [
            "does not run here:",
            *("rt:npu:int8, rt:npu:int4", "there is no NPU", "put one in"),
            *("rt:gpu:int4", "no GPU", "put one in"),
            *("x:npu:int4", "there is no NPU"),
        ],
    ]


def test_where_everything_runs_nothing_else_is_listed() -> None:
    assert "does not run here" not in describe_devices(report(targets=[running("rt:cpu:fp32")]))


_WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
_NAMES = st.sampled_from(["rt:cpu:fp32", "rt:gpu.1:int4", "rt:npu:int8:lab1"])
_DEVICES = st.builds(DeviceReport, _WORDS, st.dictionaries(_WORDS, _WORDS, max_size=2))
_REPORTS = st.builds(
    DevicesReport,
    schema=st.just(1),
    harness=st.just("0.1.0"),
    machine=st.builds(
        Machine,
        *(_WORDS, _WORDS, _WORDS, _WORDS, st.integers(1, 512), st.integers(0, 2**50), _WORDS),
        st.lists(st.builds(Accelerator, st.sampled_from(DeviceKind), *[_WORDS] * 4), max_size=2).map(tuple),
    ),
    hosts=st.dictionaries(st.just("lab1"), st.just(MACHINE)),
    runtimes=st.lists(
        st.builds(
            RuntimeReport,
            *(_WORDS, st.none() | st.just("lab1"), _WORDS, st.dictionaries(_WORDS, _WORDS, max_size=2)),
            st.dictionaries(_WORDS, _DEVICES | st.builds(Unavailable, _WORDS, _WORDS), max_size=2),
            _WORDS,
        ),
        max_size=2,
    ),
    targets=st.lists(
        st.builds(
            TargetReport,
            *(_NAMES, st.sampled_from(DeviceKind), st.booleans(), _WORDS),
            *(st.dictionaries(_WORDS, _WORDS, max_size=2), _WORDS, _WORDS),
        ),
        max_size=4,
    ),
)


@settings(max_examples=40)
@given(_REPORTS)
def test_any_report_survives_json_and_its_text_adds_nothing_to_ascii(shown: DevicesReport) -> None:
    encoded = msgspec.json.encode(shown)
    assert msgspec.json.decode(encoded, type=DevicesReport) == shown
    text = describe_devices(shown)
    assert {character for character in text if not character.isascii()} <= set(encoded.decode())
    for target in shown.targets:
        name, precision = target.target.split(":")[0], target.target.split(":")[2]
        assert target.target in text or (target.runs and name in text and precision in text)
