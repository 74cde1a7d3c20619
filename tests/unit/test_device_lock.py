"""The lock of a machine's NPU or GPU: between processes, and when its files are not as they should be."""

from __future__ import annotations

import contextlib
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.device_lock import DeviceLock, Holder, lock_folder
from harness.errors import ResourceError
from harness.target import DeviceKind

_HOLD = """
import sys
from pathlib import Path
from harness.device_lock import DeviceLock
from harness.target import DeviceKind
lock = DeviceLock(DeviceKind.NPU, Path(sys.argv[1]))
print(lock.claim("openvino:npu:int4"), flush=True)
sys.stdin.read()
lock.release()
"""

_TAKE_TURNS = """
import sys, time
from pathlib import Path
from harness.device_lock import DeviceLock
from harness.target import DeviceKind
folder, rounds = Path(sys.argv[1]), 0
lock = DeviceLock(DeviceKind.NPU, folder)
while rounds < 20:
    if lock.claim("planted:npu:fp32") is None:
        with (folder / "in-use").open("x"):
            time.sleep(0.001)
        (folder / "in-use").unlink()
        lock.release()
        rounds += 1
    time.sleep(0.001)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@contextlib.contextmanager
def another_holds(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the NPU until its input ends."""
    command = [sys.executable, "-c", _HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "None\n"
            yield process
        finally:
            process.kill()


def take_and_release(folder: Path, kind: DeviceKind = DeviceKind.NPU) -> Holder | None:
    lock = DeviceLock(kind, folder)
    holder = lock.claim("another")
    lock.release()
    return holder


def test_a_device_that_another_process_holds_is_not_given_and_the_holder_is_named(folder: Path) -> None:
    with another_holds(folder) as process:
        holder = take_and_release(folder)
        assert holder is not None
        assert (holder.pid, holder.target) == (process.pid, "openvino:npu:int4")
        assert f"process {process.pid} with openvino:npu:int4, since 20" in str(holder)
        process.communicate()
        assert process.returncode == 0
    assert take_and_release(folder) is None


def test_asking_in_vain_takes_nothing_from_the_holder(folder: Path) -> None:
    with another_holds(folder) as process:
        first, second = take_and_release(folder), take_and_release(folder)
        assert first == second
        assert second is not None
        assert second.pid == process.pid


def test_a_device_is_free_after_its_holder_was_killed(folder: Path) -> None:
    with another_holds(folder) as process:
        process.kill()
        process.wait()
        lock = DeviceLock(DeviceKind.NPU, folder)
        assert lock.claim("the next") is None
        holder = take_and_release(folder)
        lock.release()
    assert holder is not None
    assert (holder.pid, holder.target) == (os.getpid(), "the next")


def test_processes_that_race_for_a_device_have_it_one_at_a_time(folder: Path) -> None:
    folder.mkdir()
    command = [sys.executable, "-c", _TAKE_TURNS, str(folder)]
    with contextlib.ExitStack() as stack:
        racing = [stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True)) for _ in range(3)]
        assert [process.communicate(timeout=60)[1] for process in racing] == [""] * 3


def test_two_locks_of_one_process_exclude_each_other(folder: Path) -> None:
    lock = DeviceLock(DeviceKind.GPU, folder)
    assert lock.claim("one") is None
    found = []
    thread = threading.Thread(target=lambda: found.append(take_and_release(folder, DeviceKind.GPU)))
    thread.start()
    thread.join()
    again = take_and_release(folder, DeviceKind.GPU)
    lock.release()
    assert [holder and holder.target for holder in (*found, again)] == ["one", "one"]


def test_two_kinds_of_device_do_not_exclude_each_other(folder: Path) -> None:
    with another_holds(folder):
        gpu = DeviceLock(DeviceKind.GPU, folder)
        assert gpu.claim("openvino:gpu:int4") is None
        holder = take_and_release(folder, DeviceKind.NPU)
        gpu.release()
    assert holder is not None
    assert holder.target == "openvino:npu:int4"


def test_releasing_twice_or_before_a_claim_does_nothing(folder: Path) -> None:
    lock = DeviceLock(DeviceKind.NPU, folder)
    lock.release()
    assert lock.claim("one") is None
    lock.release()
    other = DeviceLock(DeviceKind.NPU, folder)
    assert other.claim("two") is None
    lock.release()  # must not take it from the other
    holder = take_and_release(folder)
    other.release()
    assert holder is not None
    assert holder.target == "two"


def test_a_lock_can_be_taken_again(folder: Path) -> None:
    lock = DeviceLock(DeviceKind.NPU, folder)
    for _ in range(2):
        assert lock.claim("one") is None
        lock.release()
    assert take_and_release(folder) is None


GARBAGE = [b"", b"{", b"\xff\xfe", b"null", b"[]", b"{}", b'{"pid": "x", "target": 1, "since": []}']


@pytest.mark.parametrize("content", GARBAGE)
def test_a_holder_that_cannot_be_read_still_holds(folder: Path, content: bytes) -> None:
    with another_holds(folder):
        (folder / "npu.json").write_bytes(content)
        holder = take_and_release(folder)
    assert holder is not None
    assert "a target it has not written down" in str(holder)


def test_a_holder_that_is_gone_still_holds(folder: Path) -> None:
    with another_holds(folder):
        (folder / "npu.json").unlink()
        assert take_and_release(folder) is not None


def test_nobody_is_named_as_holder_after_a_release(folder: Path) -> None:
    assert take_and_release(folder) is None
    assert not (folder / "npu.json").exists()


def test_a_device_is_given_though_its_holder_cannot_be_written_down(folder: Path) -> None:
    (folder / "npu.json").mkdir(parents=True)
    assert take_and_release(folder) is None


@pytest.mark.parametrize("below", ["", "below/it"])
def test_a_folder_that_cannot_be_made_is_an_error_with_what_to_do(folder: Path, below: str) -> None:
    folder.write_text("no folder", encoding="utf-8")
    with pytest.raises(ResourceError, match="cannot be used") as caught:
        DeviceLock(DeviceKind.NPU, folder / below).claim("one")
    assert str(folder) in caught.value.problem
    assert "PHI3_CONFORMANCE_LOCKS" in caught.value.remedy


def test_a_lock_file_that_cannot_be_opened_is_an_error_with_what_to_do(folder: Path) -> None:
    (folder / "npu.lock").mkdir(parents=True)
    with pytest.raises(ResourceError, match="cannot be used") as caught:
        DeviceLock(DeviceKind.NPU, folder).claim("one")
    assert "PHI3_CONFORMANCE_LOCKS" in caught.value.remedy


@pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")
def test_a_link_in_the_folders_place_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ResourceError, match="no folder"):
        DeviceLock(DeviceKind.NPU, folder).claim("one")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")
def test_every_user_can_lock_and_none_can_delete_anothers_lock(folder: Path) -> None:
    before = os.umask(0o077)
    try:
        assert take_and_release(folder) is None
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777
    assert stat.S_IMODE((folder / "npu.lock").stat().st_mode) == 0o666


@pytest.mark.skipif(sys.platform == "win32", reason="modes and links of POSIX")
def test_the_mode_of_a_folder_that_is_there_is_left_alone(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o750)
    assert take_and_release(folder) is None
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


def test_the_folder_is_the_same_whatever_a_users_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("PHI3_CONFORMANCE_LOCKS", raising=False)
    before = lock_folder()
    for name in ("TMPDIR", "TEMP", "TMP", "HOME"):
        monkeypatch.setenv(name, str(tmp_path))
    assert lock_folder() == before
    monkeypatch.setenv("PHI3_CONFORMANCE_LOCKS", str(tmp_path / "mine"))
    assert lock_folder() == tmp_path / "mine"
