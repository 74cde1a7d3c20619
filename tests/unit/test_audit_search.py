"""The repeated search of k-quant gives what the formula gives, group by group."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.audit_search import search


def by_the_formula(x: NDArray[np.float64], bits: int) -> tuple[float, float]:
    """Scale and least value of one group in float64, as llama.cpp's make_qkx2_quants has it."""
    top = 2**bits - 1
    weights = np.sqrt((x * x).mean()) + np.abs(x)
    least, most = float(x.min()), float(x.max())
    scale = (most - least) / top
    codes = np.clip(np.rint((x - least) / scale), 0, top)
    best = float((weights * (scale * codes + least - x) ** 2).sum())
    for step in range(20):
        codes = np.clip(np.rint((top - 1 + 0.1 * step) / (most - least) * (x - least)), 0, top)
        first, second = (weights * codes).sum(), (weights * codes**2).sum()
        system = np.array([[second, first], [first, weights.sum()]])
        fitted, lower = np.linalg.solve(system, [(weights * codes * x).sum(), (weights * x).sum()])
        error = float((weights * (fitted * codes + lower - x) ** 2).sum())
        if error < best:
            best, scale, least = error, float(fitted), float(lower)
    return scale, least


@pytest.mark.parametrize(("bits", "size"), [(4, 32), (4, 128), (8, 32)])
def test_the_search_is_the_formulas(bits: int, size: int) -> None:
    weight = np.random.default_rng(7).standard_t(5, size=(400, size)).astype(np.float32)
    scale, least = search(weight, bits)
    expected = np.array([by_the_formula(row.astype(np.float64), bits) for row in weight])
    same = np.isclose(scale, expected[:, 0], rtol=3e-5)
    # Near ties fall otherwise in float64.
    assert same.mean() > 0.97
    np.testing.assert_allclose(least[same], expected[same, 1], rtol=2e-4)
    np.testing.assert_allclose(scale, expected[:, 0], rtol=0.15 if bits == 4 else 0.01)


def test_the_search_is_finer_than_the_range_it_began_with() -> None:
    weight = np.random.default_rng(8).normal(size=(200, 32)).astype(np.float32)
    scale, least = search(weight, 4)
    span = weight.max(axis=1) - weight.min(axis=1)
    assert 0.8 < float(np.median(scale / (span / 15))) < 1.0
    assert (least < 0).all()


def test_many_groups_are_searched_as_each_alone() -> None:
    weight = np.random.default_rng(9).normal(size=(3000, 32)).astype(np.float32)
    together = search(weight, 4)
    alone = [search(weight[row : row + 1], 4) for row in (0, 1023, 1024, 2999)]
    for row, (scale, least) in zip((0, 1023, 1024, 2999), alone, strict=True):
        assert (together[0][row], together[1][row]) == (scale[0], least[0])


@pytest.mark.parametrize("value", [0.0, 0.25, -0.25])
def test_equal_weights_get_the_scale_1(value: float) -> None:
    scale, least = search(np.full((1, 32), value, np.float32), 4)
    assert (scale[0], least[0]) == (1.0, np.float32(value))
