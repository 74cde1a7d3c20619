from __future__ import annotations

import io
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.connection import HeadCheck, Host, _spec_there, quote_there


def _message(kind: int, channel: int, body: bytes) -> bytes:
    return struct.pack("!bii", kind, channel, len(body)) + body


def _read_message(check: HeadCheck) -> bytes:
    """As execnet reads one: the head, then as many bytes as it says."""
    _, _, length = struct.unpack("!bii", check(9))
    return check(length)


@given(st.lists(st.tuples(st.sampled_from([4, 5, 6, 7]), st.integers(1, 99), st.binary(max_size=20)), max_size=6))
def test_messages_pass_as_they_are(messages: list[tuple[int, int, bytes]]) -> None:
    check = HeadCheck(io.BytesIO(b"".join(_message(*message) for message in messages)).read)
    assert [_read_message(check) for _ in messages] == [body for _, _, body in messages]
    assert not check.garbled


def test_the_body_of_a_message_whose_head_was_read_before_passes() -> None:
    check = HeadCheck(io.BytesIO(b"a greeting" + _message(4, 1, b"123456789") + _message(5, 1, b"")).read)
    assert check(10) == b"a greeting"
    assert [_read_message(check), _read_message(check)] == [b"123456789", b""]


@pytest.mark.parametrize(
    "garbage",
    [
        b"driver: assertion failed in queue.c",
        b"\n" * 40,
        bytes(40),
        b"\xff" * 40,
        struct.pack("!bii", 4, 1, -5),
        struct.pack("!bii", 3, 1, 0),
        struct.pack("!bii", 4, 0, 0),
        struct.pack("!bii", 4, 1 << 20, 0),
    ],
)
def test_what_is_no_message_is_refused_before_anything_more_is_waited_for(garbage: bytes) -> None:
    check = HeadCheck(io.BytesIO(_message(4, 1, b"fine") + garbage).read)
    assert _read_message(check) == b"fine"
    with pytest.raises(ValueError, match="not the head"):
        _read_message(check)
    assert check.garbled


@pytest.mark.parametrize(
    ("path", "quoted"),
    [
        (r"C:\Program Files\Python\python.exe", r'"C:\Program Files\Python\python.exe"'),
        ("d:/venv/Scripts/python.exe", '"d:/venv/Scripts/python.exe"'),
        (r"\\server\venv\python.exe", r'"\\server\venv\python.exe"'),
        (r".tox\openvino\Scripts\python.exe", r'".tox\openvino\Scripts\python.exe"'),
        ("/opt/venv/bin/python", "/opt/venv/bin/python"),
        ("/opt/my venv/bin/python", "'/opt/my venv/bin/python'"),
        (r"/opt/odd\name/bin/python", r"'/opt/odd\name/bin/python'"),
    ],
)
def test_a_path_is_quoted_for_the_shell_of_its_machine(path: str, quoted: str) -> None:
    assert quote_there(path) == quoted
    spec = _spec_there(path, Host("lab1", "ssh=me@lab//python=python"))
    assert f"//python={quoted}//" in spec
    assert spec.count("python=") == 1
