"""From a target to the artifact that its session loads: given, exported here or there, brought where it is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from harness.artifacts import Artifact, describe, ensure_exported
from harness.backend import Recipe
from harness.checkpoint import Checkpoint
from harness.errors import ArtifactError, ResourceError, Stage, StageError, UsageError
from harness.ready_made import choose
from harness.run import Run
from harness.target import Target, matches
from harness.worker import Worker


def prepare(run: Run, target: Target, worker: Worker) -> tuple[Artifact, str]:
    """The artifact of a target, and the path by which `worker` can load it. Raises StageError(prepare).

    What is given or exported here is brought to a target's host, so that all machines of a lab judge the same
    bytes. A host whose exporter has other versions than ours exports for itself: an artifact of a newer builder
    may not load in an older runtime.
    """
    settings = run.settings
    given = [path for pattern, path in settings.artifacts if matches(target, pattern)]
    if given:
        return _bring(run, target, _given(run, target, given[-1]))
    recipe = _recipe(run, target)
    if recipe is None:
        return _bring(run, target, describe(settings.checkpoint.path, "checkpoint"))
    versions = worker.call(Stage.PREPARE, "versions", names=list(recipe.exporter))
    if target.host is None:
        artifact = _export(run, target, recipe, versions, worker)
        return artifact, str(artifact.path)
    with _exporter(run, target, recipe, versions) as ours:
        if ours is not None:
            return _bring(run, target, _export(run, target, recipe, versions, ours))
    return _export_there(run, target, recipe, worker)


def _given(run: Run, target: Target, folder: Path) -> Artifact:
    """The ready-made artifact for a target in a folder, with the recipe that its files tell of."""
    try:
        path, contents = choose(target, folder, run.backends[target.backend])
    except (UsageError, ArtifactError) as error:
        raise StageError(Stage.PREPARE, error.problem, error.remedy) from None
    artifact = describe(path, "given")
    return artifact if contents is None else msgspec.structs.replace(artifact, recipe=contents.recipe)


def _recipe(run: Run, target: Target) -> Recipe | None:
    named = [recipe for pattern, recipe in run.settings.recipes if matches(target, pattern)]
    chosen = named[-1] if named else None
    if isinstance(chosen, Recipe):
        return chosen
    try:
        return run.backends[target.backend].recipe(target, chosen)
    except UsageError as error:
        raise StageError(Stage.PREPARE, error.problem, error.remedy) from None


def _export(run: Run, target: Target, recipe: Recipe, versions: dict[str, str], worker: Worker) -> Artifact:
    """The artifact in this machine's cache, exported by a worker of this machine if it is not there."""
    settings = run.settings
    try:
        return export_by(
            worker,
            settings.checkpoint,
            settings.fingerprint.key,
            target.backend,
            recipe,
            versions,
            run.announce,
            trust_remote_code=settings.trust_remote_code,
        )
    except ResourceError as error:  # a full disk is met while preparing, and said to be
        raise StageError(Stage.PREPARE, error.problem, error.remedy) from None


def export_by(
    worker: Worker,
    checkpoint: Checkpoint,
    key: str,
    backend: str,
    recipe: Recipe,
    versions: dict[str, str],
    announce: Callable[[str], None],
    *,
    trust_remote_code: bool,
) -> Artifact:
    """The artifact in this machine's cache, exported by a worker if it is not there; `key` is the checkpoint's.

    Raises StageError(prepare) when the exporter fails, ResourceError on a full disk.
    """

    def export(out: Path) -> list[str]:
        command: list[str] = worker.call(
            Stage.PREPARE,
            "export",
            recipe=recipe,
            checkpoint=str(checkpoint.path),
            out=str(out),
            trust_remote_code=trust_remote_code,
        )
        return command

    return ensure_exported(checkpoint, key, backend, recipe, versions, export, announce=announce)


@contextmanager
def _exporter(run: Run, target: Target, recipe: Recipe, versions: dict[str, str]) -> Iterator[Worker | None]:
    """A worker of this machine that exports as the target's host would, None where there is none."""
    ours = run.crew.hire(f"{target.backend}-exporter", msgspec.structs.replace(target, host=None))
    try:
        yield ours if _exports_alike(ours, target, recipe, versions) else None
    finally:
        ours.stop()


def _exports_alike(ours: Worker, target: Target, recipe: Recipe, versions: dict[str, str]) -> bool:
    try:
        ours.start(Stage.PREPARE)
        opened = ours.call(Stage.PREPARE, "open", backend=target.backend)
        found = ours.call(Stage.PREPARE, "versions", names=list(recipe.exporter))
    except StageError:  # no exporter here is no fault of the host's
        return False
    return bool(found == versions and not opened["missing"])


def _export_there(run: Run, target: Target, recipe: Recipe, worker: Worker) -> tuple[Artifact, str]:
    settings = run.settings
    checkpoint = settings.checkpoint
    run.announce(f"exporting {checkpoint.name} for {target.backend} on {target.host}: {recipe.name}")
    found = worker.call(
        Stage.PREPARE,
        "prepare",
        checkpoint=_brought(run, target, checkpoint.path),
        name=checkpoint.name,
        key=settings.fingerprint.key,
        recipe=recipe,
        trust_remote_code=settings.trust_remote_code,
    )
    return msgspec.convert(found, Artifact, dec_hook=_path), str(found["path"])


def _bring(run: Run, target: Target, artifact: Artifact) -> tuple[Artifact, str]:
    if target.host is None:
        return artifact, str(artifact.path)
    return artifact, _brought(run, target, artifact.path)


def _brought(run: Run, target: Target, folder: Path) -> str:
    assert target.host is not None
    everything = folder != run.settings.checkpoint.path
    return run.crew.lab.bring(target.host, folder, run.announce, everything=everything)


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError(kind)
    return Path(value)
