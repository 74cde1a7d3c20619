"""Keeping the cores of a worker's machine busy while its session computes.

Where threads wait for each other, work is handed out anew each time; a runtime that adds in the order in which threads
happen to finish gives other logits then.
"""

from __future__ import annotations

import os
import subprocess
import sys

# They end by themselves after so long, if nobody ends them: a worker that is killed takes what it started with it, but
# for one on a host that was lost.
_SECONDS = 600
_SPIN = "import sys, time\nend = time.monotonic() + float(sys.argv[1])\nwhile time.monotonic() < end: pass"


class Contention:
    """Operations of a worker: as many busy processes as there are cores, begun and ended."""

    def __init__(self) -> None:
        self._busy: list[subprocess.Popen[bytes]] = []

    def do_contend(self) -> int:
        """Start a busy process for each core; how many."""
        self.do_relent()
        for _ in range(os.cpu_count() or 1):
            command = [sys.executable, "-S", "-c", _SPIN, str(_SECONDS)]
            self._busy.append(subprocess.Popen(command, stdin=subprocess.DEVNULL))
        return len(self._busy)

    def do_relent(self) -> int:
        """End them; how many were still busy. None where none were started, or all have been ended."""
        running = [process for process in self._busy if process.poll() is None]
        for process in self._busy:
            process.kill()
            process.wait()
        self._busy = []
        return len(running)
