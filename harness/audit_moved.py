"""Codes that were moved on purpose: what GPTQ may do to a group, and what it may not.

GPTQ quantises column by column and moves the columns to come so as to make up for the error of those before, so that a
code is not the nearest to the checkpoint's weight. What remains true of every group, measured on NNCF's export of the
bundled checkpoint (24 tensors, 36864 groups of 128):

- distances of codes from weights have a mean of zero: at most 4.7 standard errors (limit 6);
- codes are in proportion to weights, as they are in the other rows of the same columns: at most 4.2 standard errors for
  a group (limit 6), 4.0 for a row (limit 5.5);
- distances are alike in all rows of the same columns: at most 1.42 times their median (limit 2);
- no code is further than 2.6 steps from its weight (limit 4);
- the scales of the first group are the rule's, for nothing has been moved yet; others lie between 0.89 and 1.14 of it
  (limits 0.7 and 1.4).

So a scale that is 0.2 % off is found in a first group, and in a row; in one other group it takes 10 % to be found nine
times out of ten.
"""

from __future__ import annotations

import numpy as np

from harness.audit_grid import Grid, Mask

_BIAS = 6.0
_GROUP = 6.0
_ROW = 5.5
_SPREAD = 2.0
_FAR = 4.0
_SCALES = (0.7, 1.4)


def moved_too_far(grid: Grid, width: int) -> Mask:
    """The groups, `[n, G]`, of `width` columns whose codes are not those of a clean GPTQ."""
    with np.errstate(all="ignore"):
        spread = np.sqrt(grid.square / width)
        usual = np.median(spread, axis=0, keepdims=True)
        bias = np.abs(grid.error / width) / (usual / np.sqrt(width))
        slope = grid.product / grid.power
        error = usual / np.sqrt(grid.power)
        odd = slope - np.median(slope, axis=0, keepdims=True)
        row = odd.mean(axis=1, keepdims=True) / np.sqrt((error**2).mean(axis=1, keepdims=True) / odd.shape[1])
        far = (bias > _BIAS) | (np.abs(odd / error) > _GROUP) | (spread > _SPREAD * usual) | (grid.worst > _FAR)
    # A group of which nothing is left, such as one of zeros, has no figures and no error.
    # A row is at fault as a whole where none of its groups is alone.
    whole = (np.abs(row) > _ROW) & ~far.any(axis=1, keepdims=True)
    found: Mask = (far | whole) & (grid.square > 0)
    return found


def scales_too_far(grid: Grid, rule: str, *, exact_start: bool) -> Mask:
    """The groups, `[n, G]`, whose scale is not what GPTQ could have chosen; the first group's may be exact."""
    low, high = _SCALES
    ratio = grid.rules[rule]
    odd: Mask = (ratio < low) | (ratio > high)
    if exact_start:
        odd[:, 0] = ~grid.follows(rule)[:, 0]
    return odd
