from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from harness.longrope import Pass, crossed, fed_lengths, generation, nearer_form, recomputed, switch_of

FACTORS = {"short_factor": [1.0], "long_factor": [2.0]}


@pytest.mark.parametrize(
    ("config", "switch"),
    [
        ({}, None),
        ({"rope_scaling": None, "original_max_position_embeddings": 64}, None),
        ({"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 64}, 64),
        ({"rope_scaling": {"type": "su", **FACTORS}, "original_max_position_embeddings": 64}, 64),
        ({"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 32, **FACTORS}}, 32),
        ({"rope_parameters": {"rope_type": "default"}, "original_max_position_embeddings": 64}, None),
        ({"rope_scaling": {"type": "longrope", **FACTORS}}, None),
    ],
)
def test_the_switch_is_the_original_length_where_there_are_two_sets(config: dict[str, Any], switch: int | None) -> None:
    assert switch_of(config) == switch


@pytest.mark.parametrize(
    ("prompt", "total", "expected"), [(60, 64, 0), (60, 65, 64), (64, 65, 64), (65, 70, 0), (64, 64, 0)]
)
def test_a_text_crosses_where_it_passes_the_switch_after_its_prompt(prompt: int, total: int, expected: int) -> None:
    assert crossed(64, prompt, total) == expected
    assert crossed(None, prompt, total) == 0


def test_a_prompt_is_fed_at_its_whole_length_and_what_follows_one_by_one() -> None:
    assert fed_lengths(6, 4).tolist() == [4, 4, 4, 4, 5, 6]
    assert fed_lengths(3, 0).tolist() == [1, 2, 3]
    assert fed_lengths(3, 9).tolist() == [3, 3, 3]


def test_only_a_runtime_that_computes_anew_needs_a_second_pass() -> None:
    assert generation(60, 70, 64, recomputes=True) == (Pass(64, 60, 0), Pass(70, 65, 64))
    assert generation(60, 70, 64, recomputes=False) == (Pass(70, 60, 0),)
    assert generation(60, 64, 0, recomputes=True) == (Pass(64, 60, 0),)


def test_rows_of_a_text_computed_anew_are_cached_ones_and_then_fresh_ones() -> None:
    cached, fresh = np.zeros((5, 2)), np.ones((2, 2))
    assert recomputed(cached, fresh, 3)[:, 0].tolist() == [0, 0, 0, 1, 1]


def test_the_nearer_form_is_named_with_both_distances() -> None:
    generator = np.random.default_rng(5)
    cached, fresh = generator.normal(size=(6, 8)), generator.normal(size=(2, 8))
    assert "is nearer to the cache kept" in nearer_form(cached, fresh, cached + 1e-3 * generator.normal(size=(6, 8)))
    anew = nearer_form(cached, fresh, np.concatenate([cached[:4], fresh]))
    assert "0 from the one of a fresh pass: it is nearer to the whole text computed anew" in anew
    only_last = nearer_form(cached, fresh, cached[-1:])
    assert "lies 0 logits from the golden with its cache kept" in only_last
