from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.artifacts import Artifact, artifact_cache, artifact_key, describe, ensure_exported
from harness.backend import Recipe
from harness.checkpoint import Checkpoint
from harness.errors import ResourceError, Stage, StageError, WorkerDied
from harness.target import Precision

_RECIPE = Recipe("int4-sym", Precision.INT4, ("--sym",), ("optimum-intel",))
_VERSIONS = {"optimum-intel": "2.2.0"}


class Exporter:
    """Writes one file, and counts how often it was asked to."""

    def __init__(self, checkpoint: Checkpoint, cache: Path, content: bytes = b"weights") -> None:
        self.checkpoint = checkpoint
        self.cache = cache
        self.content = content
        self.calls = 0
        self.announced: list[str] = []
        self.seconds: list[float] = []

    def __call__(self, out: Path) -> list[str]:
        self.calls += 1
        out.mkdir(exist_ok=True)
        (out / "model.bin").write_bytes(self.content)
        return ["exporter", "--model", str(self.checkpoint.path), str(out)]

    def ensure(
        self,
        export: Callable[[Path], list[str]] | None = None,
        *,
        key: str = "key",
        backend: str = "openvino",
        recipe: Recipe = _RECIPE,
        versions: dict[str, str] = _VERSIONS,
    ) -> Artifact:
        found = ensure_exported(
            self.checkpoint,
            key,
            backend,
            recipe,
            versions,
            export or self,
            announce=self.announced.append,
            cache=self.cache,
        )
        self.seconds.append(found.export_seconds)
        return msgspec.structs.replace(found, export_seconds=0.0)

    def folders(self) -> list[str]:
        return sorted(path.name for path in self.cache.iterdir() if path.is_dir())


@pytest.fixture
def exporter(checkpoint: Checkpoint, tmp_path: Path) -> Exporter:
    return Exporter(checkpoint, tmp_path / "cache")


def test_an_artifact_is_exported_once_and_then_found(exporter: Exporter) -> None:
    first = exporter.ensure()
    assert exporter.ensure() == first
    assert exporter.calls == 1
    assert exporter.seconds[0] > 0 == exporter.seconds[1]
    assert len(exporter.announced) == 1
    assert (first.path / "model.bin").read_bytes() == b"weights"
    assert (first.origin, first.recipe, first.bytes) == ("exported", "int4-sym", len(b"weights"))
    assert first.versions == _VERSIONS
    assert exporter.folders() == [first.path.name]


def test_the_command_kept_names_no_folder_of_the_machine(exporter: Exporter) -> None:
    assert exporter.ensure().command == ["exporter", "--model", "phi-3-random", "OUT"]


def test_each_ingredient_gives_an_artifact_of_its_own(exporter: Exporter) -> None:
    artifacts = [
        exporter.ensure(),
        exporter.ensure(key="other"),
        exporter.ensure(backend="ort-genai"),
        exporter.ensure(versions={"optimum-intel": "2.2.1"}),
        exporter.ensure(recipe=Recipe("int4-sym", Precision.INT4, ("--asym",), ("optimum-intel",))),
        exporter.ensure(recipe=Recipe("int4-x", Precision.INT4, ("--sym",), ("optimum-intel",))),
    ]
    assert exporter.calls == len(artifacts) == len({artifact.path for artifact in artifacts})


@given(st.permutations([("a", "1"), ("b", "2"), ("c", "3")]))
def test_the_key_does_not_depend_on_the_order_of_versions(items: list[tuple[str, str]]) -> None:
    assert artifact_key("k", _RECIPE, dict(items)) == artifact_key("k", _RECIPE, {"a": "1", "b": "2", "c": "3"})


def test_the_hash_is_over_names_and_contents_and_not_over_the_place(
    exporter: Exporter, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    one = exporter.ensure()
    same = Exporter(checkpoint, tmp_path / "elsewhere").ensure()
    other = Exporter(checkpoint, tmp_path / "third", b"weight5").ensure()
    assert one.sha256 == same.sha256 != other.sha256


@pytest.mark.parametrize(
    "raised", [WorkerDied(Stage.PREPARE, "killed"), KeyboardInterrupt(), RuntimeError("x"), OSError(errno.EACCES, "no")]
)
def test_an_exporter_that_raises_leaves_no_folder(exporter: Exporter, raised: BaseException) -> None:
    def export(out: Path) -> list[str]:
        exporter(out)
        raise raised

    with pytest.raises((StageError, KeyboardInterrupt, RuntimeError)):
        exporter.ensure(export)
    assert exporter.folders() == []
    assert exporter.ensure().bytes == len(b"weights")


@pytest.mark.parametrize("make_folder_first", [True, False])
def test_an_exporter_that_writes_nothing_is_an_error_of_the_prepare_stage(
    exporter: Exporter, make_folder_first: bool
) -> None:
    def export(out: Path) -> list[str]:
        if make_folder_first:
            out.mkdir(exist_ok=True)
        return ["exporter", "--quiet"]

    with pytest.raises(StageError, match="wrote nothing: exporter --quiet") as caught:
        exporter.ensure(export)
    assert caught.value.stage is Stage.PREPARE
    assert exporter.folders() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_lack_of_resources(exporter: Exporter, number: int) -> None:
    def export(out: Path) -> list[str]:
        exporter(out)
        raise OSError(number, os.strerror(number))

    with pytest.raises(ResourceError, match="full") as caught:
        exporter.ensure(export)
    assert "PHI3_CONFORMANCE_CACHE" in caught.value.remedy
    assert exporter.folders() == []


@pytest.mark.parametrize("manifest", [None, b"", b'{"checkpoint": "phi'])
def test_a_folder_without_a_whole_manifest_is_done_again(exporter: Exporter, manifest: bytes | None) -> None:
    first = exporter.ensure()
    path = first.path / "phi3-conformance.json"
    path.unlink()
    if manifest is not None:
        path.write_bytes(manifest)
    (first.path / "left-over").touch()
    again = exporter.ensure()
    assert exporter.calls == 2
    assert again == first
    assert not (again.path / "left-over").exists()


def test_what_a_killed_export_left_is_cleared_away(exporter: Exporter) -> None:
    path = exporter.ensure().path
    partial = path.with_name(f"{path.name}.partial")
    path.rename(partial)
    (partial / "artifact").mkdir()
    (partial / "artifact" / "half").touch()
    assert not (exporter.ensure().path / "half").exists()
    assert exporter.folders() == [path.name]


def test_two_that_want_the_same_export_make_it_once(exporter: Exporter) -> None:
    both = threading.Barrier(2, timeout=20)
    begun, go_on = threading.Event(), threading.Event()

    def export(out: Path) -> list[str]:
        begun.set()
        assert go_on.wait(20)
        return exporter(out)

    def ask() -> Artifact:
        both.wait()
        return exporter.ensure(export)

    with ThreadPoolExecutor(2) as pool:
        found = [pool.submit(ask) for _ in range(2)]
        assert begun.wait(20)
        assert not any(future.done() for future in found)
        go_on.set()
        one, other = (future.result(timeout=20) for future in found)
    assert one == other
    assert exporter.calls == 1


def test_a_ready_made_folder_is_described_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "given"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "model.bin").write_bytes(b"12345")
    before = describe(folder, "given")
    assert (before.origin, before.recipe, before.bytes) == ("given", None, 5)
    (folder / "inner").rename(folder / "other")
    assert describe(folder, "given").sha256 != before.sha256


def test_a_ready_made_folder_that_is_not_there_is_an_error_of_the_prepare_stage(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="there is no artifact folder") as caught:
        describe(tmp_path / "none", "given")
    assert caught.value.stage is Stage.PREPARE
    assert "--artifact" in caught.value.remedy


def test_the_cache_can_be_moved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path))
    assert artifact_cache() == tmp_path / "artifacts"
    monkeypatch.delenv("PHI3_CONFORMANCE_CACHE")
    assert artifact_cache().name == "artifacts"
    assert tmp_path not in artifact_cache().parents
