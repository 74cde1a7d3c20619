"""A real sshd on loopback, in a folder of its own, for one user and one key: a host of a lab that can be killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

BINARY = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")
NEEDED = "needs an OpenSSH server and client: apt-get install openssh-server"


def available() -> bool:
    """Whether an sshd of one's own can be started here."""
    return sys.platform != "win32" and BINARY is not None and shutil.which("ssh") is not None


class Sshd:
    """Started at once; `environment` is what processes on this host find set."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        assert BINARY is not None
        folder.mkdir(parents=True)
        self._folder = folder
        self.port = _free_port()
        self.cache = folder / "cache"
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(command, check=True)
        shutil.copy(folder / "user.pub", folder / "authorized")
        settings = {"PHI3_CONFORMANCE_CACHE": str(self.cache), **environment}
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder / 'host'}",
            f"AuthorizedKeysFile {folder / 'authorized'}",
            f"PidFile {folder / 'pid'}",
            "StrictModes no",
            "UsePAM no",
            "PasswordAuthentication no",
            "PermitRootLogin yes",
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in settings.items()),
        ]
        (folder / "config").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where its unprivileged part is locked in
        self._process = subprocess.Popen([BINARY, "-D", "-e", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
        _wait_for(self.port)

    def spec(self, python: str = sys.executable) -> str:
        """The execnet spec by which it is reached."""
        known = f"-o UserKnownHostsFile={self._folder / 'known'} -o StrictHostKeyChecking=no -o LogLevel=ERROR"
        return f"ssh=-p {self.port} -i {self._folder / 'user'} {known} 127.0.0.1//python={python}"

    def kill(self) -> None:
        """Switch the machine off: the daemon, its connections, and everything that runs in them."""
        family = [self._process.pid]
        for process in psutil.Process(self._process.pid).children(recursive=True):
            family.append(process.pid)
        for pid in family:
            try:
                psutil.Process(pid).kill()
            except psutil.NoSuchProcess:
                continue
        self._process.wait()

    def close(self) -> None:
        """Kill it unless that was done."""
        if self._process.poll() is None:
            self.kill()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.05)
    raise RuntimeError(f"no sshd answers on port {port}")
