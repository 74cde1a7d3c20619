"""A lab of two hosts, over a real sshd on loopback: judged beside this machine, lost, refused, crashed."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.device_lock import DeviceLock
from harness.target import DeviceKind
from sshd import NEEDED, Sshd, available
from support import PLANTED, Result

pytestmark = pytest.mark.skipif(not available(), reason=NEEDED)

HERE = "planted:cpu:fp32"
FEW = ("-k", "first or test_attestation")
CASES = 5  # attestation, and four tests of one prompt

Start = Callable[..., Sshd]


@pytest.fixture
def start(tmp_path: Path, conform: Any) -> Iterator[Start]:
    """Starts hosts, each with a cache and a planted fault of its own."""
    started: list[Sshd] = []

    def start_one(fault: str = "") -> Sshd:
        environment = {"PYTHONPATH": str(PLANTED), "PLANTED_FAULT": fault, "PLANTED_MARK": str(conform.mark)}
        started.append(Sshd(tmp_path / f"host{len(started)}", environment))
        return started[-1]

    yield start_one
    for host in started:
        host.close()


def of_host(result: Result, host: str) -> Counter[str]:
    """The outcomes of a host's target; those of this machine's for an empty name."""
    target = f"{HERE}:{host}" if host else HERE
    return Counter(f"{c.outcome}({c.stage})" if c.stage else c.outcome for c in result.cases if c.target == target)


def run(conform: Any, hosts: dict[str, str], *arguments: str) -> Result:
    """Judge the planted target here and on the hosts."""
    options = [f"--host={name}={spec}" for name, spec in hosts.items()]
    targets = [f"--targets={HERE}:{name}" for name in hosts]
    found: Result = conform(*FEW, *options, *targets, *arguments)
    return found


def test_hosts_are_judged_beside_this_machine_and_files_are_brought_once(conform: Any, start: Start) -> None:
    one, two = start(), start()
    hosts = {"lab1": one.spec(), "lab2": two.spec()}
    result = run(conform, hosts)
    assert result.status == 0, result.text
    for host in ("", "lab1", "lab2"):
        assert of_host(result, host) == Counter(PASS=CASES)
    assert result.record is not None
    assert set(result.record.hosts) == {"lab1", "lab2"}
    assert {session.target for session in result.record.sessions} == {HERE, f"{HERE}:lab1", f"{HERE}:lab2"}
    assert len({session.artifact.sha256 for session in result.record.sessions}) == 1
    assert "bringing tiny to lab1" in result.text
    again = run(conform, hosts)
    assert again.status == 0
    assert "bringing" not in again.text
    assert not conform.leftovers(5.0)


def test_a_host_that_is_switched_off_in_mid_run_costs_its_own_cases_only(conform: Any, start: Start) -> None:
    lost, kept = start("hang-in-prefill,late"), start()
    options = [f"--host=lab1={lost.spec()}", f"--host=lab2={kept.spec()}", "--targets=planted:cpu:fp32:*"]
    begun = conform.start("-k", "test_logits or test_attestation", *options)
    harm = Path(f"{conform.mark}.harm")
    deadline = time.monotonic() + 60
    while not harm.exists():
        assert time.monotonic() < deadline
        assert begun.poll() is None, conform.end(begun)
        time.sleep(0.05)
    lost.kill()
    result = conform.end(begun)
    assert result.status == 1
    assert of_host(result, "") == of_host(result, "lab2") == Counter(PASS=5)
    of_lost = of_host(result, "lab1")
    assert of_lost["PASS"] >= 1  # what was judged before
    assert of_lost["PASS"] + of_lost["ERROR(run)"] == 5, of_lost
    assert "the host lab1 was lost" in result.text
    assert "Traceback" not in result.text
    assert not conform.leftovers(20.0)


def test_a_host_that_cannot_be_reached_is_an_error_that_shows_the_command_to_try(conform: Any, start: Start) -> None:
    host = start()
    spec = host.spec()
    host.kill()
    result = run(conform, {"lab1": spec})
    assert of_host(result, "") == Counter(PASS=CASES)
    assert of_host(result, "lab1") == Counter({"ERROR(discover)": CASES})
    assert "the host lab1 cannot be used" in result.text
    assert f"try: ssh -p {host.port}" in result.text


def test_a_host_without_this_project_is_an_error_that_says_so(conform: Any, start: Start) -> None:
    result = run(conform, {"lab1": start().spec(python=f"{sys.executable} -I -S")})
    assert of_host(result, "") == Counter(PASS=CASES)
    assert of_host(result, "lab1") == Counter({"ERROR(discover)": CASES})
    assert "has no usable phi3-conformance" in result.text
    assert "install this project" in result.text


def test_a_crash_on_a_host_is_reported_with_the_last_output_there(conform: Any, start: Start) -> None:
    result = run(conform, {"lab1": start("abort-in-decode,once").spec()})
    assert of_host(result, "") == Counter(PASS=CASES)
    counts = of_host(result, "lab1")
    assert counts["ERROR(run)"] >= 1
    assert counts["PASS"] >= 1  # the session was started again
    assert any("driver: about to abort" in case.message for case in result.cases if case.outcome == "ERROR")
    reproductions = [line for line in result.text.splitlines() if "reproduce: " in line]
    assert reproductions
    assert all("--host=lab1=ssh=" in line for line in reproductions)
    assert not conform.leftovers(20.0)


def test_a_hang_on_a_host_is_timed_out_and_its_process_ended(conform: Any, start: Start) -> None:
    result = run(conform, {"lab1": start("hang-in-decode,once").spec()}, "--stage-timeout=run=3")
    counts = of_host(result, "lab1")
    assert counts["ERROR(run)"] >= 1
    assert counts["PASS"] >= 1
    assert not conform.leftovers(5.0)


@pytest.mark.parametrize("fault", ["gil-hang-in-decode,once", "garble-in-decode,once"])
def test_a_worker_on_a_host_that_listens_no_more_is_ended(conform: Any, start: Start, fault: str) -> None:
    result = run(conform, {"lab1": start(fault).spec()}, "--stage-timeout=run=3")
    counts = of_host(result, "lab1")
    assert counts["ERROR(run)"] >= 1
    assert counts["PASS"] >= 1
    assert ("garbled its connection" in result.text) == fault.startswith("garble")
    assert not conform.leftovers(5.0)


def test_a_killed_controller_leaves_nothing_on_a_host(conform: Any, start: Start) -> None:
    host = start("gil-hang-in-decode")
    options = [f"--host=lab1={host.spec()}", "--targets=planted:cpu:fp32:lab1"]
    begun = conform.start(*FEW, *options, targets="")
    deadline = time.monotonic() + 60
    while not Path(f"{conform.mark}.harm").exists():
        assert time.monotonic() < deadline
        assert begun.poll() is None, conform.end(begun)
        time.sleep(0.05)
    begun.kill()
    begun.communicate()
    assert not conform.leftovers(5.0)


def test_a_host_without_the_python_of_its_spec_is_told_so(conform: Any, start: Start) -> None:
    result = run(conform, {"lab1": start().spec(python="/nowhere/python")})
    assert of_host(result, "lab1") == Counter({"ERROR(discover)": CASES})
    message = next(case.message for case in result.cases if case.stage == "discover")
    assert "it ended with exit status 127" in message
    assert "ssh said:" in message
    assert "/nowhere/python: No such file" in message
    assert "python=/nowhere/python cannot be run there" in message
    assert "try: ssh" not in message


def test_a_device_lock_is_the_hosts_own(conform: Any, tmp_path: Path) -> None:
    """A run that holds this machine's NPU does not keep another from a host's."""
    held = DeviceLock(DeviceKind.NPU, conform.mark.parent / "locks")
    assert held.claim("another run") is None
    environment = {"PYTHONPATH": str(PLANTED), "PLANTED_FAULT": "counter", "PLANTED_MARK": str(conform.mark)}
    host = Sshd(tmp_path / "own", {**environment, "PHI3_CONFORMANCE_LOCKS": str(tmp_path / "own-locks")})
    try:
        options = (f"--host=lab1={host.spec()}", "--device-wait=1", "--targets=planted:pretender:fp32:lab1")
        result = conform(*FEW, *options, targets="")
    finally:
        held.release()
        host.close()
    assert result.outcomes() == Counter(PASS=CASES), result.text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--targets=planted:cpu:fp32:lab9"], "selects no target"),
        (["--host=lab1"], "names no new host"),
        (["--host=Lab 1=ssh=x"], "names no new host"),
        (["--host=lab1=popen"], "does not say how to reach the machine"),
        (["--host=lab1=ssh=x", "--host=lab1=ssh=y"], "names no new host"),
    ],
)
def test_bad_host_options_are_usage_errors(conform: Any, options: list[str], words: str) -> None:
    result = conform(*FEW, *options)
    assert result.status == 4
    assert words in result.text
    assert "Traceback" not in result.text


def test_under_xdist_hosts_are_judged_too(conform: Any, start: Start) -> None:
    result = run(conform, {"lab1": start().spec()}, "-n", "2")
    assert result.status == 0, result.text
    assert of_host(result, "lab1") == of_host(result, "") == Counter(PASS=CASES)
    assert result.record is not None
    assert "lab1" in result.record.hosts
