"""Build and install the Intel NPU Acceleration Library on Linux: `python -m harness.backends.npu_library_linux`.

The library has wheels for Windows only, and the build of its source distribution downloads an OpenVINO of
its own. With the `openvino` wheel of the release it was written against it can be compiled without that:
one C++ file against the headers and the shared library that the wheel carries. Everything comes from the
package index that pip is set to; nothing is changed in the library's sources.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from harness.errors import HarnessError, UsageError

VERSION = "1.4.0"
OPENVINO = "2024.4.0"
_NAME = "intel_npu_acceleration_library"
_LIBRARY = "libopenvino.so.2440"
_PACKAGES = (_NAME, f"{_NAME}.backend", f"{_NAME}.nn", f"{_NAME}.functional")

# The library's own setup.py runs CMake; this takes its place and packs what was compiled here.
_PYPROJECT = f"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "intel-npu-acceleration-library"
version = "{VERSION}"
[tool.setuptools]
packages = {list(_PACKAGES)}
[tool.setuptools.package-data]
{_NAME} = ["lib/*.so"]
"""


def build() -> None:
    """Download, compile and install the library into this interpreter.

    Raises UsageError when the compiler or the right OpenVINO is missing, or a step of the build fails.
    """
    openvino = _find_openvino()
    compiler = shutil.which("g++")
    if compiler is None:
        raise UsageError("there is no g++", "install it: apt-get install g++")
    with tempfile.TemporaryDirectory() as folder:
        source = _download(Path(folder))
        library = source / _NAME / "lib"
        library.mkdir()
        _run(_compile_command(compiler, source, openvino, library))
        (source / "setup.py").unlink()
        (source / "setup.cfg").unlink(missing_ok=True)
        (source / "pyproject.toml").write_text(_PYPROJECT, encoding="utf-8")
        _run([*_pip("install"), "--no-deps", "--no-build-isolation", "--force-reinstall", str(source)])
    _link(openvino)


def _find_openvino() -> Path:
    """The folder of the `openvino` package. It is not imported: the library brings it in by itself."""
    try:
        distribution = importlib.metadata.distribution("openvino")
    except importlib.metadata.PackageNotFoundError:
        found = "none"
    else:
        found = distribution.version.split("-")[0]
        if found == OPENVINO:
            return Path(str(distribution.locate_file("openvino")))
    raise UsageError(
        f"the library is built against openvino {OPENVINO}; installed here: {found}",
        f"python -m pip install openvino=={OPENVINO}, in an interpreter of its own (tox -e npu-library makes one)",
    )


def _download(folder: Path) -> Path:
    """Fetch and unpack the source distribution. Pip asks its setup.py for metadata, hence setuptools and wheel."""
    wanted = f"intel-npu-acceleration-library=={VERSION}"
    _run([*_pip("download"), "--no-deps", "--no-binary=:all:", "--no-build-isolation", "-d", str(folder), wanted])
    archive = next(folder.glob("*.tar.gz"))
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return folder / f"{_NAME}-{VERSION}"


def _compile_command(compiler: str, source: Path, openvino: Path, out: Path) -> list[str]:
    # OpenVINO's wheels of 2024 are built with the old ABI of std::string; the library's conversions use F16C.
    return [
        compiler,
        *("-std=c++17", "-O2", "-fPIC", "-shared", "-mavx2", "-mf16c", "-mfma", "-D_GLIBCXX_USE_CXX11_ABI=0"),
        *(f"-I{source / 'include'}", f"-I{openvino / 'include'}", str(source / "src" / "bindings.cpp")),
        *("-o", str(out / f"lib{_NAME}.so"), f"-L{openvino / 'libs'}", f"-l:{_LIBRARY}"),
    ]


def _link(openvino: Path) -> None:
    """Put OpenVINO's libraries beside the library's own, where it and OpenVINO's plugin loader look for them."""
    installed = importlib.metadata.distribution("intel-npu-acceleration-library").locate_file(f"{_NAME}/lib")
    folder = Path(str(installed))
    for file in (openvino / "libs").iterdir():
        _replace_link(folder / file.name, file)
    _replace_link(folder / "libopenvino.so", openvino / "libs" / _LIBRARY)


def _replace_link(link: Path, target: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def _pip(command: str) -> list[str]:
    return [sys.executable, "-m", "pip", command, "--quiet", "--disable-pip-version-check"]


def _run(command: list[str]) -> None:
    found = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace")
    if found.returncode != 0:
        tail = "\n".join((found.stdout + found.stderr).strip().splitlines()[-20:])
        raise UsageError(f"{Path(command[0]).name} ended with status {found.returncode}:\n{tail}", "see its own words")


def main() -> int:
    """Build, and say what failed if it did."""
    if sys.platform != "linux":
        print("nothing to build: on Windows the library has wheels")
        return 0
    try:
        build()
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"installed intel-npu-acceleration-library {VERSION}, built against openvino {OPENVINO}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
