"""Drivers that crash, hang, leak, chatter and garble, and runs that are ended from outside.

Each run must say what happened, judge what it can, and leave no process behind.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from harness import worker as worker_module
from harness.connection import Host
from harness.device_lock import DeviceLock
from harness.errors import Stage, StageError, WorkerDied, WorkerRaised
from harness.target import DeviceKind
from harness.worker import Worker
from support import Tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the faults are planted by means of Linux")

LOGITS = ("-k", "test_logits and not suite")  # three cases
MIB = 1 << 20


@pytest.fixture
def planted(conform: Any, tmp_path: Path, tiny: Tiny) -> Iterator[Callable[..., Worker]]:
    """Starts a worker with a fault, without a run around it."""
    started = []

    def start(fault: str, *, load: bool = True) -> Worker:
        conform.plant(fault)
        worker = Worker("planted:cpu:fp32", tmp_path / "scratch")
        started.append(worker)
        worker.start()
        worker.call(Stage.LOAD, "open", backend="planted")
        if load:
            arguments: dict[str, Any] = {"options": {}, "trust_remote_code": False}
            worker.call(Stage.LOAD, "load", artifact=str(tiny.checkpoint), target="planted:cpu:fp32", **arguments)
        return worker

    yield start
    for worker in started:
        worker.kill()


def test_a_call_that_was_interrupted_is_not_answered_by_the_next(planted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = planted("")
    assert worker.listening
    with monkeypatch.context() as patch:
        patch.setattr(worker, "_wait", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ask(worker)
    assert worker.running
    assert not worker.listening  # so nothing more is asked of it to leave it clean
    worker.stop()
    assert not worker.running


def ask(worker: Worker) -> Any:
    return worker.call(Stage.RUN, "teacher_force", prompt=[1, 2, 3], continuation=[4, 5])


def wait_for_harm(conform: Any, started: subprocess.Popen[str], seconds: float = 60.0) -> None:
    """Wait until a planted fault is at work."""
    deadline = time.monotonic() + seconds
    while not Path(f"{conform.mark}.harm").exists():
        assert started.poll() is None, conform.end(started).text
        assert time.monotonic() < deadline, "the fault was not met"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("fault", "how"),
    [
        ("abort-in-load", "signal SIGABRT"),
        ("kill-in-load", "signal SIGKILL"),
        ("exit-in-prefill", "exit status 3"),
        ("segfault-in-prefill", "signal SIGSEGV"),
        ("abort-in-decode", "signal SIGABRT"),
        ("kill-in-decode", "signal SIGKILL"),
    ],
)
def test_a_death_costs_one_case_wherever_it_happens(conform: Any, fault: str, how: str) -> None:
    result = conform(*LOGITS, fault=f"{fault},once")
    stage = "load" if fault.endswith("load") else "run"
    assert result.outcomes() == Counter({f"ERROR({stage})": 1, "PASS": 2}), result.text
    [case] = [case for case in result.cases if case.outcome == "ERROR"]
    assert how in case.message
    assert f"driver: about to {fault.split('-')[0]}" in case.message
    assert ("out of memory" in case.message) == (how == "signal SIGKILL")
    assert result.status == 1
    assert result.record.complete
    assert not conform.leftovers()


def test_a_crash_keeps_the_stack_without_folders_of_the_machine(conform: Any) -> None:
    case = conform(*LOGITS, fault="segfault-in-prefill,once").cases[0]
    assert "Fatal Python error: Segmentation fault" in case.message
    assert 'File "planted/planted_harm.py", line' in case.message
    assert str(Path(__file__).parent.parent) not in case.message
    assert len(case.message.splitlines()) < 40


def test_a_target_that_keeps_dying_while_it_loads_is_given_up(conform: Any) -> None:
    result = conform("-k", "(test_greedy_form or test_logits) and not suite", fault="abort-in-load")
    assert result.outcomes() == Counter({"ERROR(load)": 3, "NOT_RUN": 3})
    given_up = next(case.message for case in result.cases if case.outcome == "NOT_RUN")
    assert "given up after its worker had died 3 times" in given_up
    assert "signal SIGABRT" in given_up


def test_the_kernel_takes_a_worker_before_the_controller(planted: Callable[..., Worker]) -> None:
    worker = planted("", load=False)
    assert Path(f"/proc/{worker.pid}/oom_score_adj").read_text(encoding="ascii").strip() == "1000"


def test_a_leak_is_stopped_and_named(conform: Any) -> None:
    result = conform(*LOGITS, "--worker-memory=0.4", fault="leak-in-decode,once")
    assert result.outcomes() == Counter({"ERROR(run)": 1, "PASS": 2})
    message = result.cases[0].message
    assert "was killed in teacher_force: it held 0." in message
    assert "more than --worker-memory 0.4" in message
    assert "a larger --worker-memory GIB" in message
    assert not conform.leftovers()


@pytest.mark.parametrize("fault", ["hang-in-load", "gil-hang-in-prefill", "hang-in-decode"])
def test_a_hang_is_ended_and_says_where(conform: Any, fault: str) -> None:
    stage = "load" if fault.endswith("load") else "run"
    result = conform(*LOGITS, f"--stage-timeout={stage}=1", fault=f"{fault},once")
    hung = [case for case in result.cases if case.outcome == "ERROR"]
    assert len(hung) == (3 if stage == "load" else 1)  # to load again may take half an hour to time out again
    assert len(result.cases) == 3
    message = hung[0].message
    assert "within 1 s and was killed" in message
    assert f"--stage-timeout {stage}=SECONDS" in message
    assert 'it hung in:\n    | File "planted/planted_harm.py", line' in message
    assert f"in do_{'load' if stage == 'load' else 'teacher_force'}" in message
    assert "driver: about to" in message
    assert len(message.splitlines()) < 24
    assert not conform.leftovers()


MARKED = """
import pytest

pytestmark = pytest.mark.stage_timeout({module})

@pytest.mark.stage_timeout({function})
def test_mine(session, prompt, judge):
    judge.logits(prompt, session.errors(prompt))
"""


def test_a_mark_gives_a_test_timeouts_of_its_own(conform: Any, tmp_path: Path) -> None:
    path = tmp_path / "test_mine.py"
    path.write_text(MARKED.format(module="run=900, load=60", function="run=1"), encoding="utf-8")
    started = time.monotonic()
    result = conform(str(path), "-k", "test_mine", "--stage-timeout=run=900", fault="hang-in-decode,once")
    assert result.outcomes() == Counter({"ERROR(run)": 1, "PASS": 2}), result.text
    assert time.monotonic() - started < 30
    assert "within 1 s and was killed" in result.cases[0].message
    assert "@pytest.mark.stage_timeout(run=SECONDS)" in result.cases[0].message


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ("60", "it takes stages by name"),
        ("", "it takes stages by name"),
        ("compare=3", "'compare' is no stage"),
        ("run='60'", "run='60' is no number of seconds"),
        ("run=-1", "run=-1 is no number of seconds"),
    ],
)
def test_a_mark_that_cannot_be_understood_stops_the_run(conform: Any, tmp_path: Path, mark: str, words: str) -> None:
    path = tmp_path / "test_mine.py"
    path.write_text(MARKED.format(module="run=1", function=mark), encoding="utf-8")
    result = conform(str(path), "-k", "test_mine")
    assert result.status == pytest.ExitCode.USAGE_ERROR
    assert words in result.text
    assert "test_mine.py::test_mine" in result.text
    assert "Traceback" not in result.text


def test_a_mark_that_cannot_be_understood_is_an_error_under_xdist(conform: Any, tmp_path: Path) -> None:
    path = tmp_path / "test_mine.py"
    path.write_text(MARKED.format(module="run=1", function="run=-1"), encoding="utf-8")
    result = conform(str(path), "-k", "test_mine", "-n", "2")
    assert result.outcomes() == Counter({"ERROR(compare)": 3}), result.text
    assert "run=-1 is no number of seconds" in result.cases[0].message
    assert "INTERNALERROR" not in result.text


def test_garbage_on_the_channel_is_one_error(conform: Any) -> None:
    result = conform(*LOGITS, fault="garble-in-decode,once")
    assert result.outcomes() == Counter({"ERROR(run)": 1, "PASS": 2})
    assert "garbled its connection in teacher_force" in result.cases[0].message
    assert "a file descriptor that is not its own" in result.cases[0].message
    assert "Traceback" not in result.text
    assert not conform.leftovers()


def test_children_that_hold_the_connection_do_not_hide_a_death(conform: Any) -> None:
    result = conform(*LOGITS, "--stage-timeout=run=20", fault="breed-in-load,kill-in-decode")
    assert result.outcomes() == Counter({"ERROR(run)": 3})
    assert all("signal SIGKILL" in case.message for case in result.cases)
    assert not conform.leftovers()


def test_a_worker_that_will_not_die_is_killed_with_its_children(
    conform: Any, planted: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "_LAST_WORDS_SECONDS", 0.5)
    worker = planted("breed-in-load,breed-apart-in-load,hang-in-close")
    assert len(conform.leftovers()) == 4
    started = time.monotonic()
    worker.stop()
    assert time.monotonic() - started < 8
    assert not worker.running
    assert not conform.leftovers()


def test_a_worker_that_ends_well_takes_its_children_along(conform: Any, planted: Callable[..., Worker]) -> None:
    worker = planted("breed-in-load,breed-apart-in-load")
    started = time.monotonic()
    worker.stop()
    assert time.monotonic() - started < 8
    assert not conform.leftovers()


def test_a_hundred_megabytes_of_output_fill_no_disk(planted: Callable[..., Worker], tmp_path: Path) -> None:
    worker = planted("chatter-in-prefill,hang-in-decode")
    worker.limits.mark({Stage.RUN: 2.0})
    started = time.monotonic()
    with pytest.raises(Exception, match="did not answer") as caught:
        ask(worker)
    assert time.monotonic() - started < 8
    assert "driver: the last line" in str(caught.value)
    assert "in hang" in str(caught.value)
    sizes = [path.stat().st_size for path in (tmp_path / "scratch").glob("*.log")]
    assert len(sizes) == 1
    assert MIB / 2 < sizes[0] < 2 * MIB


def test_a_full_disk_loses_nothing(conform: Any) -> None:
    result = conform(fault="full-disk-in-load")
    assert set(result.outcomes()) == {"PASS", "UNSUPPORTED"}, result.text
    assert result.status == 0


def test_an_answer_that_cannot_be_sent_is_an_error_of_that_call(planted: Callable[..., Worker]) -> None:
    worker = planted("")
    with pytest.raises(WorkerRaised, match="its answer cannot be sent"):
        worker.call(Stage.RUN, "invoke", method="half_a_surrogate", arguments={})
    assert ask(worker).shape[0] == 5


def test_a_worker_killed_between_two_calls_is_a_death(planted: Callable[..., Worker]) -> None:
    worker = planted("")
    psutil.Process(worker.pid).kill()
    with pytest.raises(WorkerDied, match="SIGKILL"):
        ask(worker)
    assert not worker.running


@pytest.mark.parametrize("processes", ["0", "2"])
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 2), (signal.SIGTERM, 143)])
def test_a_run_that_is_ended_keeps_its_record_and_leaves_nothing(
    conform: Any, number: int, status: int, processes: str
) -> None:
    started = conform.start(*LOGITS, "-n", processes, fault="hang-in-decode,late")
    wait_for_harm(conform, started)
    time.sleep(0.3)  # a report of the case before may be on its way from an xdist worker
    started.send_signal(number)
    result = conform.end(started)
    assert result.status == status, result.text
    assert result.outcomes() == Counter(PASS=1)
    assert not result.record.complete
    assert result.record.exit_status == status
    assert "incomplete: the run was cut short" in result.text
    assert not conform.leftovers(seconds=1.0)


BROKEN_OFF = """
import pytest

def pytest_runtest_logreport(report):
    if report.when == "call" and "second" in report.nodeid:
        raise KeyboardInterrupt
"""


def test_more_interruptions_while_workers_are_stopped_lose_no_record(conform: Any, tmp_path: Path) -> None:
    (tmp_path / "broken_off.py").write_text(BROKEN_OFF, encoding="utf-8")
    plugin = ("-p", "broken_off", "-o", f"pythonpath={tmp_path}")
    started = conform.start(*LOGITS, *plugin, fault="hang-in-close")
    wait_for_harm(conform, started)  # the run is over, and its idle worker is asked to end
    for number in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        time.sleep(0.3)
        started.send_signal(number)
    result = conform.end(started)
    assert result.status == pytest.ExitCode.INTERRUPTED, result.text
    assert result.outcomes()["PASS"] >= 1
    assert not result.record.complete
    assert "incomplete: the run was cut short" in result.text
    assert not conform.leftovers()


def test_what_fails_while_workers_are_stopped_fails_the_run_and_loses_no_record(conform: Any, tmp_path: Path) -> None:
    (tmp_path / "no_end.py").write_text(
        "from harness.crew import Crew\n"
        "close = Crew.close\n"
        "def refuse(crew):\n"
        "    close(crew)\n"
        "    raise ZeroDivisionError('a worker will not')\n"
        "Crew.close = refuse\n",
        encoding="utf-8",
    )
    result = conform(*LOGITS, "-p", "no_end", "-o", f"pythonpath={tmp_path}")
    assert result.outcomes() == Counter(PASS=3), result.text
    assert result.status == result.record.exit_status == pytest.ExitCode.TESTS_FAILED
    assert result.record.complete
    assert "FAILED as a whole: workers could not be stopped: ZeroDivisionError: a worker will not" in result.text
    assert "INTERNALERROR" not in result.text


def test_a_device_taken_after_a_death_ends_the_target_and_is_waited_for_once(conform: Any) -> None:
    arguments = ("-k", "test_attestation or test_logits", "--device-wait=2", "--stage-timeout=run=2")
    started = conform.start(*arguments, fault="counter,hang-in-decode,late", targets="planted:pretender:fp32")
    wait_for_harm(conform, started)
    taken = DeviceLock(DeviceKind.NPU, conform.mark.parent / "locks")
    while taken.claim("another run") is not None:
        assert started.poll() is None
        time.sleep(0.005)
    try:
        result = conform.end(started)
    finally:
        taken.release()
    assert result.outcomes() == Counter({"PASS": 1, "ERROR(run)": 2, "ERROR(load)": 2}), result.text
    refused = [case for case in result.cases if case.stage == "load"]
    assert all("is in use by process" in case.message for case in refused)
    assert refused[0].seconds >= 2
    assert refused[1].seconds < 1
    [session] = result.record.sessions
    assert session.evidence is not None, "what the first cases showed is kept"


def test_who_else_answers_to_sigterm_is_left_alone(conform: Any, tmp_path: Path) -> None:
    (tmp_path / "polite.py").write_text(
        "import os, signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.write(2, b'politely refused'))\n"
        "def pytest_runtest_logreport(report):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n",
        encoding="utf-8",
    )
    result = conform(*LOGITS, "-p", "polite", "-o", f"pythonpath={tmp_path}")
    assert result.outcomes() == Counter(PASS=3), result.text
    assert "politely refused" in result.text


@pytest.mark.parametrize("fault", ["hang-in-decode", "gil-hang-in-load", "exporter-hangs"])
def test_a_killed_controller_leaves_no_worker_and_no_exporter(
    conform: Any, fault: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path))
    started = conform.start(*LOGITS, fault=fault)
    wait_for_harm(conform, started)
    assert len(conform.leftovers()) == (3 if fault == "exporter-hangs" else 2)
    started.kill()
    started.communicate()
    assert not conform.leftovers(seconds=3.0)


@pytest.fixture
def mute_python(conform: Any, tmp_path: Path) -> Path:
    """An interpreter that never answers."""
    script = tmp_path / "mute-python"
    script.write_text(f"#!/bin/sh\necho no licence >&2\ntouch {conform.mark}.harm\nsleep 400\n", encoding="utf-8")
    script.chmod(0o755)
    return script


def test_an_interpreter_that_does_not_answer_is_given_up_and_named(
    conform: Any, mute_python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conform.plant("")
    monkeypatch.setattr(worker_module, "_START_SECONDS", 1.0)
    worker = Worker("planted:cpu:fp32", mute_python.parent / "scratch", interpreter=mute_python)
    started = time.monotonic()
    with pytest.raises(StageError, match="did not answer within 1 s") as caught:
        worker.start(Stage.DISCOVER)
    assert time.monotonic() - started < 5
    assert str(mute_python) in caught.value.problem
    assert "no licence" in caught.value.problem
    assert "--interpreter" in caught.value.remedy
    assert not worker.running
    assert not conform.leftovers(1.0)


def test_an_interpreter_that_does_not_answer_can_be_interrupted(conform: Any, mute_python: Path) -> None:
    started = conform.start(*LOGITS, f"--interpreter=planted={mute_python}")
    wait_for_harm(conform, started)
    started.send_signal(signal.SIGINT)
    result = conform.end(started)
    assert result.status == pytest.ExitCode.INTERRUPTED, result.text
    assert not conform.leftovers(1.0)


def test_an_interpreter_that_ends_at_once_says_how_and_why(tmp_path: Path) -> None:
    script = tmp_path / "broken-python"
    script.write_text("#!/bin/sh\necho libpython.so is missing >&2\nexit 77\n", encoding="utf-8")
    script.chmod(0o755)
    with pytest.raises(StageError, match="it ended with exit status 77") as caught:
        Worker("planted:cpu:fp32", tmp_path / "scratch", interpreter=script).start()
    assert str(script) in caught.value.problem
    assert "libpython.so is missing" in caught.value.problem


class _There:
    """Stands for the lab; remembers whom it was asked to end."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int]] = []

    def end(self, host: str, pid: int) -> None:
        self.ended.append((host, pid))

    def tail(self, host: str, log: str) -> str:  # noqa: ARG002
        return ""


def test_a_worker_on_a_host_that_garbled_its_connection_is_ended_there(tmp_path: Path) -> None:
    there = _There()
    worker = Worker("planted:cpu:fp32:lab1", tmp_path, host=Host("lab1", "ssh=lab"), there=there)
    worker.pid = 4711
    assert isinstance(worker._garbled(Stage.RUN, "generate"), WorkerDied)
    connection: Any = SimpleNamespace(garbled=False, exit_status=lambda _: 255)
    assert "its connection to lab1 ended" in str(worker._died(connection, Stage.RUN, "generate", EOFError()))
    assert there.ended == [("lab1", 4711)] * 2


def test_a_wait_for_a_device_is_told_under_xdist_too(conform: Any) -> None:
    taken = DeviceLock(DeviceKind.NPU, conform.mark.parent / "locks")
    assert taken.claim("another run") is None
    try:
        result = conform(*LOGITS, "--device-wait=2", "-n", "1", fault="counter", targets="planted:pretender:fp32")
    finally:
        taken.release()
    assert result.outcomes() == Counter({"ERROR(load)": 3}), result.text
    assert result.text.count("planted:pretender:fp32 waits for its device: process") == 1


def test_an_exporter_runs_as_if_it_were_the_main_module(tmp_path: Path) -> None:
    package = tmp_path / "path" / "pack"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tool.py").write_text(
        "import sys, json, os\n"
        "import main_thing\n"
        "print(json.dumps([__name__, sys.argv[1:], os.path.basename(sys.argv[0]), main_thing.__file__]))\n"
        "sys.exit(7)\n",
        encoding="utf-8",
    )
    (tmp_path / "path" / "main_thing.py").touch()
    (tmp_path / "main_thing.py").write_text("raise SystemExit('shadowed')", encoding="utf-8")
    command = [sys.executable, "-m", "harness.exporter_main", "pack.tool", "-m", "two words"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path")}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 7, found.stderr
    assert found.stdout.startswith('["__main__", ["-m", "two words"], "tool.py"')
