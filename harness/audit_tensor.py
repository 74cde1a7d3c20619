"""One stored tensor held against the checkpoint's: float values, or codes, scales and zero points."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import audit_grid
from harness.audit_explain import explain_group, explain_tensor, find_rows
from harness.audit_grid import RANGE, SEARCH, Grid, Mask
from harness.audit_moved import moved_too_far, scales_too_far
from harness.findings import LIMIT, Finding, TensorFigures
from harness.tensor_files import TensorRows
from harness.weights import Array, Plain, Quantised, Stored

# The scales that scale estimation leaves lie between 0.76 and 1.15 of the rule's, with AWQ or without; but for one
# group in 36,864, on one processor, whose scale is 1.90 times the rule's with the nearest codes. NNCF 3.4 bounds no
# scale: it takes any that lessens the error of a group's outputs on the samples, and in its candidates a weight whose
# code is zero counts a thousand times over.
_SEARCHED = (0.6, 1.35)
_SEARCHED_SELDOM = (0.25, 4.0)
_SELDOM = 1e-3
# The outcomes of k-quant's search, taking sums in another order, lie within 10 % of each other at four bits, and within
# 0.6 % at eight.
_OTHERWISE = {4: 0.15, 8: 0.01}
# Of the groups of a tensor, no order of sums tried moved more than one in 60.
_OTHERWISE_MOST = 0.125
# From this share of groups on, the tensor as a whole is what is wrong.
_MOST = 0.25
# More of them wait for memory.
_THREADS = min(4, os.cpu_count() or 1)


class Method(msgspec.Struct, frozen=True):
    """How the codes of four bits were chosen: to the nearest, with scales that were searched for, or moved (GPTQ).

    `repeated`: codes of four and of eight bits by k-quant, whose search can be repeated; `otherwise`: by an arithmetic
    that decides some near ties in another way than ours does.
    """

    searched: bool = False
    moved: bool = False
    repeated: bool = False
    otherwise: bool = False

    @property
    def name(self) -> str:
        """The method in words."""
        if self.repeated:
            return "k-quant, in another order of sums" if self.otherwise else "k-quant"
        chosen = [word for word, is_so in (("searched scales", self.searched), ("moved codes", self.moved)) if is_so]
        return " and ".join(chosen) or "round to nearest"


class Judged(msgspec.Struct, frozen=True):
    """What was found in one tensor, in all and cut short; `following` of `groups` groups follow their rule.

    `apart`: groups that are not the outcome of k-quant's search, but may be in another order of sums.
    """

    figures: TensorFigures
    findings: tuple[Finding, ...]
    count: int
    following: int = 0
    groups: int = 0
    apart: int = 0


def judge_plain(stored: Stored, content: Plain, weight: TensorRows) -> Judged:
    """Float values must be the checkpoint's, rounded to the stored dtype: nothing else happens to them."""
    wanted = weight if content.multiplier is None else weight.over(content.multiplier)
    bad, wrong, worst = [], 0, 0.0
    for rows in audit_grid.chunks(content.values):
        held, right, off = _held(content, rows, wanted)
        wrong += int(off.sum())
        worst = max(worst, float(np.abs(np.nan_to_num(held - right, nan=np.inf)).max(initial=0.0)))
        bad.append(np.flatnonzero(off.reshape(off.shape[0], -1).any(axis=1)) + rows.start)
    rows_off = np.concatenate(bad)
    vector = content.values.ndim == 1
    findings: list[Finding] = []
    if vector and rows_off.size:
        findings = [_values(stored, *_held(content, slice(None), wanted), None)]
    elif rows_off.size:
        some = rows_off[:LIMIT]
        held, right, off = _held(content, some, wanted)
        others = find_rows(held, some, wanted)
        findings = [
            _values(stored, held[i], right[i], off[i], int(row) + stored.row)
            if other is None
            else _other_row(stored, int(row), other, int(off[i].sum()))
            for i, (row, other) in enumerate(zip(some, others, strict=True))
        ]
    share = wrong / content.values.size
    figures = _figures(stored, content.dtype, 0, "", 1.0, share, worst, wrong)
    return Judged(figures, tuple(findings), min(1, rows_off.size) if vector else int(rows_off.size))


def _held(content: Plain, rows: slice | NDArray[np.intp], wanted: TensorRows) -> tuple[Array, Array, Mask]:
    """Some rows as they are, as the checkpoint has them, and where they are not the same but for rounding."""
    held, right = content.values[rows].astype(np.float64), wanted[rows]
    within = np.abs(held - right) <= _rounding(content, right, multiplied=content.multiplier is not None)
    return held, right, ~within


def _rounding(content: Plain, wanted: Array, *, multiplied: bool) -> Array | float:
    """Half a unit in the last place of the stored dtype; a whole one of what the exporter multiplied in float32."""
    digits, least = {"float16": (10, -24), "bfloat16": (7, -133), "float32": (23, -149)}[content.dtype]
    with np.errstate(all="ignore"):
        unit = 2.0 ** np.maximum(np.floor(np.log2(np.abs(wanted))) - digits, least)
    if multiplied:
        return np.asarray(unit * 1.5 + np.abs(wanted) * 2.0**-22)
    half: Array = unit * 0.5
    if content.dtype == "float16":  # what is too large becomes the largest
        half = np.where(np.abs(wanted) > 65504, np.abs(wanted) - 65504, half)
    return half


def _values(stored: Stored, held: Array, wanted: Array, wrong: Mask, row: int | None) -> Finding:
    with np.errstate(all="ignore"):
        apart = float(np.nanmax(np.abs(held / wanted - 1)[wrong], initial=0.0))
    place = stored.name if row is None else f"{stored.name}, row {row}"
    said = f"{place}: {int(wrong.sum())} of {wrong.size} values are not the checkpoint's, by up to {100 * apart:.2g} %"
    return Finding(stored.name, "values", said, row, None, {"values": float(wrong.sum()), "relative": apart})


def _other_row(stored: Stored, row: int, other: int, codes: int) -> Finding:
    row, other = row + stored.row, other + stored.row
    said = f"{stored.name}, row {row}: holds row {other} of the checkpoint"
    figures = {"other": float(other), "codes": float(codes)}
    return Finding(stored.name, "row of another row", said, row, None, figures)


def judge_quantised(stored: Stored, content: Quantised, weight: TensorRows, method: Method, rounded: str) -> Judged:
    """Codes must be those of the checkpoint on the artifact's own grid, and the grid one that the method chooses."""
    if content.bits > 4 and not method.repeated:
        method = Method()  # exporters search and move codes of four bits only, but for k-quant

    def measured(rows: slice) -> audit_grid.Grid:
        return audit_grid.measure(content, weight[rows], rows, rounded, repeat=method.repeated)

    with ThreadPoolExecutor(_THREADS) as pool:  # NumPy lets go of the interpreter while it computes
        grid = audit_grid.join(list(pool.map(measured, audit_grid.chunks(content.codes))))
    rule, share = audit_grid.nearest_rule(grid)
    codes = moved_too_far(grid, content.group) if method.moved else grid.beyond > 0
    ratio = grid.rules[rule]
    scales, zeros = _scales(grid, rule, method), _zeros(grid, rule, method)
    apart = np.zeros_like(codes)
    if rule == SEARCH:
        apart = (scales | zeros) & ~codes & (np.abs(ratio - 1) <= _OTHERWISE[content.bits])
        if method.otherwise and apart.mean() <= _OTHERWISE_MOST:
            scales, zeros = scales & ~apart, zeros & ~apart
    flagged = codes | scales | zeros
    findings, count = _explain(stored, content, weight, rounded, grid, codes), _count(codes)
    for found in (_odd_scales(stored, rule, ratio, scales & ~codes), _odd_zeros(stored, zeros & ~scales & ~codes)):
        findings += found[: max(0, LIMIT - len(findings))]
    count += int((scales & ~codes).sum() + (zeros & ~scales & ~codes).sum())
    size = float(content.codes.size)
    figures = _figures(
        stored, _stored(content), content.group, rule, share,
        float(grid.beyond.sum()) / size, float(grid.worst.max()), int(flagged.sum()),
    )  # fmt: skip
    return Judged(
        figures, tuple(findings), count, int(grid.follows(rule).sum()), int(ratio.size), int(apart.sum())
    )  # fmt: skip


def _stored(content: Quantised) -> str:
    kind = "levels" if content.levels is not None else ("int" if content.low < 0 else "uint")
    return f"{kind}{content.bits}"


def _figures(
    stored: Stored, kind: str, group: int, rule: str, follow: float, moved: float, worst: float, flagged: int
) -> TensorFigures:
    return TensorFigures(
        stored.name, stored.row, stored.rows, stored.source, kind, group, rule, follow, moved, worst, flagged
    )


def _scales(grid: Grid, rule: str, method: Method) -> Mask:
    """The groups whose scale the method would not choose."""
    ratio = grid.rules[rule]
    if method.moved:
        # The first group's scale is chosen before anything is moved.
        return scales_too_far(grid, rule, exact_start=not method.searched)
    if method.searched:
        odd = _outside(ratio, _SEARCHED)
        return _outside(ratio, _SEARCHED_SELDOM) if odd.sum() <= max(1.0, _SELDOM * odd.size) else odd
    return np.asarray(~grid.follows(rule))


def _outside(ratio: Array, limits: tuple[float, float]) -> Mask:
    return np.asarray(~((ratio >= limits[0]) & (ratio <= limits[1])))


def _zeros(grid: Grid, rule: str, method: Method) -> Mask:
    """The groups whose zero point is not the rule's, where the rule has one for each group."""
    placed = rule == SEARCH or (rule.startswith(RANGE) and not (method.searched or method.moved))
    return ~grid.zero_points if placed else np.zeros_like(grid.zero_points)


def _most(mask: Mask) -> bool:
    return int(mask.sum()) > max(8, _MOST * mask.size)


def _count(mask: Mask) -> int:
    return 1 if _most(mask) else int(mask.sum())


def _explain(
    stored: Stored, content: Quantised, weight: TensorRows, rounded: str, grid: Grid, codes: Mask
) -> list[Finding]:
    """Findings about codes: one for the tensor, or for each row of another row, or for each group."""
    rows = np.flatnonzero(codes.any(axis=1))
    if rows.size == 0:
        return []
    if _most(codes):
        some = rows[:: max(1, rows.size // 64)][:64]
        at = audit_grid.place(content, weight[some], some, rounded)
        bias = float(grid.error.sum()) / content.codes.size
        others = find_rows(_products(content, some), some, weight)
        if sum(other is not None for other in others) * 2 < some.size:
            return [explain_tensor(stored, at, int(codes.sum()), codes.size, bias)]
    some = rows[:LIMIT]
    found: list[Finding] = []
    for row, other in zip(some, find_rows(_products(content, some), some, weight), strict=True):
        if other is not None:
            found.append(_other_row(stored, int(row), other, int(grid.beyond[row].sum())))
            continue
        at = audit_grid.place(content, weight[row : row + 1], np.asarray([row]), rounded)
        found += [explain_group(stored, at, int(row) + stored.row, int(g)) for g in np.flatnonzero(codes[row])]
    return found[:LIMIT]


def _products(content: Quantised, rows: np.ndarray) -> Array:
    some = msgspec.structs.replace(
        content, codes=content.codes[rows], scales=content.scales[rows],
        zero_points=content.zero_points if content.zero_points.shape[0] == 1 else content.zero_points[rows],
    )  # fmt: skip
    with np.errstate(all="ignore"):
        return np.nan_to_num(some.product(), posinf=0.0, neginf=0.0)


def _odd_scales(stored: Stored, rule: str, ratio: Array, odd: Mask) -> list[Finding]:
    return [
        Finding(
            stored.name, "scale",
            f"{stored.name}, row {row + stored.row}, group {group}: the scale is {ratio[row, group]:.5g} times {rule}, "
            "which the other groups follow",
            int(row) + stored.row, int(group), {"ratio": float(ratio[row, group])},
        )
        for row, group in np.argwhere(odd)[:LIMIT]
    ]  # fmt: skip


def _odd_zeros(stored: Stored, odd: Mask) -> list[Finding]:
    said = "the zero point is not where the scheme puts it"
    return [
        Finding(stored.name, "zero point", f"{stored.name}, row {row + stored.row}, group {group}: {said}",
                int(row) + stored.row, int(group))
        for row, group in np.argwhere(odd)[:LIMIT]
    ]  # fmt: skip
