"""Which golden reference a run asks: one with memory for the text in question."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness import run as module
from harness.checkpoint import Checkpoint
from harness.errors import ResourceError, StageError
from harness.run import Run, Settings


class Started:
    """A reference that was started, for texts of so many tokens."""

    def __init__(self, tokens: int, *, streamed: bool) -> None:
        self.tokens, self.streamed = tokens, streamed
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True


@pytest.fixture
def run(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run with memory for all weights up to 100 tokens, and for a layer at a time up to 1000."""

    def must_stream(_: Checkpoint, tokens: int, memory: int | None) -> bool:
        assert memory == 1 << 30
        if tokens > 1000:
            raise ResourceError("1 GiB may be used", "raise --memory")
        return tokens > 100

    monkeypatch.setattr(module, "must_stream", must_stream)
    settings = SimpleNamespace(checkpoint=checkpoint, memory=1 << 30)
    crew = cast(Any, SimpleNamespace(limits=None, crew=None))
    made = Run(cast(Settings, settings), {}, lambda _: None, beside=crew)
    monkeypatch.setattr(made, "_start_reference", lambda: Started(made._longest, streamed=False))
    monkeypatch.setattr(made, "_start_streaming", lambda: Started(made._longest, streamed=True))
    monkeypatch.setattr(module, "Worker", Started)
    return made


def test_a_longer_text_has_memory_looked_for_anew(run: Run) -> None:
    first = cast(Any, run._reference_for(40))
    assert not first.streamed
    assert cast(Any, run._reference_for(30)) is first
    second = cast(Any, run._reference_for(200))
    assert first.stopped
    assert second.streamed
    assert second.tokens == 200
    assert cast(Any, run._reference_for(40)) is second


def test_a_text_too_long_for_any_leaves_shorter_ones_their_reference(run: Run) -> None:
    with pytest.raises(StageError, match="the golden reference cannot be run: 1 GiB may be used"):
        run._reference_for(2000)
    assert cast(Any, run._reference_for(40)).tokens == 40
