from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from harness.last_words import WorkerLog, exit_description, exit_remedy, hung_in, last_lines

MIB = 1 << 20
DUMP = """\
Thread 0x00007f0000000001 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 320 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

driver: a line of another thread
Current thread 0x00007f0000000002 [MainThread] (most recent call first):
  File "/home/somebody/venv/lib/python3.11/site-packages/openvino/runtime/model.py", line 12 in infer
  File "/home/somebody/clone/harness/backend.py", line 168 in teacher_force
  File "/home/somebody/clone/harness/worker_main.py", line 142 in do_teacher_force
  File "/home/somebody/clone/harness/worker_main.py", line 99 in answer
  File "<string>", line 1 in <module>
"""


def test_the_stack_of_a_hang_is_that_of_the_thread_that_serves_without_what_is_ours() -> None:
    assert hung_in(DUMP) == [
        'File "openvino/runtime/model.py", line 12 in infer',
        'File "harness/backend.py", line 168 in teacher_force',
        'File "harness/worker_main.py", line 142 in do_teacher_force',
    ]


def test_a_deep_stack_keeps_its_innermost_frames() -> None:
    frames = [f'  File "/a/b/deep.py", line {n} in f' for n in range(90)]
    dump = "\n".join(["Current thread 0x1 (most recent call first):", *frames, '  File "worker_main.py", line 1 in x'])
    found = hung_in(dump)
    assert found[0] == 'File "b/deep.py", line 0 in f'
    assert len(found) == 12


def test_a_dump_without_a_serving_thread_says_nothing() -> None:
    assert hung_in("") == []
    assert hung_in("driver: hello\n") == []
    assert hung_in("Current thread 0x1 (most recent call first):\n  <no Python frame>\n") == []


def test_a_fatal_dump_is_cut_to_the_words_before_it_and_its_innermost_frames() -> None:
    frames = [f'  File "C:\\\\Users\\\\me\\\\site-packages\\\\pack\\\\m.py", line {n} in f' for n in range(90)]
    lines = [*(f"driver {n}" for n in range(50)), "Fatal Python error: Aborted", "Current thread 0x1 (x):", *frames]
    found = last_lines(lines)
    assert found[:12] == [f"driver {n}" for n in range(38, 50)]
    assert found[12:14] == ["Fatal Python error: Aborted", "Current thread 0x1 (x):"]
    assert found[14].startswith('  File "pack/m.py"') or "site-packages" not in found[14]
    assert len(found) == 25


def test_a_log_past_its_bound_is_cut_to_its_tail_and_written_on(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    log = WorkerLog(path)
    with path.open("ab", buffering=0) as worker:  # as the worker has it open
        worker.write(b"x" * 99 + b"\n")
        log.trim()
        assert log.size() == 100
        for _ in range(33):
            worker.write((b"y" * 99 + b"\n") * (MIB // 100 + 1))
        worker.write(b"the last line\n")
        log.trim()
        assert log.size() == MIB
        assert "the last line" in log.tail()
        worker.write(b"and one more\n")
    assert path.read_bytes().endswith(b"the last line\nand one more\n")
    assert b"\0" not in path.read_bytes()


def test_a_log_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "none" / "worker.log")
    log.trim()
    log.append("text")
    assert (log.size(), log.tail(), log.read_from(0)) == (0, "", "")


def test_only_what_was_written_since_is_read(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "worker.log")
    log.append("before\n")
    start = log.size()
    log.append("after\n")
    assert log.read_from(start) == "after\n"


@pytest.mark.parametrize(
    ("status", "words"),
    [(None, "its connection closed"), (0, "exit status 0"), (3, "exit status 3"), (-99, "signal 99")],
)
def test_an_exit_status_is_put_into_words(status: int | None, words: str) -> None:
    assert exit_description(status) == words
    assert exit_remedy(status) == ""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_a_kill_that_was_not_ours_points_at_the_kernel() -> None:
    assert exit_description(-signal.SIGKILL) == "signal SIGKILL"
    assert "out of memory" in exit_remedy(-signal.SIGKILL)
    assert exit_remedy(-signal.SIGABRT) == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (0xC0000005, "exit status 0xC0000005 (ACCESS_VIOLATION)"),
        (0xC0000409, "exit status 0xC0000409 (STACK_BUFFER_OVERRUN, or abort)"),
        (0xC0000374, "exit status 0xC0000374 (HEAP_CORRUPTION)"),
        (0xC0000135, "exit status 0xC0000135 (DLL_NOT_FOUND)"),
        (0xC000001D, "exit status 0xC000001D (ILLEGAL_INSTRUCTION)"),
        (0xC00000FD, "exit status 0xC00000FD (STACK_OVERFLOW)"),
        (0xC000013A, "exit status 0xC000013A (CONTROL_C_EXIT)"),
        (0x80000003, "exit status 0x80000003"),
        (0x7FFFFFFF, "exit status 2147483647"),
    ],
)
def test_what_windows_ends_a_process_for_has_a_name(status: int, words: str) -> None:
    assert exit_description(status) == words
