"""What is wrong with codes that do not fit the checkpoint: the scale, the zero point, or that they belong elsewhere."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from harness.audit_grid import Place, bounds, slack, values
from harness.findings import Finding
from harness.tensor_files import TensorRows
from harness.weights import Array, Quantised, Stored

_CLOSE = 0.9
_ROWS = 4096


def explain_group(stored: Stored, at: Place, row: int, group: int) -> Finding:
    """Why a group does not fit; `at` holds the one row that it is in, `row` counts in the checkpoint's tensor."""
    content = _quantised(stored)
    q = values(content)[at.codes[0] - content.low] - at.zeros[0]
    t = at.middle[0] - at.zeros[0]
    wrong = _misfits(content, at, group)
    figures = {"codes": float(wrong.sum())}
    where = f"{stored.name}, row {row}, columns {group * q.shape[1]} to {(group + 1) * q.shape[1] - 1}"
    size = q.shape[1]
    if not np.all(np.isfinite(t[group])):
        return Finding(stored.name, "scale", f"{where}: the scale is {at.scales[0, group, 0]:g}", row, group, figures)
    offset = float(np.median(q[group] - t[group]))
    slope = _slope(q[group], t[group])
    if slope < -0.5:
        return Finding(stored.name, "sign", f"{where}: codes and weights have opposite signs", row, group, figures)
    if round(offset) and _misfits(content, at, group, shift=round(offset)).sum() * 3 <= wrong.sum():
        figures["off"] = round(offset)
        said = f"{where}: the codes lie {round(offset):+d} from their weights throughout, as with a wrong zero point"
        return Finding(stored.name, "zero point", said, row, group, figures)
    if abs(slope - 1) > 2.0**-10 and _misfits(content, at, group, factor=slope).sum() * 3 <= wrong.sum():
        figures["ratio"] = slope
        said = f"{where}: the scale is {100 * (slope - 1):+.2g} % off what the codes were made with"
        return Finding(stored.name, "scale", said, row, group, figures)
    other = _most_alike(q[group], t)
    if other is not None and other != group:
        figures["other"] = other
        said = f"{where}: holds the codes of group {other} of its row"
        return Finding(stored.name, "group of another group", said, row, group, figures)
    said = f"{where}: {int(wrong.sum())} of {size} codes are not those of their weights"
    return Finding(stored.name, "codes", said, row, group, figures)


def _quantised(stored: Stored) -> Quantised:
    if not isinstance(stored.content, Quantised):
        raise TypeError(f"{stored.name} is not quantised")
    return stored.content


def _misfits(content: Quantised, at: Place, group: int, *, factor: float = 1.0, shift: int = 0) -> NDArray[np.bool_]:
    """Which codes of a group are not the nearest, were the weights `factor` times as large, or `shift` codes up."""
    lower, upper = bounds(content)
    zeros = at.zeros[0, group]
    index = at.codes[0, group] - content.low
    # How far a factor found by least squares may be off.
    band = slack(content, at)[0, group] + (0.02 if factor != 1.0 else 0.0)
    least = (at.least[0, group] - zeros) * factor + zeros + shift
    most = (at.most[0, group] - zeros) * factor + zeros + shift
    with np.errstate(invalid="ignore"):
        return np.asarray(~(np.maximum(least - upper[index], lower[index] - most) <= band))


def _slope(q: Array, t: Array) -> float:
    """The factor on t that fits q best."""
    power = float((t * t).sum())
    return float((q * t).sum() / power) if power else 1.0


def _alike(first: Array, second: Array) -> float:
    size = float(np.linalg.norm(first) * np.linalg.norm(second))
    return float((first * second).sum()) / size if size else 0.0


def _most_alike(q: Array, t: Array) -> int | None:
    """The group of a row whose weights these codes are, zero points apart, if there is one."""
    found = [_alike(q - q.mean(), other - other.mean()) if np.all(np.isfinite(other)) else 0.0 for other in t]
    best = int(np.argmax(found))
    return best if found[best] > _CLOSE else None


def find_rows(products: Array, own: NDArray[np.intp], weights: TensorRows) -> list[int | None]:
    """For each stored row, `[m, K]`, the row of the checkpoint's tensor that it is more alike to than its `own`.

    None where there is no such row, or it is no good likeness either.
    """
    lengths = np.linalg.norm(products, axis=1)
    best = np.full(products.shape[0], -np.inf)
    where = np.zeros(products.shape[0], dtype=np.intp)
    for begin in range(0, weights.shape[0], _ROWS):
        part = weights[begin : begin + _ROWS]
        with np.errstate(all="ignore"):
            likeness = np.nan_to_num((part @ products.T) / (np.linalg.norm(part, axis=1)[:, None] * lengths), nan=-1.0)
        here = likeness.argmax(axis=0)
        value = likeness[here, np.arange(here.size)]
        where, best = np.where(value > best, begin + here, where), np.maximum(value, best)
    mine = np.asarray([_alike(product, weights[row]) for product, row in zip(products, own, strict=True)])
    return [
        int(row) if value > _CLOSE and value > likeness + 0.02 and row != self_row else None
        for row, value, likeness, self_row in zip(where, best, mine, own, strict=True)
    ]


def explain_tensor(stored: Stored, at: Place, flagged: int, groups: int, bias: float) -> Finding:
    """Why most groups of a tensor do not fit, from a sample of its rows; `bias` is the mean distance in steps."""
    content = _quantised(stored)
    q = values(content)[at.codes - content.low] - at.zeros
    t = np.where(np.isfinite(at.middle), at.middle - at.zeros, 0.0)
    figures = {"groups": float(flagged), "of": float(groups), "bias": bias}
    whole = f"{stored.name}: {flagged} of {groups} groups do not fit"
    if 0.3 < abs(bias) < 0.7:
        how = "down" if bias < 0 else "up"
        return Finding(stored.name, "rounding", f"{whole}; all codes were rounded {how}", None, None, figures)
    if _alike(q, t) < -_CLOSE:
        return Finding(stored.name, "sign", f"{whole}; codes and weights have opposite signs", None, None, figures)
    if q.shape[2] % 2 == 0:
        swapped = q.reshape(*q.shape[:2], -1, 2)[..., ::-1].reshape(q.shape)
        if _alike(swapped, t) > max(_CLOSE, _alike(q, t) + 0.02):
            return Finding(stored.name, "nibbles", f"{whole}; neighbouring codes are swapped", None, None, figures)
    slope = _slope(q, t)
    if _alike(q, t) > _CLOSE and abs(slope - 1) > 0.005:
        figures["ratio"] = slope
        said = f"{whole}; the scales are {100 * (slope - 1):+.2g} % off what the codes were made with"
        return Finding(stored.name, "scale", said, None, None, figures)
    said = f"{whole}; the correlation with the checkpoint is {_alike(q, t):.3f}"
    return Finding(stored.name, "codes", said, None, None, figures)
