"""How a run is ended from outside.

SIGTERM ends it as Ctrl-C does: workers stopped, the record written and marked incomplete; exit status 143. Once
it ends, for whatever reason, neither signal is listened to any more: what follows takes bounded time, and a second
Ctrl-C would cost the record.
"""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

EXIT_STATUS = 128 + 15


class Terminator:
    """Answers to SIGTERM while a pytest session lasts, where nobody else does, and to nothing while it ends."""

    def __init__(self) -> None:
        self._session: pytest.Session | None = None
        self._installed = False
        self._ended = False
        self._interrupt: Any = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Take SIGTERM over, unless another plugin has, or pytest runs in a thread, which gets no signals."""
        if _in_main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._session = session
            self._installed = True
            signal.signal(signal.SIGTERM, self._end)

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self) -> None:
        """Listen to no second Ctrl-C; the first may have come as SIGTERM."""
        self._be_deaf()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Listen no more; set the exit status, before the record is written with it.

        Not by pytest.exit(returncode=...): pytest prints no summary for an exit status that it does not know.
        """
        self._be_deaf()
        if self._ended:
            session.exitstatus = EXIT_STATUS

    def pytest_unconfigure(self) -> None:
        """Give the signals back."""
        if self._installed and signal.getsignal(signal.SIGTERM) in (self._end, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if self._interrupt is not None and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._interrupt)
        self._installed, self._interrupt = False, None

    def _be_deaf(self) -> None:
        if not _in_main_thread():
            return
        if self._interrupt is None:
            self._interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        if self._installed and signal.getsignal(signal.SIGTERM) == self._end:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def _end(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
        self._ended = True
        if self._session is not None:  # a test that catches every Exception catches the one below too
            self._session.shouldstop = "ended by SIGTERM"
        pytest.exit("ended by SIGTERM")


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
