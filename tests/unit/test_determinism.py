"""What is loaded again, with which options, and what is left behind when that fails."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import msgspec
import numpy as np
import pytest

from harness import determinism
from harness.backend import SessionInfo
from harness.compare import Outcome
from harness.consistency import Allowance
from harness.errors import Stage, StageError, Unsupported
from harness.sessions import TargetSession
from harness.target import Target

INFO = SessionInfo(vocabulary=4, arithmetic=None, properties={"threads": "1"}, versions={})


class Loaded:
    """A session that notes what is loaded, restarted and in which order; what it answers depends on its options."""

    def __init__(
        self, backend: object, *, threads: str = "1", heeds: bool = True, raises: tuple[int, ...] = ()
    ) -> None:
        self.target = Target.parse("planted:cpu:fp32")
        self.run = SimpleNamespace(backends={"planted": backend})
        self.info = msgspec.structs.replace(INFO, properties={"threads": threads})
        self.loading = {"artifact": "there", "options": {"given": "yes"}}
        self.alive = True
        self.notes: list[Any] = []
        self._heeds = heeds
        self._raises = raises

    def call(self, operation: str, **arguments: Any) -> Any:
        assert operation == "load"
        self.notes.append(arguments["options"])
        if len(self.notes) in self._raises:
            raise StageError(Stage.LOAD, "no memory")
        options = arguments["options"]
        back = options.get("threads", "1") if self._heeds else "7"
        return msgspec.to_builtins(msgspec.structs.replace(INFO, load_options=options, properties={"threads": back}))

    def restart(self) -> None:
        self.notes.append("restart")


class Threads:
    def threads_option(self, _: Target) -> str:
        return "threads"


@pytest.fixture(autouse=True)
def _answers(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.arange(8, dtype=np.float32).reshape(2, 4)
    monkeypatch.setattr(determinism, "_answer", lambda *_: rows)
    oracle = SimpleNamespace(allowance=lambda: Allowance(1.0, 1.0, "a test"))
    monkeypatch.setattr(determinism, "Oracle", lambda _: oracle)


def as_session(loaded: Loaded) -> TargetSession:
    return cast(TargetSession, loaded)


@pytest.mark.parametrize(("default", "asked"), [("1", "2"), ("4", "1"), ("", "1")])
def test_another_number_of_threads_is_asked_for_and_the_default_comes_back(default: str, asked: str) -> None:
    loaded = Loaded(Threads(), threads=default)
    verdict = determinism.other_threads(as_session(loaded))
    assert verdict.outcome is Outcome.PASS
    assert f"threads={asked} against the default" in verdict.message
    assert loaded.notes == [{"given": "yes", "threads": asked}, {"given": "yes"}]


def test_threads_that_were_not_heeded_prove_nothing() -> None:
    loaded = Loaded(Threads(), heeds=False)
    with pytest.raises(Unsupported, match="took threads=2 and did not heed it"):
        determinism.other_threads(as_session(loaded))
    assert loaded.notes[-1] == {"given": "yes"}


def test_a_runtime_that_takes_no_threads_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="cannot be told how many threads"):
        determinism.other_threads(as_session(Loaded(object())))


def test_the_default_comes_back_where_loading_with_threads_failed() -> None:
    loaded = Loaded(Threads(), raises=(1,))
    with pytest.raises(StageError, match="no memory"):
        determinism.other_threads(as_session(loaded))
    assert loaded.notes[-1] == {"given": "yes"}


def test_a_new_session_that_cannot_be_loaded_fails_and_leaves_one_that_can_be_used() -> None:
    loaded = Loaded(Threads(), raises=(1,))
    with pytest.raises(StageError, match="no memory"):
        determinism.new_session(as_session(loaded))
    assert loaded.notes == [{"given": "yes"}, "restart"]


def test_one_model_a_process_means_no_new_session() -> None:
    with pytest.raises(Unsupported, match="one model to a process"):
        determinism.new_session(as_session(Loaded(SimpleNamespace(one_model_a_process=True))))
