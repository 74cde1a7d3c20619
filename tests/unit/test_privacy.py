from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.environment import MASKED, recorded
from harness.privacy import Privacy, machines_named, of_this_machine
from harness.untrusted import all_printable, is_plain_name, printable


@pytest.fixture
def privacy(monkeypatch: pytest.MonkeyPatch) -> Privacy:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    return Privacy(Path("/src/tree"), {"somebody": "<user>", "box7": "<host>", "s3cret-value": "<secret>"})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("--checkpoint=/src/tree/golden/x", "--checkpoint=./golden/x"),
        ("/home/somebody/models", "~/models"),
        ("/home/somebody2/models", "~/models"),
        ("/src/tree", "."),
        ("/src/tree2/x", "/src/tree2/x"),
        ("-I/home/somebody/include", "-I~/include"),
        ("/Users/jane/x and '/home/joe'", "~/x and '~'"),
        (r"C:\Users\Jane\AppData\Local\Temp", r"~\AppData\Local\Temp"),
        (r"'c:\\Users\\Jane\\x'", r"'~\\x'"),
        ("D:/Users/jane/x", "~/x"),
        ("somebody@lab.example.org: refused", "<account>: refused"),
        ("SOMEBODY on Box7.", "<user> on <host>."),
        ("box77 and xbox7", "box77 and xbox7"),
        ("--host=lab1=ssh=jane@lab//python=/home/jane/bin/python", "--host=lab1=ssh=<host>//python=~/bin/python"),
        ("--host=lab1=ssh=-p 22 lab.example//chdir=x", "--host=lab1=ssh=<host>//chdir=x"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer <secret>"),
        ("https://me:pw@example.org/x", "https://<secret>@example.org/x"),
        ("token hf_AbCdEfGhIjKlMnOpQrSt used", "token <secret> used"),
        ("it is s3cret-value", "it is <secret>"),
        ("openvino:cpu:int4", "openvino:cpu:int4"),
        ("https://github.com/microsoft/x/pull/282", "https://github.com/microsoft/x/pull/282"),
        ("-m", "-m"),
    ],
)
def test_what_is_private_is_hidden_and_nothing_else(privacy: Privacy, text: str, expected: str) -> None:
    assert privacy.hide(text) == expected
    assert privacy.hide(expected) == expected


def test_a_tree_below_the_home_folder_is_shortened_as_the_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/home/somebody"))
    privacy = Privacy(Path("/home/somebody/tree"))
    assert privacy.hide("/home/somebody/tree/a /home/somebody/b") == "./a ~/b"


def test_a_home_folder_at_the_root_leaves_paths_readable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: Path("/"))
    assert Privacy(Path("/src/tree")).hide("/data/models/x") == "/data/models/x"


def test_fields_that_name_things_keep_their_names(privacy: Privacy) -> None:
    plain = {
        "id": "../home/somebody/x.py::test[box7]",
        "case": "test_logits[somebody]",
        "message": "somebody",
        "numbers": {"kl": 1.0},
        "kl": [0.5, 1.0],
        "command": ["/src/tree/x", "box7"],
        "none": None,
    }
    assert privacy.hide_all(plain) == {
        "id": "..~/x.py::test[box7]",
        "case": "test_logits[somebody]",
        "message": "<user>",
        "numbers": {"kl": 1.0},
        "kl": [0.5, 1.0],
        "command": ["./x", "<host>"],
        "none": None,
    }


def test_the_names_and_secrets_of_this_machine_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "zeppelin.lab.example")
    monkeypatch.setenv("LOGNAME", "quentin")
    monkeypatch.setenv("SERVICE_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("SHORT_TOKEN", "1")
    privacy = of_this_machine(Path("/src/tree"), ["ursula@dirigible"])
    text = "quentin zeppelin zeppelin.lab.example 0123456789abcdef ursula dirigible 1"
    assert privacy.hide(text) == "<user> <host> <host> <secret> <user> <host> 1"


def test_an_ordinary_name_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "localhost")
    for name in ("LOGNAME", "USER", "USERNAME", "SUDO_USER"):
        monkeypatch.setenv(name, "root")
    assert of_this_machine(Path("/src/tree")).hide("the root of localhost") == "the root of localhost"


def test_a_number_in_an_address_stays_a_number_elsewhere() -> None:
    privacy = of_this_machine(Path("/nowhere"), ["tester@127.0.0.1"])
    assert privacy.hide("exit status 127 of 127.0.0.1") == "exit status 127 of <host>"


def test_hosts_are_found_in_specifications() -> None:
    specs = ["lab1=ssh=me@there//python=/x", "lab2=ssh=-4 -p 22 -i /k other", "lab3=popen"]
    assert machines_named(specs) == ["me@there", "other"]


def test_only_allowed_variables_are_recorded_and_private_values_masked(privacy: Privacy) -> None:
    environment = {
        "OMP_NUM_THREADS": "4",
        "KMP_AFFINITY": "granularity=fine,compact,1,0",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OV_CACHE_DIR": "/var/cache",
        "ORT_LOG": "somebody",
        "ZE_AFFINITY_MASK": "0.0",
        "NPU_SECRET": "x",
        "MKL_CBWR": "x" * 300,
        "OPENVINO_LOG": "\x1b[2J",
        "PATH": "/bin",
        "HOME": "/home/somebody",
        "HF_TOKEN": "hf_x",
        "SSH_AUTH_SOCK": "x",
    }
    assert recorded(environment, privacy) == {
        "CUDA_VISIBLE_DEVICES": "0,1",
        "KMP_AFFINITY": "granularity=fine,compact,1,0",
        "MKL_CBWR": MASKED,
        "NPU_SECRET": MASKED,
        "OMP_NUM_THREADS": "4",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "OPENVINO_LOG": MASKED,
        "ORT_LOG": MASKED,
        "OV_CACHE_DIR": MASKED,
        "ZE_AFFINITY_MASK": "0.0",
    }


@given(st.text())
def test_a_printable_text_stays_so(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    assert "\x1b" not in shown
    assert all_printable({"a": [text, None, 1.5]}) == {"a": [shown, None, 1.5]}


@pytest.mark.parametrize("name", ["greeting", "int4 of mine", "Phi-3.5-mini", "日本語"])
def test_a_name_is_a_name(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a..b", "a\\b", "a\nb", "\x1b", "x" * 201, "a\u202eb"])
def test_a_path_is_no_name(name: str) -> None:
    assert not is_plain_name(name)
