"""Building the NPU library, with every command made up; the real build is that of `tox -e npu-library`."""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from harness.backends import npu_library_linux
from harness.errors import UsageError

NAME = "intel_npu_acceleration_library"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="on Windows the library has wheels")


class Installed:
    """A distribution in a site-packages folder."""

    def __init__(self, version: str, site: Path) -> None:
        self.version = version
        self._site = site

    def locate_file(self, path: str) -> Path:
        return self._site / path


class Machine:
    """A machine with OpenVINO and g++ on which every command succeeds, but for the one that `fails`."""

    def __init__(self, folder: Path) -> None:
        self.site = folder / "site-packages"
        self.openvino: str | None = "2024.4.0"
        self.compiler: str | None = "/usr/bin/g++"
        self.fails = ""
        self.commands: list[list[str]] = []
        self.packed: list[str] = []
        (self.site / "openvino" / "libs").mkdir(parents=True)
        (self.site / "openvino" / "libs" / "libopenvino.so.2440").write_bytes(b"a library")
        (self.site / "openvino" / "libs" / "libopenvino_intel_npu_plugin.so").write_bytes(b"a plugin")

    def distribution(self, name: str) -> Installed:
        if name == "openvino" and self.openvino is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return Installed(self.openvino or "" if name == "openvino" else "1.4.0", self.site)

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        step = self.step(command)
        if step == self.fails:
            output = "\n".join(f"line {number}" for number in range(100))
            return subprocess.CompletedProcess(command, 3, output + "\n", "error: the last words\n")
        if step == "download":
            self._download(Path(command[command.index("-d") + 1]))
        if step == "g++":
            Path(command[command.index("-o") + 1]).write_bytes(b"compiled")
        if step == "install":
            source = Path(command[-1])
            self.packed = sorted(str(file.relative_to(source)) for file in source.rglob("*") if file.is_file())
            (self.site / NAME / "lib").mkdir(parents=True)
        return subprocess.CompletedProcess(command, 0, "", "")

    @staticmethod
    def step(command: list[str]) -> str:
        return "g++" if command[0].endswith("g++") else command[3]

    def _download(self, folder: Path) -> None:
        source = folder.parent / f"{folder.name}-source" / f"{NAME}-1.4.0"
        for file in ("setup.py", "src/bindings.cpp", "include/npu.h", f"{NAME}/__init__.py"):
            (source / file).parent.mkdir(parents=True, exist_ok=True)
            (source / file).write_text("", encoding="utf-8")
        with tarfile.open(folder / f"{NAME}-1.4.0.tar.gz", "w:gz") as archive:
            archive.add(source, source.name)
        shutil.rmtree(source.parent)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(importlib.metadata, "distribution", made.distribution)
    monkeypatch.setattr(shutil, "which", lambda _: made.compiler)
    monkeypatch.setattr(subprocess, "run", made.run)
    return made


def test_a_build_downloads_compiles_and_installs_in_this_interpreter(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert npu_library_linux.main() == 0
    assert [machine.step(command) for command in machine.commands] == ["download", "g++", "install"]
    assert all(command[:3] == [sys.executable, "-m", "pip"] for command in machine.commands[::2])
    assert "1.4.0" in capsys.readouterr().out


def test_the_compiler_is_given_the_headers_and_libraries_of_library_and_openvino(machine: Machine) -> None:
    npu_library_linux.build()
    (command,) = (command for command in machine.commands if machine.step(command) == "g++")
    openvino = machine.site / "openvino"
    source = Path(command[command.index("-o") + 1]).parents[2]
    assert command[0] == machine.compiler
    for argument in (
        f"-I{openvino / 'include'}",
        f"-I{source / 'include'}",
        f"-L{openvino / 'libs'}",
        "-l:libopenvino.so.2440",
        str(source / "src" / "bindings.cpp"),
        "-D_GLIBCXX_USE_CXX11_ABI=0",
    ):
        assert argument in command


def test_what_is_installed_is_the_compiled_library_without_the_build_of_its_makers(machine: Machine) -> None:
    npu_library_linux.build()
    assert f"{NAME}/lib/lib{NAME}.so" in machine.packed
    assert "pyproject.toml" in machine.packed
    assert "setup.py" not in machine.packed


def test_openvinos_libraries_lie_beside_the_librarys_own_after_every_build(machine: Machine) -> None:
    npu_library_linux.build()
    lib = machine.site / NAME / "lib"
    assert (lib / "libopenvino.so").read_bytes() == (lib / "libopenvino.so.2440").read_bytes() == b"a library"
    assert (lib / "libopenvino_intel_npu_plugin.so").read_bytes() == b"a plugin"


def test_without_a_compiler_nothing_is_downloaded_and_the_remedy_is_named(machine: Machine) -> None:
    machine.compiler = None
    with pytest.raises(UsageError, match="no g") as caught:
        npu_library_linux.build()
    assert "apt-get install g++" in caught.value.remedy
    assert machine.commands == []


@pytest.mark.parametrize(("version", "named"), [(None, "none"), ("2026.4.1", "2026.4.1"), ("2024.4.1", "2024.4.1")])
def test_another_openvino_than_the_librarys_is_refused_before_anything_is_downloaded(
    machine: Machine, version: str | None, named: str
) -> None:
    machine.openvino = version
    with pytest.raises(UsageError, match=f"openvino 2024.4.0; installed here: {named}") as caught:
        npu_library_linux.build()
    assert "openvino==2024.4.0" in caught.value.remedy
    assert machine.commands == []


def test_a_build_number_in_the_version_of_openvino_does_not_matter(machine: Machine) -> None:
    machine.openvino = "2024.4.0-16579-c3152d32c9c"
    npu_library_linux.build()


@pytest.mark.parametrize("step", ["download", "g++", "install"])
def test_a_step_that_fails_ends_the_build_with_the_tail_of_what_it_said(
    machine: Machine, step: str, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.fails = step
    assert npu_library_linux.main() == 1
    said = capsys.readouterr().err
    assert "ended with status 3" in said
    assert "error: the last words" in said
    assert "line 99" in said
    assert "line 10\n" not in said
    assert machine.step(machine.commands[-1]) == step, "and no step follows"


def test_there_is_nothing_to_build_where_the_library_has_wheels(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert npu_library_linux.main() == 0
    assert machine.commands == []
