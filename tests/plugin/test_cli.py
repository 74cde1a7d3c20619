"""`devices` and `prepare` of the command line, with the planted backend. `devices` starts every backend there is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from harness.report.devices import DevicesReport
from support import PLANTED, Tiny

Ended = subprocess.CompletedProcess[str]


def command(folder: Path, *arguments: str, fault: str = "") -> Ended:
    """Run the command line in a folder, with a cache of its own there."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(PLANTED),
        "PLANTED_FAULT": fault,
        "PHI3_CONFORMANCE_CACHE": str(folder / "cache"),
        "PYTHONIOENCODING": "utf-8",
    }
    whole = [sys.executable, "-m", "harness.cli", *arguments]
    return subprocess.run(
        whole, capture_output=True, encoding="utf-8", cwd=folder, env=environment, check=False, timeout=300
    )


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What `devices` prints."""
    ended = command(tmp_path_factory.mktemp("text"), "devices")
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    return ended.stdout


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> DevicesReport:
    """What `devices --json` says where the planted backend cannot be imported."""
    ended = command(tmp_path_factory.mktemp("json"), "devices", "--json", fault="broken-installation")
    assert ended.returncode == 0, ended.stderr
    return msgspec.json.decode(ended.stdout, type=DevicesReport)


def test_a_target_that_runs_is_listed_with_its_device(text: str) -> None:
    runs = text.partition("runs here:")[2].partition("does not run here:")[0]
    assert ["planted:cpu", "fp32", "cpu"] in [line.split() for line in runs.splitlines()]
    assert "planted:absent" not in runs


def test_a_target_that_does_not_run_is_listed_with_reason_and_remedy(text: str) -> None:
    lines = [line.strip() for line in text.partition("does not run here:")[2].splitlines()]
    found = lines.index("planted:absent:fp32")
    assert lines[found + 1 : found + 3] == ["no absent device was found", "plug one in"]


def test_a_broken_backend_is_listed_as_an_error_and_the_others_still_are(broken: DevicesReport) -> None:
    targets = {target.target: target for target in broken.targets}
    for name in ("planted:cpu:fp32", "planted:pretender:fp32", "planted:absent:fp32"):
        assert not targets[name].runs
        assert targets[name].reason.startswith("ERROR: ")
        assert "libdriver.so: cannot open shared object file" in targets[name].reason
    others = {
        target.target.split(":")[0]: target for target in broken.targets if not target.target.startswith("planted")
    }
    assert {"pytorch", "openvino", "ort-genai", "npu-library"} <= set(others)
    assert not any("libdriver" in target.reason for target in others.values())
    errors = {runtime.backend: runtime.error for runtime in broken.runtimes}
    assert "libdriver.so" in errors["planted"]
    assert "libdriver.so" not in errors["pytorch"]


def test_the_text_is_ascii_but_for_names_read_from_the_machine(text: str, broken: DevicesReport) -> None:
    read = msgspec.json.encode(broken).decode()
    assert {character for character in text if not character.isascii()} <= set(read)


def test_preparing_a_target_that_exports_nothing_shows_the_checkpoint(tmp_path: Path, tiny: Tiny) -> None:
    ended = command(tmp_path, "prepare", "--targets", "planted:cpu:fp32", f"--checkpoint={tiny.checkpoint}")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith("planted:cpu:fp32: as it is, ")
    assert ended.stdout.rstrip().endswith(str(tiny.checkpoint))
    assert len(ended.stdout.splitlines()) == 1


def test_a_target_is_prepared_whether_or_not_its_device_is_here(tmp_path: Path, tiny: Tiny) -> None:
    ended = command(tmp_path, "prepare", "--targets=planted:*", f"--checkpoint={tiny.checkpoint}")
    assert ended.returncode == 0, ended.stderr
    assert [line.partition(": ")[0] for line in ended.stdout.splitlines()] == [
        f"planted:{device}:fp32" for device in ("cpu", "pretender", "absent")
    ]


def test_an_exporter_that_fails_is_an_error_and_leaves_nothing_in_the_cache(tmp_path: Path, tiny: Tiny) -> None:
    arguments = ("prepare", "--targets=planted:cpu:fp32", f"--checkpoint={tiny.checkpoint}")
    error = error_of(command(tmp_path, *arguments, fault="exporter-fails"))
    assert "the exporter does not like this checkpoint" in error
    assert [path.suffix for path in (tmp_path / "cache" / "artifacts").iterdir()] in ([], [".lock"])


def test_preparing_without_the_runtime_is_an_error_with_the_install_command(tmp_path: Path, tiny: Tiny) -> None:
    arguments = ("prepare", "--targets=planted:cpu:fp32", f"--checkpoint={tiny.checkpoint}")
    error = error_of(command(tmp_path, *arguments, fault="not-installed,exporter-fails"))
    assert "no-such-distribution not installed" in error
    assert "python -m pip install numpy" in error


def test_a_named_interpreter_that_is_no_python_is_an_error(tmp_path: Path, tiny: Tiny) -> None:
    impostor = tmp_path / "python"
    impostor.write_text("no program", encoding="utf-8")
    arguments = ("prepare", "--targets=planted:cpu:fp32", f"--checkpoint={tiny.checkpoint}")
    error = error_of(command(tmp_path, *arguments, f"--interpreter=planted={impostor}", fault="exporter-fails"))
    assert str(impostor) in error
    assert "--interpreter BACKEND=PATH" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("devices", "--interpreter=pytorch=no/such/python"), "names no Python"),
        (("devices", "--interpreter=pytorch"), "names no Python"),
        (("devices", "--host=lab1"), "names no new host"),
        (("devices", "--host=lab1=popen"), "does not say how to reach the machine"),
        (("prepare", "--targets=planted:tpu:fp32"), "selects no target"),
        (("prepare", "--targets=planted:cpu:fp32", "--recipe=none", "--checkpoint=no/such/folder"), "no/such/folder"),
        (("prepare",), "--targets"),
        (("operator", "planted:tpu:fp32", "softmax/fp32/2/n=17/plain/0"), "no backend declares the target"),
        (
            ("operator", "planted:absent:fp32", "softmax/fp32/2/n=17/plain/0"),
            "planted:absent:fp32 cannot be used: no absent",
        ),
        (("operator", "planted:cpu:fp32:lab1", "softmax/fp32/2/n=17/plain/0"), "add --host lab1=ssh="),
        (("localise", "planted:absent:fp32", "--prompts=core"), "planted:absent:fp32 cannot be used: no absent"),
        (("devises",), "devises"),
    ],
)
def test_bad_arguments_are_errors_in_a_sentence(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    assert words in error_of(command(tmp_path, *arguments))


def error_of(ended: Ended) -> str:
    """What a command said that ended as one that could not be carried out."""
    assert ended.returncode == 2, ended.stdout + ended.stderr
    assert "Traceback" not in ended.stdout + ended.stderr
    assert ended.stdout == "" or ended.stdout.startswith("exporting ")
    return ended.stderr
