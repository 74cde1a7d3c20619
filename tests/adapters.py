"""Adapters in workers of their own, with the artifact of a target: for tests that ask what an adapter really does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from harness.artifacts import ensure_exported
from harness.backend import DeviceReport, SessionInfo, load_backend
from harness.checkpoint import Checkpoint
from harness.devices import find_interpreter
from harness.errors import Stage
from harness.golden import TREE
from harness.target import Target, Unavailable
from harness.worker import Worker
from support import PLANTED

TARGETS = (
    "planted:cpu:fp32",
    "pytorch:cpu:fp32",
    "pytorch:cpu:bf16",
    "openvino:cpu:fp32",
    "openvino:cpu:int4",
    "openvino:npuw-cpu:fp16",
    "openvino:npuw-cpu:int4",
    "ort-genai:cpu:fp32",
    "ort-genai:cpu:int4",
    "npu-library:cpu:fp16",
    "npu-library:cpu:int8",
)
# Has an interpreter of its own, which not every machine has made, and takes one model to a process.
SINGULAR = "npu-library"


class Adapter:
    """A backend in a worker of its own, with the artifact of a target, and the session once it is loaded."""

    artifact: Path

    def __init__(self, target: Target, scratch: Path) -> None:
        self.target = target
        self.backend = load_backend(target.backend)
        self.worker = Worker(str(target), scratch, interpreter=find_interpreter(self.backend, {}, TREE))
        self._session: SessionInfo | None = None
        self._used = False

    @property
    def info(self) -> SessionInfo:
        """What the session with the runtime's defaults says of itself, which is loaded if it is not."""
        return self._session or self.load()

    def open(self) -> None:
        """Begin a fresh process with the backend in it."""
        self._session, self._used = None, False
        self.worker.stop()
        self.worker.start()
        missing = self.worker.call(Stage.LOAD, "open", backend=self.backend.name)["missing"]
        if missing and self.backend.name == SINGULAR:
            pytest.skip(f"not installed: {', '.join(missing)}; {self.backend.install}")
        assert missing == [], f"the test environment lacks {missing}: {self.backend.install}"

    def discover(self) -> DeviceReport | Unavailable:
        found = self.call("discover", devices=[self.target.device])[self.target.device]
        return msgspec.convert(found, DeviceReport | Unavailable)

    def load(self, **changes: Any) -> SessionInfo:
        """Load the artifact, in a fresh process where the runtime wants one; `changes` are to the request."""
        if (self._used and self.backend.name == SINGULAR) or not self.worker.running:
            self.open()
        return self.load_again(**changes)

    def load_again(self, **changes: Any) -> SessionInfo:
        """Load in the process that there is, whatever it has loaded before."""
        self._session = None
        arguments = {"artifact": str(self.artifact), "options": {}, "trust_remote_code": False}
        answer = self.call("load", **{"target": str(self.target), **arguments, **changes})
        info, self._used = msgspec.convert(answer, SessionInfo), True
        self._session = None if changes else info
        return info

    def call(self, operation: str, **arguments: Any) -> Any:
        return self.worker.call(Stage.RUN, operation, **arguments)

    def teacher_force(self, prompt: list[int], continuation: list[int]) -> Any:
        return np.array(self.call("teacher_force", prompt=prompt, continuation=continuation))

    def generate(self, prompt: list[int], count: int, ends: tuple[int, ...]) -> list[int]:
        tokens: list[int] = self.call("generate", prompt=prompt, max_new_tokens=count, end_tokens=list(ends))
        return tokens

    def export(self, checkpoint: Checkpoint) -> Path:
        """The artifact of the target's default recipe, from the user's cache or exported into it."""
        recipe = self.backend.recipe(self.target, None)
        if recipe is None:
            return checkpoint.path

        def export(out: Path) -> list[str]:
            arguments = {"recipe": recipe, "out": str(out), "trust_remote_code": False}
            command: list[str] = self.call("export", checkpoint=str(checkpoint.path), **arguments)
            return command

        versions = self.call("versions", names=list(recipe.exporter))
        key = checkpoint.fingerprint().key
        return ensure_exported(checkpoint, key, self.target.backend, recipe, versions, export, announce=print).path


@contextmanager
def opened(target: str, checkpoint: Checkpoint, scratch: Path) -> Iterator[Adapter]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLANTED))
        patch.setenv("PYTHONPATH", str(PLANTED))
        patch.delenv("PLANTED_FAULT", raising=False)
        adapter = Adapter(Target.parse(target), scratch)
        try:
            adapter.open()
            adapter.artifact = adapter.export(checkpoint)
            yield adapter
        finally:
            adapter.worker.stop()
