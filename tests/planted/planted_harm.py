"""What drivers do to the process they are in: `PLANTED_FAULT=abort-in-decode` plants `abort` where decoding is.

The places are load, prefill and decode. With `once` among the faults the harm is done in one process only,
with `late` not before the second prompt. Whoever is to be harmed leaves a file `<PLANTED_MARK>.harm` first.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

MIB = 1 << 20
_IGNORE = "import signal, time; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(3600)"


def harm(place: str, prompts: int = 1) -> None:
    """Do what is planted at this place."""
    faults = os.environ.get("PLANTED_FAULT", "").split(",")
    mark = Path(os.environ.get("PLANTED_MARK", os.devnull) + ".harm")
    for name in faults:
        how, _, where = name.rpartition("-in-")
        if where != place or ("once" in faults and mark.exists()) or ("late" in faults and prompts < 2):
            continue
        mark.touch()
        print(f"driver: about to {how}", file=sys.stderr, flush=True)
        HARM[how]()


def leak() -> None:
    kept: list[bytes] = []
    while len(kept) < 100:
        kept.append(b"x" * (16 * MIB))
        time.sleep(0.05)


def garble() -> None:
    """Write to every file descriptor there is, and do not come back."""
    for fd in range(3, 64):
        try:
            os.write(fd, b"driver: garbage\n" * 10)
        except OSError:
            continue
    hang()


def chatter() -> None:
    for _ in range(100):
        os.write(2, b"driver: ten thousand lines of nothing\n" * (MIB // 38))
    os.write(2, b"driver: the last line\n")


def hang() -> None:
    time.sleep(3600)


def hang_with_the_gil() -> None:
    ctypes.PyDLL(None).sleep(3600)


def breed() -> None:
    """Start children that ignore every signal they can, one of which holds our connection open."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", _IGNORE])
    if os.fork() == 0:
        exec(_IGNORE)


def breed_apart() -> None:
    """Start such a child in a session of its own, where no signal to our group reaches it."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen([sys.executable, "-c", _IGNORE], start_new_session=True)


def fill_the_disk() -> None:
    """Let no file of this process grow past 1000 bytes, and have every array go by file first."""
    import resource

    from harness import wire

    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
    wire._BY_CHANNEL_BYTES = 0
    print("driver: " + "x" * 5000)
    print("driver: " + "x" * 5000, file=sys.stderr)


HARM = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "segfault": lambda: ctypes.string_at(0),
    "leak": leak,
    "garble": garble,
    "chatter": chatter,
    "hang": hang,
    "gil-hang": hang_with_the_gil,
    "breed": breed,
    "breed-apart": breed_apart,
    "full-disk": fill_the_disk,
}
