"""SIGTERM ends a run as Ctrl-C does: workers stopped, the record written and marked incomplete; exit status 143."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

EXIT_STATUS = 128 + 15


class Terminator:
    """Answers to SIGTERM while a pytest session lasts, where nobody else does."""

    def __init__(self) -> None:
        self._session: pytest.Session | None = None
        self._installed = False
        self._ended = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Take SIGTERM over, unless another plugin has, or pytest runs in a thread, which gets no signals."""
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._session = session
            self._installed = True
            signal.signal(signal.SIGTERM, self._end)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Set the exit status, before the record is written with it.

        Not by pytest.exit(returncode=...): pytest prints no summary for an exit status that it does not know.
        """
        if self._ended:
            session.exitstatus = EXIT_STATUS

    def pytest_unconfigure(self) -> None:
        """Give SIGTERM back."""
        if self._installed and signal.getsignal(signal.SIGTERM) in (self._end, signal.SIG_IGN):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._installed = False

    def _end(self, *_: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: what follows takes bounded time
        self._ended = True
        if self._session is not None:  # a test that catches every Exception catches the one below too
            self._session.shouldstop = "ended by SIGTERM"
        pytest.exit("ended by SIGTERM")
