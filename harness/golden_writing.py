"""Writing a golden: checked against the float64 oracle, then in one move."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.checkpoint import Checkpoint, sha256_file
from harness.compact_plan import Plan
from harness.golden import FRESH, HIDDEN, LOGITS, MANIFEST, Case, File, Manifest, Noise, writing
from harness.golden_compact import compact_tensors
from harness.golden_manifest import COMPACT, COMPACT_SCHEMA
from harness.oracle_check import check_choices, choosing, measure_noise

Logits = Mapping[str, NDArray[np.float32]]
"""Rows by the id of a case; they are taken one case at a time."""


def conclude(
    checkpoint: Checkpoint,
    out: Path,
    manifest: Manifest,
    logits: Logits,
    hidden: Logits,
    fresh: Logits,
    plan: Plan | None,
) -> Manifest:
    """Check what was recorded against the float64 oracle, and write it, compact where there is a plan.

    `manifest` lacks noise, near ties and files. Raises GoldenError where the oracle contradicts, ResourceError on a
    full disk.
    """
    noise = measure_noise(checkpoint, manifest.cases, logits, fresh)
    check_choices(checkpoint, manifest.cases, lambda case: choosing(case, logits, fresh), noise)
    cases = tuple(_with_near_ties(case, noise) for case in manifest.cases)
    manifest = msgspec.structs.replace(manifest, cases=cases, noise=noise)
    if plan is not None:
        manifest = msgspec.structs.replace(manifest, schema=COMPACT_SCHEMA, compact=plan)
    return write_golden(out, manifest, logits, hidden, fresh)


def _with_near_ties(case: Case, noise: Noise) -> Case:
    """The case with the tokens marked that rounding might have chosen otherwise."""
    if case.given:
        return case
    near = tuple(i for i, margin in enumerate(case.margins) if margin <= 2 * noise.max_abs)
    return msgspec.structs.replace(case, near_ties=near)


def write_golden(
    out: Path, manifest: Manifest, logits: Logits, hidden: Logits, fresh: Logits | None = None
) -> Manifest:
    """Write all files beside `out`, then swap the folders; rows compact where the manifest has a plan for them.

    Raises ResourceError on a full disk.
    """
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process of the same number that was killed
    try:
        with writing(out):
            partial.mkdir(parents=True)
            files = {}
            for name, tensors in _files(manifest, logits, hidden, fresh or {}):
                if tensors:
                    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, partial / name)
                    files[name] = File(sha256_file(partial / name), (partial / name).stat().st_size)
            manifest = msgspec.structs.replace(manifest, files=files).sealed()
            (partial / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
            _swap(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _files(
    manifest: Manifest, logits: Logits, hidden: Logits, fresh: Logits
) -> Iterator[tuple[str, dict[str, NDArray[Any]]]]:
    """Names and tensors."""
    if manifest.compact:
        yield COMPACT, dict(compact_tensors(manifest, manifest.compact, logits, fresh))
    else:
        yield LOGITS, dict(logits)
    yield HIDDEN, dict(hidden)
    if not manifest.compact:
        yield FRESH, dict(fresh)


def _swap(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out`. The old one is moved away first: Windows does not rename over."""
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    try:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
