"""Where the weights that a session computes with are read from, and the references computed on them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.arithmetic import Weights
from harness.artifacts import Artifact
from harness.audit import audit
from harness.backend import SessionInfo
from harness.decompose import ArtifactReferences, Undecomposed, reference_key
from harness.devices import this_machine
from harness.errors import ResourceError, Unsupported
from harness.findings import AuditReport
from harness.reference_memory import must_stream
from harness.run import Run
from harness.target import Target
from harness.weights import ReadsWeights


def weights_folder(
    run: Run, target: Target, artifact: Artifact, info: SessionInfo | None, call: Callable[..., Any]
) -> Path:
    """The folder that the weights are read from; `call` asks the session's worker for an operation.

    Raises Undecomposed when it is not on this machine.
    """
    if info is not None and info.capabilities.keeps_weights:
        if target.host is not None:
            raise Undecomposed(f"the weights are quantised on {target.host} while loading")
        folder = run.crew.scratch / f"weights-{str(target).replace(':', '-')}-{run.settings.fingerprint.key}"
        if not folder.is_dir():
            call("invoke", method="keep_weights", arguments={"folder": str(folder)})
        return folder
    if not artifact.path.is_dir():
        raise Undecomposed(f"the artifact lies on {target.host}")
    return artifact.path


def audit_of(
    run: Run, target: Target, artifact: Artifact, info: SessionInfo | None, call: Callable[..., Any]
) -> AuditReport:
    """The audit of a session's weights. Raises Unsupported where they cannot be read without its runtime."""
    backend = run.backends[target.backend]
    if not isinstance(backend, ReadsWeights):
        raise Unsupported(
            f"the backend {backend.name} does not read the weights of its artifacts",
            "give it dequantized_weights: see docs/backends.md",
        )
    try:
        folder = weights_folder(run, target, artifact, info, call)
    except Undecomposed as error:
        raise Unsupported(f"{target}: {error}") from None
    checkpoint = run.settings.checkpoint
    return audit(backend.dequantized_weights(folder, checkpoint.config), checkpoint)


def open_references(
    run: Run, target: Target, artifact: Artifact, info: SessionInfo | None, call: Callable[..., Any]
) -> ArtifactReferences:
    """The references of a session's artifact, their worker started. Raises Undecomposed where there can be none."""
    if not isinstance(run.backends[target.backend], ReadsWeights):
        raise Undecomposed(f"the backend {target.backend} does not read the weights of its artifacts")
    if info is None or not info.permitted:
        raise Undecomposed("nothing is known of how the runtime computes")
    folder, checkpoint = weights_folder(run, target, artifact, info, call), run.settings.checkpoint
    cases = [case for suite in run.settings.suites for case in run.golden(suite).manifest.cases]
    rounded = any(arithmetic.weights is not Weights.EXACT for arithmetic in info.permitted)
    longest = max(len(case.sequence) for case in cases)
    try:
        streamed = must_stream(checkpoint, longest, run.settings.memory, rounded=rounded)
    except ResourceError as error:
        raise Undecomposed(error.problem) from None
    opening = {"backend": target.backend, "artifact": str(folder), "config": checkpoint.config}
    parts = [artifact.sha256, str(target), *sorted(map(str, info.versions.items()))]
    found = ArtifactReferences(
        run.hire_reference,
        opening,
        reference_key(parts, run.settings.fingerprint.key, this_machine().processor),
        run.dismiss_reference,
        streamed=streamed,
        tell=lambda what: run.step(f"{target}: {what}"),
    )
    able = info.capabilities
    asked = [case for case in cases if not able.refuses(len(case.tokens), len(case.continuation))]
    found.foresee([(case.sequence, len(case.tokens)) for case in asked], exact=True)
    found.open()
    return found
