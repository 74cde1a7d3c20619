"""The weight audit: did the exporter store what it says?

Every tensor of an artifact is held against the checkpoint's, every row and every group of it, without a runtime and
without a device: float tensors value by value (`audit_tensor`), quantised ones on their own grid (`audit_grid`), and
those whose codes an exporter moves on purpose by their statistics (`audit_moved`). What the artifact states beside its
weights is held against the configuration (`statements`). Tensors are read one at a time; time and memory are in
proportion to their sizes.

How the artifact was made is a property of the artifact as a whole: what its metadata say or, where they say nothing,
whether most of all its groups follow a rule, or come out of k-quant's search. No single tensor can choose a laxer
measure for itself. That search ends elsewhere for at least 1.4 groups in 1000 where sums are taken in another order
(`audit_search`). Where that many groups are apart from its outcome, the exporter took them so, and a group is held
within what other orders give; where fewer are, they are faults.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import numpy as np

from harness.audit_tensor import Judged, Method, judge_plain, judge_quantised
from harness.checkpoint import Checkpoint
from harness.errors import ArtifactError
from harness.findings import AuditReport, Finding, TensorFigures
from harness.layout import EMBEDDING, HEAD, Layout
from harness.statements import ALWAYS, agrees, expected
from harness.tensor_files import TensorFiles, TensorRows
from harness.weights import Array, ArtifactWeights, Plain, Statement, Stored

# Above this share of all groups, and this number, another order of sums explains what k-quant's search does not.
_APART, _FEW = 2.0**-11, 8


def audit(weights: ArtifactWeights, checkpoint: Checkpoint) -> AuditReport:
    """Hold an artifact's weights and statements against the checkpoint.

    Raises ArtifactError where a tensor cannot be read, CheckpointError where the checkpoint's cannot.
    """
    stated = dict(weights.scheme)
    method, judged, coverage = _inferred(weights, checkpoint, _stated_method(stated))
    counts, findings, unstated = _statements(weights.statements(), checkpoint)
    beside = coverage + findings
    return AuditReport(
        scheme=_scheme(method, [one.figures for one in judged]),
        stated=stated,
        tensors=tuple(one.figures for one in judged),
        findings=tuple(beside + [finding for one in judged for finding in one.findings]),
        count=len(beside) + sum(one.count for one in judged),
        judged=counts,
        unstated=unstated,
    )


def _inferred(
    weights: ArtifactWeights, checkpoint: Checkpoint, stated: Method | None
) -> tuple[Method, list[Judged], list[Finding]]:
    """Judge every tensor by the method stated or, where none is, by the first that most groups bear out."""
    method = stated or Method()
    judged, coverage = _tensors(weights, checkpoint, method)
    of_four = _most_follow([one for one in judged if one.figures.stored.endswith("4")])
    if stated is not None or (_most_follow(judged) and of_four):
        return method, judged, coverage
    if not _most_follow(judged):
        repeated = Method(repeated=True)
        again, coverage = _tensors(weights, checkpoint, repeated)
        apart, groups = sum(one.apart for one in again), sum(one.groups for one in again)
        if _most_follow(again) and apart <= max(_FEW, _APART * groups):
            return repeated, again, coverage
        if _most_follow(again):
            repeated = Method(repeated=True, otherwise=True)
            return repeated, *_tensors(weights, checkpoint, repeated)
    if of_four:
        return method, judged, coverage
    method = Method(searched=True)
    return method, *_tensors(weights, checkpoint, method)


def _most_follow(judged: list[Judged]) -> bool:
    return sum(one.following for one in judged) * 2 >= sum(one.groups for one in judged)


def _stated_method(stated: Mapping[str, str]) -> Method | None:
    """The method in the exporter's words, which NNCF writes; None where nothing is said of it."""
    if "scale_estimation" not in stated and "gptq" not in stated:
        return None
    return Method(searched=stated.get("scale_estimation") == "True", moved=stated.get("gptq") == "True")


def _scheme(method: Method, tensors: list[TensorFigures]) -> str:
    quantised = [figures for figures in tensors if figures.group]
    if not quantised:
        return "not quantised"
    kinds = sorted({f"{figures.stored} by {figures.group}" for figures in quantised})
    return f"{method.name}: {', '.join(kinds)}"


def _tensors(weights: ArtifactWeights, checkpoint: Checkpoint, method: Method) -> tuple[list[Judged], list[Finding]]:
    """Judge every tensor, and whether each of the checkpoint's is there, whole and once."""
    files = TensorFiles(checkpoint.weight_files)
    layout = Layout.of(checkpoint.config)
    covered: dict[str, list[tuple[int, int]]] = {}
    judged, findings = [], []
    for stored in weights.tensors():
        name = EMBEDDING if stored.name == HEAD and layout.tied and HEAD not in files else stored.name
        if name not in files:
            said = f"{stored.name}: the checkpoint has no such tensor"
            findings.append(Finding(stored.name, "extra", said))
            continue
        weight = files.rows(name, stored.row, stored.rows)
        covered.setdefault(stored.name, []).append((stored.row, stored.rows))
        if _shape(stored) != weight.shape:
            found = f"rows {stored.row} on are {list(_shape(stored))}"
            said = f"{stored.name}: {found}, the checkpoint's {list(weight.shape)}"
            findings.append(Finding(stored.name, "shape", said))
            continue
        judged.append(_judge(stored, weight, method, files.dtype(name)))
    return judged, findings + _coverage(covered, layout)


def _shape(stored: Stored) -> tuple[int, ...]:
    held = stored.content.values if isinstance(stored.content, Plain) else stored.content.codes
    return tuple(held.shape)


def _judge(stored: Stored, weight: TensorRows, method: Method, dtype: str) -> Judged:
    if isinstance(stored.content, Plain):
        if stored.content.dtype not in ("float32", "float16", "bfloat16"):
            raise ArtifactError(f"{stored.source} holds {stored.content.dtype}", "export floats of 16 or 32 bits")
        return judge_plain(stored, stored.content, weight)
    return judge_quantised(stored, stored.content, weight, method, dtype)


def _coverage(covered: Mapping[str, list[tuple[int, int]]], layout: Layout) -> list[Finding]:
    findings = []
    for name, shape in layout.shapes().items():
        parts = sorted(covered.get(name, []))
        if not parts and name == HEAD and layout.tied:
            continue
        times = np.zeros(shape[0], dtype=np.int64)
        for begin, count in parts:
            times[begin : begin + count] += 1
        for what, wrong, said in (("missing", times == 0, "missing"), ("twice", times > 1, "there more than once")):
            rows = np.flatnonzero(wrong)
            if rows.size:
                which = "all of it is" if rows.size == shape[0] else f"{rows.size} rows from {rows[0]} on are"
                findings.append(Finding(name, what, f"{name}: {which} {said}", int(rows[0])))
    return findings


def _statements(
    stated: list[Statement], checkpoint: Checkpoint
) -> tuple[dict[str, int], list[Finding], tuple[str, ...]]:
    counts: dict[str, int] = {}
    findings = []
    for statement in stated:
        right = agrees(statement, checkpoint)
        if right is None:
            continue
        counts[statement.what] = counts.get(statement.what, 0) + 1
        if not right and not _is_windowed_elsewhere(statement, stated, checkpoint):
            findings.append(_wrong(statement, checkpoint))
    unstated = tuple(names[0] for names in ALWAYS if not any(name in counts for name in names))
    return counts, findings + _uneven(stated, checkpoint), unstated


def _uneven(stated: list[Statement], checkpoint: Checkpoint) -> list[Finding]:
    """What some layers state and others do not: the others are of another form, and not what an exporter writes."""
    layers = set(range(Layout.of(checkpoint.config).layers))
    found: dict[str, set[int]] = {}
    for statement in stated:
        if statement.layer is not None and agrees(statement, checkpoint) is not None:
            found.setdefault(statement.what, set()).add(statement.layer)
    general = {statement.what for statement in stated if statement.layer is None}
    return [
        Finding(what, "statement", f"{what} is not to be read off layer {layer}, though off others", layer)
        for what, there in found.items()
        for layer in sorted(layers - there)
        if what not in general or what == "rms_norm_eps"
    ]


def _is_windowed_elsewhere(statement: Statement, stated: list[Statement], checkpoint: Checkpoint) -> bool:
    """Whether a layer without a window is one of a runtime that keeps to the window by forgetting what is older."""
    if statement.what != "sliding_window" or statement.layer is None or float(statement.value.reshape(-1)[0]) != -1:
        return False
    others = [other for other in stated if other.what == "sliding_window" and other.layer is None]
    return any(agrees(other, checkpoint) for other in others)


def _wrong(statement: Statement, checkpoint: Checkpoint) -> Finding:
    found = np.asarray(statement.value, dtype=np.float64)
    wanted = expected(statement.what, statement.layer, checkpoint, found.shape[0] if found.ndim else 1)
    values = wanted.values if wanted is not None else ()
    where = f" of layer {statement.layer}" if statement.layer is not None else ""
    right = " or ".join(map(_text, values)) or "nothing"
    said = f"{statement.what}{where} is {_text(found)}, by the checkpoint {right}"
    figures: dict[str, float] = {}
    if values and values[0].shape == found.shape and found.size:
        figures["apart"] = float(np.max(np.abs(found - values[0])))
        if found.size > 1:
            said += f" (up to {figures['apart']:.3g} apart)"
    return Finding(statement.what, "statement", f"{said}; stated by {statement.source}", statement.layer, None, figures)


def _text(values: Array) -> str:
    shown = [f"{value:.7g}" for value in np.asarray(values).reshape(-1)[:8]]
    more = ", ..." if values.size > len(shown) else ""
    return f"[{', '.join(shown)}{more}]" if values.ndim else shown[0]


def to_json(report: AuditReport) -> str:
    """The report as JSON for a program to read."""
    return msgspec.json.format(msgspec.json.encode(report), indent=2).decode()
