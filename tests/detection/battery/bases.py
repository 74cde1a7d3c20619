"""The artifacts that faults are planted in, exported by the official exporters through the harness's cache."""

from __future__ import annotations

import shutil
from pathlib import Path

from detection.battery.bench import Bench
from detection.battery.onnx_files import OnnxFiles
from harness.artifacts import ensure_exported
from harness.backend import Recipe, Session, load_backend, versions_of
from harness.target import Target

WINDOW = 256


def exported(bench: Bench, target: str, recipe: str | Recipe | None = None) -> Path:
    """An artifact of the bundled checkpoint in the cache, made if it is not there; `recipe` by name, or another one."""
    parsed = Target.parse(target)
    backend = load_backend(parsed.backend)
    chosen = recipe if isinstance(recipe, Recipe) else backend.recipe(parsed, recipe)
    assert chosen is not None
    artifact = ensure_exported(
        bench.checkpoint,
        bench.checkpoint.fingerprint().key,
        parsed.backend,
        chosen,
        versions_of(chosen.exporter),
        lambda out: backend.export(bench.checkpoint.path, chosen, out, trust_remote_code=False),
        announce=lambda said: print(said, flush=True),
    )
    return artifact.path


def copied(bench: Bench, source: Path, name: str) -> Path:
    """A copy that a fault may be planted in; an ONNX one with its sliding window repaired."""
    folder = bench.scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder)
    if (folder / "genai_config.json").is_file():
        OnnxFiles(folder).repair_window(WINDOW)
    return folder


def loaded(target: str, artifact: Path, options: dict[str, str] | None = None) -> Session:
    """A session in this process."""
    parsed = Target.parse(target)
    return load_backend(parsed.backend).load(artifact, parsed, options=options or {}, trust_remote_code=False)
