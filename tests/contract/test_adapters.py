"""What every adapter must do, whatever the runtime below it: one suite over all of them, in workers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.artifacts import ensure_exported
from harness.backend import DeviceReport, SessionInfo, load_backend, teacher_force
from harness.checkpoint import Checkpoint, find_checkpoint
from harness.devices import find_interpreter
from harness.errors import Stage, StageError, WorkerRaised
from harness.golden import TREE
from harness.state import DEFAULT_CHECKPOINT
from harness.target import DeviceKind, Evidence, EvidenceLevel, Target
from harness.worker import Worker
from support import PLANTED

TARGETS = (
    "planted:cpu:fp32",
    "pytorch:cpu:fp32",
    "pytorch:cpu:bf16",
    "openvino:cpu:fp32",
    "openvino:cpu:int4",
    "ort-genai:cpu:fp32",
    "ort-genai:cpu:int4",
)
PROMPT = [5, 80, 300, 41, 7, 1200, 9, 33, 2, 640, 18, 77]


class Adapter:
    """A loaded session, spoken to through its worker."""

    def __init__(self, target: Target, worker: Worker, artifact: Path) -> None:
        self.target = target
        self.worker = worker
        self.artifact = artifact

    def load(self, **changes: Any) -> SessionInfo:
        import msgspec

        arguments = {"artifact": str(self.artifact), "options": {}, "trust_remote_code": False, **changes}
        return msgspec.convert(self.call("load", target=str(self.target), **arguments), SessionInfo)

    def call(self, operation: str, **arguments: Any) -> Any:
        return self.worker.call(Stage.RUN, operation, **arguments)

    def teacher_force(self, prompt: list[int], continuation: list[int]) -> Any:
        return self.call("teacher_force", prompt=prompt, continuation=continuation)

    def generate(self, prompt: list[int], count: int, ends: tuple[int, ...]) -> list[int]:
        tokens: list[int] = self.call("generate", prompt=prompt, max_new_tokens=count, end_tokens=list(ends))
        return tokens


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return find_checkpoint(str(DEFAULT_CHECKPOINT))


@pytest.fixture(scope="module", params=TARGETS)
def adapter(
    request: pytest.FixtureRequest, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adapter]:
    """A worker with the session loaded; the artifact comes from the user's cache, or is exported into it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(PLANTED))
        patch.setenv("PYTHONPATH", str(PLANTED))
        patch.delenv("PLANTED_FAULT", raising=False)
        target = Target.parse(request.param)
        backend = load_backend(target.backend)
        interpreter = find_interpreter(backend, {}, TREE)
        worker = Worker(request.param, tmp_path_factory.mktemp("worker"), interpreter=interpreter)
        worker.start()
    try:
        opened = worker.call(Stage.LOAD, "open", backend=backend.name)
        assert opened["missing"] == [], f"the test environment lacks {opened['missing']}: {backend.install}"
        made = Adapter(target, worker, _artifact(worker, target, checkpoint))
        made.load()
        yield made
    finally:
        worker.stop()


def _artifact(worker: Worker, target: Target, checkpoint: Checkpoint) -> Path:
    backend = load_backend(target.backend) if target.backend != "planted" else None
    recipe = None if backend is None else backend.recipe(target, None)
    if recipe is None:
        return checkpoint.path

    def export(out: Path) -> list[str]:
        command: list[str] = worker.call(
            Stage.PREPARE,
            "export",
            checkpoint=str(checkpoint.path),
            recipe=recipe,
            out=str(out),
            trust_remote_code=False,
        )
        return command

    versions = worker.call(Stage.PREPARE, "versions", names=list(recipe.exporter))
    key = checkpoint.fingerprint().key
    return ensure_exported(checkpoint, key, target.backend, recipe, versions, export, announce=print).path


def test_the_device_is_found(adapter: Adapter) -> None:
    import msgspec

    found = adapter.call("discover", devices=["cpu"])
    assert msgspec.convert(found["cpu"], DeviceReport).name


def test_the_session_says_what_it_is(adapter: Adapter, checkpoint: Checkpoint) -> None:
    info = adapter.load()
    assert info.vocabulary == checkpoint.vocabulary
    assert info.versions
    assert info.load_options == {}


def test_evidence_names_the_processor(adapter: Adapter) -> None:
    import msgspec

    found = msgspec.convert(adapter.call("evidence"), Evidence)
    assert found.kinds == (DeviceKind.CPU,)
    assert found.level is not EvidenceLevel.NONE
    assert found.source


def test_logits_have_a_row_for_every_token(adapter: Adapter, checkpoint: Checkpoint) -> None:
    logits = adapter.teacher_force(PROMPT, [11, 12, 13])
    assert logits.shape == (len(PROMPT) + 3, checkpoint.vocabulary)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_a_session_forgets_between_prompts(adapter: Adapter) -> None:
    first = np.array(adapter.teacher_force(PROMPT, [11]))
    adapter.teacher_force(list(reversed(PROMPT)), [3, 4])
    again = np.array(adapter.teacher_force(PROMPT, [11]))
    np.testing.assert_allclose(first, again, rtol=0, atol=1e-4 * np.abs(first).max())


def test_feeding_one_token_at_a_time_gives_the_same_logits_to_rounding(adapter: Adapter) -> None:
    whole = np.array(adapter.teacher_force(PROMPT, [11]))
    stepped = np.array(adapter.teacher_force(PROMPT[:1], [*PROMPT[1:], 11]))
    assert whole.shape == stepped.shape
    # Caches and products in BF16 or with 8-bit activations move logits by a few per cent of their spread.
    assert np.abs(whole - stepped).max() < 0.2 * whole.std()


def test_generation_obeys_its_limit_and_is_repeatable(adapter: Adapter) -> None:
    tokens = adapter.generate(PROMPT, 6, (2037,))
    assert 1 <= len(tokens) <= 6
    assert tokens == adapter.generate(PROMPT, 6, (2037,))


def test_generation_chooses_what_the_logits_prefer(adapter: Adapter) -> None:
    tokens = adapter.generate(PROMPT, 6, (2037,))
    logits = np.array(adapter.teacher_force(PROMPT, tokens))
    chosen = logits[len(PROMPT) - 1 : -1]
    short = chosen.max(axis=1) - chosen[np.arange(len(tokens)), tokens]
    assert short.max() <= 0.05 * logits.std()


def test_an_unknown_load_option_is_refused_with_the_known_ones(adapter: Adapter) -> None:
    with pytest.raises(StageError, match="no load option 'colour'"):
        adapter.load(options={"colour": "blue"})
    adapter.load()


def test_a_folder_that_is_no_artifact_is_refused(adapter: Adapter, tmp_path: Path) -> None:
    with pytest.raises(WorkerRaised):
        adapter.load(artifact=str(tmp_path))
    adapter.load()


def test_teacher_forcing_joins_prefill_and_decode_rows() -> None:
    class Counting:
        def __init__(self) -> None:
            self.fed: list[list[int]] = []

        def reset(self) -> None:
            self.fed.clear()

        def append(self, tokens: Any) -> Any:
            self.fed.append([int(t) for t in tokens])
            return np.full((tokens.size, 4), float(len(self.fed)), dtype=np.float32)

    session: Any = Counting()
    rows = teacher_force(session, np.array([1, 2, 3]), np.array([4, 5]))
    assert session.fed == [[1, 2, 3], [4], [5]]
    assert rows[:, 0].tolist() == [1, 1, 1, 2, 3]
