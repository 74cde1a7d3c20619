"""From a target to its artifact: given, exported here or on the host, brought where it is needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from harness import preparation
from harness.artifacts import Artifact
from harness.backend import Recipe
from harness.checkpoint import Checkpoint
from harness.errors import ResourceError, Stage, StageError, UsageError, WorkerRaised
from harness.preparation import prepare
from harness.run import Settings
from harness.target import Precision, Target

HERE = Target.parse("rt:npu:int4")
THERE = Target.parse("rt:npu:int4:lab1")
THERE_PATH = Path("/cache/of/lab1/rt-key")
RECIPES = {name: Recipe(name, Precision.INT4, (f"--{name}",), ("exporter",)) for name in ("default", "other")}


class FakeWorker:
    """A worker that exports by writing its name, under a Python that has some version of the exporter."""

    def __init__(self, name: str, version: str | None = "1.0") -> None:
        self.name = name
        self.version = version
        self.missing = [] if version else ["exporter"]
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.fault: StageError | None = None
        self.stopped = False

    def start(self, stage: Stage) -> None:
        self.calls.append(("start", {"stage": stage}))

    def stop(self) -> None:
        self.stopped = True

    def call(self, stage: Stage, operation: str, **arguments: Any) -> Any:
        assert stage is Stage.PREPARE
        self.calls.append((operation, arguments))
        return getattr(self, operation)(**arguments)

    def asked(self, operation: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.calls if name == operation]

    def open(self, backend: str) -> dict[str, Any]:
        assert backend == "rt"
        return {"versions": {}, "missing": self.missing}

    def versions(self, names: list[str]) -> dict[str, str]:
        return {name: self.version for name in names if self.version}

    def export(self, recipe: Recipe, checkpoint: str, out: str, trust_remote_code: bool) -> list[str]:  # noqa: ARG002
        if self.fault is not None:
            raise self.fault
        Path(out).mkdir()
        (Path(out) / "model").write_text(self.name, encoding="utf-8")
        return ["exporter", *recipe.options]

    def prepare(self, recipe: Recipe, **_: Any) -> dict[str, Any]:
        if self.fault is not None:
            raise self.fault
        made = Artifact(THERE_PATH, "exported", recipe.name, "f" * 64, 12, {"exporter": "2.0"}, ["e"])
        return {**msgspec.structs.asdict(made), "path": str(made.path)}


class Fakes:
    """A run of one backend on this machine and on lab1."""

    def __init__(self, checkpoint: Checkpoint, **settings: Any) -> None:
        self.brought: list[tuple[str, Path, bool]] = []
        self.said: list[str] = []
        self.hired: list[tuple[Target, FakeWorker]] = []
        self.worker = FakeWorker("the target's worker")
        self.ours = FakeWorker("our exporter")
        self.exports = True
        policy: Any = None
        fields: dict[str, Any] = {"suites": (), "golden_roots": (), "policy": policy, **settings}
        self.run: Any = SimpleNamespace(
            settings=Settings(checkpoint=checkpoint, fingerprint=checkpoint.fingerprint(), **fields),
            backends={"rt": SimpleNamespace(name="rt", recipe=self._recipe)},
            announce=self.said.append,
            crew=SimpleNamespace(hire=self._hire, lab=SimpleNamespace(bring=self._bring)),
        )

    def prepare(self, target: Target) -> Artifact:
        worker: Any = self.worker
        artifact, location = prepare(self.run, target, worker)
        return msgspec.structs.replace(artifact, path=Path(location))

    def fails(self, target: Target) -> StageError:
        with pytest.raises(StageError) as caught:
            self.prepare(target)
        assert caught.value.stage is Stage.PREPARE
        return caught.value

    def _recipe(self, _target: Target, name: str | None) -> Recipe | None:
        if not self.exports:
            return None
        if name not in (None, *RECIPES):
            raise UsageError(f"rt has no recipe {name!r}", "known: default, other")
        return RECIPES[name or "default"]

    def _hire(self, _label: str, target: Target) -> FakeWorker:
        self.hired.append((target, self.ours))
        return self.ours

    def _bring(self, host: str, folder: Path, announce: Callable[[str], None], *, everything: bool) -> str:
        assert announce == self.run.announce
        self.brought.append((host, folder, everything))
        return f"/depot/of/{host}/{folder.name}"


Make = Callable[..., Fakes]


@pytest.fixture
def make(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path / "cache"))
    return lambda **settings: Fakes(checkpoint, **settings)


@pytest.fixture
def given(tmp_path: Path) -> Path:
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "model.xml").write_text("ready-made", encoding="utf-8")
    return folder


def content(artifact: Artifact) -> str:
    return (artifact.path / "model").read_text(encoding="utf-8")


def test_an_artifact_that_was_given_is_taken_as_it_is(make: Make, given: Path) -> None:
    fakes = make(artifacts=(("rt:*", given),))
    artifact = fakes.prepare(HERE)
    assert (artifact.path, artifact.origin, artifact.recipe, artifact.bytes) == (given, "given", None, 10)
    assert fakes.worker.calls == []


def test_the_last_artifact_given_for_a_target_counts_and_those_of_others_do_not(make: Make, given: Path) -> None:
    elsewhere = given.parent
    fakes = make(artifacts=(("rt:*", elsewhere), ("rt:npu:int4", given), ("rt:cpu:*", elsewhere)))
    assert fakes.prepare(HERE).path == given
    assert make(artifacts=(("rt:cpu:*", given),)).prepare(HERE).origin == "exported"


def test_an_artifact_that_was_given_is_brought_whole_to_a_host(make: Make, given: Path) -> None:
    fakes = make(artifacts=(("*:lab1", given),))
    artifact = fakes.prepare(THERE)
    assert artifact.path == Path("/depot/of/lab1/given")
    assert fakes.brought == [("lab1", given, True)]
    assert artifact.sha256 == make(artifacts=(("*", given),)).prepare(HERE).sha256


def test_a_given_folder_that_is_not_there_is_an_error(make: Make, given: Path) -> None:
    error = make(artifacts=(("*", given / "gone"),)).fails(HERE)
    assert str(given / "gone") in error.problem
    assert "--artifact" in error.remedy


def test_where_nothing_is_exported_the_checkpoint_is_the_artifact(make: Make, checkpoint: Checkpoint) -> None:
    fakes = make()
    fakes.exports = False
    artifact = fakes.prepare(HERE)
    assert (artifact.path, artifact.origin, artifact.recipe) == (checkpoint.path, "checkpoint", None)
    assert fakes.worker.calls == []


def test_a_checkpoint_is_brought_to_a_host_without_what_is_never_loaded(make: Make, checkpoint: Checkpoint) -> None:
    fakes = make()
    fakes.exports = False
    assert fakes.prepare(THERE).path == Path(f"/depot/of/lab1/{checkpoint.path.name}")
    assert fakes.brought == [("lab1", checkpoint.path, False)]


def test_on_this_machine_the_targets_own_worker_exports_once(make: Make, checkpoint: Checkpoint) -> None:
    fakes = make(trust_remote_code=True)
    artifact = fakes.prepare(HERE)
    assert (artifact.origin, artifact.recipe, artifact.versions) == ("exported", "default", {"exporter": "1.0"})
    assert artifact.command == ["exporter", "--default"]
    assert content(artifact) == "the target's worker"
    (asked,) = fakes.worker.asked("export")
    assert (asked["checkpoint"], asked["trust_remote_code"]) == (str(checkpoint.path), True)
    assert fakes.prepare(HERE) == msgspec.structs.replace(artifact, export_seconds=0.0)
    assert len(fakes.worker.asked("export")) == 1
    assert fakes.hired == []
    assert fakes.brought == []
    assert len(fakes.said) == 1


def test_another_version_of_the_exporter_makes_another_artifact(make: Make) -> None:
    fakes = make()
    first = fakes.prepare(HERE)
    fakes.worker.version = "1.1"
    assert fakes.prepare(HERE).path != first.path


def test_the_last_recipe_named_for_a_target_counts(make: Make) -> None:
    fakes = make(recipes=(("rt:*", "none"), ("rt:npu:*", "other"), ("rt:cpu:*", "none")))
    assert fakes.prepare(HERE).recipe == "other"


def test_a_recipe_that_is_not_known_is_an_error_of_preparing(make: Make) -> None:
    fakes = make(recipes=(("*", "none"),))
    for target in (HERE, THERE):
        error = fakes.fails(target)
        assert (error.problem, error.remedy) == ("rt has no recipe 'none'", "known: default, other")


def test_for_a_host_with_our_versions_it_is_exported_here_and_brought(make: Make) -> None:
    fakes = make()
    artifact = fakes.prepare(THERE)
    ((host, folder, everything),) = fakes.brought
    assert (host, everything) == ("lab1", True)
    assert artifact.path == Path(f"/depot/of/lab1/{folder.name}")
    assert (folder / "model").read_text(encoding="utf-8") == "our exporter"
    assert (artifact.origin, artifact.recipe, artifact.versions) == ("exported", "default", {"exporter": "1.0"})
    assert fakes.worker.asked("prepare") == []
    assert [target for target, _ in fakes.hired] == [HERE]
    assert fakes.ours.stopped


def test_a_host_judges_the_bytes_that_this_machine_judges(make: Make) -> None:
    fakes = make()
    here = fakes.prepare(HERE)
    there = fakes.prepare(THERE)
    assert there.sha256 == here.sha256
    assert fakes.brought == [("lab1", here.path, True)]
    assert fakes.ours.asked("export") == []


@pytest.mark.parametrize(("version", "missing"), [("2.0", []), (None, ["exporter"]), ("1.0", ["runtime"])])
def test_a_host_exports_for_itself_where_our_exporter_is_another_or_not_here(
    make: Make, checkpoint: Checkpoint, version: str | None, missing: list[str]
) -> None:
    fakes = make()
    fakes.ours.version, fakes.ours.missing = version, missing
    artifact = fakes.prepare(THERE)
    assert artifact == Artifact(THERE_PATH, "exported", "default", "f" * 64, 12, {"exporter": "2.0"}, ["e"])
    assert fakes.brought == [("lab1", checkpoint.path, False)]
    (asked,) = fakes.worker.asked("prepare")
    assert asked["checkpoint"] == f"/depot/of/lab1/{checkpoint.path.name}"
    assert (asked["name"], asked["key"]) == (checkpoint.name, checkpoint.fingerprint().key)
    assert asked["recipe"] == RECIPES["default"]
    assert fakes.ours.asked("export") == []
    assert fakes.ours.stopped
    assert any("on lab1" in said for said in fakes.said)


def test_an_exporter_that_fails_here_is_an_error_and_is_stopped(make: Make) -> None:
    for target in (HERE, THERE):
        fakes = make()
        fakes.ours.fault = fakes.worker.fault = WorkerRaised(Stage.PREPARE, "unsupported operator", "report it")
        error = fakes.fails(target)
        assert (error.problem, error.remedy) == ("unsupported operator", "report it")
        assert fakes.brought == []
        assert fakes.ours.stopped is (target is THERE)


def test_an_exporter_that_fails_on_the_host_is_an_error(make: Make) -> None:
    fakes = make()
    fakes.ours.version = None
    fakes.worker.fault = WorkerRaised(Stage.PREPARE, "unsupported operator")
    assert fakes.fails(THERE).problem == "unsupported operator"


def test_a_full_disk_is_an_error_of_preparing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Artifact:
        raise ResourceError("the disk is full", "free space")

    monkeypatch.setattr(preparation, "ensure_exported", full)
    for target in (HERE, THERE):
        error = make().fails(target)
        assert (error.problem, error.remedy) == ("the disk is full", "free space")
