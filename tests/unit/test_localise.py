"""Which sublayer is named as the first bad one, from errors made up for it, and how it is reported."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from harness.errors import Unsupported
from harness.localise import Examined, Localisation, judge
from harness.report.localise import as_json, describe_localisation
from harness.states import LOGITS, gather, places
from harness.tracing import first_bad

PLACES = places(3)
PREFILL, LENGTH = 12, 24
HONEST = 1e-6


def examined(**changes: Any) -> Examined:
    """Twelve rows fed at once and twelve one by one, every error the yardstick's, and what a test changes."""
    rows = {place: np.full(LENGTH, HONEST) for place in PLACES}
    made = Examined(
        arithmetic="fp32 operators",
        distances={"fp32 operators": 1e-6},
        prefill=PREFILL,
        own={place: errors.copy() for place, errors in rows.items()},
        yardsticks={name: {place: errors.copy() for place, errors in rows.items()} for name in ("split", "jitter")},
        tipped={},
        seldom={},
        drift=rows,
    )
    return msgspec.structs.replace(made, **changes)


def localised(found: Examined) -> Localisation:
    return Localisation("planted:cpu:fp32", "greeting", found.arithmetic, found.distances, judge(found), 0.0)


def test_places_are_in_the_order_of_computing() -> None:
    assert places(1) == [
        "model.embed_tokens",
        "model.layers.0.self_attn",
        "model.layers.0.mlp",
        "model.norm",
        "lm_head",
    ]


def test_nothing_honest_is_bad() -> None:
    found = localised(examined())
    assert found.sentence == "first bad: none on prompt 'greeting'"
    assert [(one.place, one.phase) for one in found.sublayers] == [
        (p, f) for p in PLACES for f in ("prefill", "decode")
    ]
    assert all(one.ratio_typical == one.ratio_worst == 1.0 for one in found.sublayers)


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_is_off_throughout_is_named_from_prefill_on(place: str) -> None:
    found = examined()
    found.own[place][:] = 7 * HONEST
    assert localised(found).sentence == f"first bad: {place}, from prefill on, position 0"


def test_the_first_in_the_order_of_computing_is_named_and_not_the_worst() -> None:
    found = examined()
    found.own["model.layers.2.mlp"][:] = 1.0
    found.own["model.layers.1.self_attn"][:] = 1e-4
    assert localised(found).sentence.startswith("first bad: model.layers.1.self_attn")
    assert [one.place for one in localised(found).bad[::2]] == ["model.layers.1.self_attn", "model.layers.2.mlp"]


def test_a_fault_that_begins_at_a_position_of_decode_is_named_there() -> None:
    found = examined()
    found.own["model.layers.1.self_attn"][17:] = 1e-2
    assert localised(found).sentence == "first bad: model.layers.1.self_attn, in decode only, position 17"


def test_one_position_of_the_prompt_is_enough() -> None:
    found = examined()
    found.own["model.layers.0.mlp"][5] = 11 * HONEST
    assert localised(found).sentence == "first bad: model.layers.0.mlp, in prefill only, position 5"
    found.own["model.layers.0.mlp"][5] = 9 * HONEST
    assert localised(found).bad == ()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_is_bad_where_it_first_is(value: float) -> None:
    found = examined()
    for place in PLACES[2:]:
        found.own[place][3:] = value
        found.drift[place][3:] = value
        for variant in found.yardsticks.values():
            variant[place][3:] = value
    assert localised(found).sentence == "first bad: model.layers.0.mlp, from prefill on, position 3"
    data = json.loads(as_json(localised(found)))
    assert data["sublayers"][4]["worst"] is None


def test_a_value_that_tips_is_no_fault_where_rounding_is_coarse() -> None:
    tipped = {place: np.full(LENGTH, 1e-3) for place in PLACES}
    found = examined(tipped=tipped)
    found.own["model.layers.1.mlp"][[4, 20]] = 5e-3
    assert localised(found).bad == ()
    assert localised(msgspec.structs.replace(found, tipped={})).bad


def test_coarse_rounding_hides_no_fault_of_most_rows() -> None:
    found = examined(tipped={place: np.full(LENGTH, 1e-3) for place in PLACES})
    found.own["model.layers.1.mlp"][2:PREFILL] = 1e-4
    found.own["model.layers.1.mlp"][0] = 8e-6  # a value that tipped, and no part of the fault
    assert localised(found).sentence == "first bad: model.layers.1.mlp, in prefill only, position 2"


def test_a_value_that_tips_in_the_cache_lasts() -> None:
    coarse = {place: np.full(LENGTH, 1e-3) for place in PLACES}
    found = examined(tipped=coarse, seldom={place: np.full(LENGTH, 1e-4) for place in PLACES})
    found.own["model.layers.1.self_attn"][13:] = 5e-4
    assert localised(found).bad == ()
    found.own["model.layers.1.mlp"][13:] = 5e-4
    assert {one.place for one in localised(found).bad} == {"model.layers.1.mlp"}
    assert localised(msgspec.structs.replace(found, seldom={})).bad[0].place == "model.layers.1.self_attn"


def test_the_median_of_a_few_rows_is_not_held_against_them() -> None:
    rows = {place: np.full(4, HONEST) for place in PLACES}
    found = examined(own=rows, drift=rows, yardsticks={"split": rows}, prefill=0)
    found = msgspec.structs.replace(found, own={place: errors.copy() for place, errors in rows.items()})
    tipped = msgspec.structs.replace(found, tipped={place: np.full(4, 1e-3) for place in PLACES})
    tipped.own["model.layers.1.mlp"][:3] = 1e-3
    assert localised(tipped).bad == ()
    assert {one.phase for one in localised(tipped).sublayers} == {"decode"}


def test_a_layer_whose_own_yardstick_happens_to_be_small_is_held_against_the_others() -> None:
    found = examined()
    for variant in found.yardsticks.values():
        variant["model.layers.1.mlp"][:] = 1e-9
    assert localised(found).bad == ()


def test_the_text_has_a_line_for_every_place_and_fits_a_narrow_code_page() -> None:
    found = examined()
    found.own["model.layers.1.self_attn"][:] = 1e-2
    text = describe_localisation(localised(found), 80, "cp1252")
    lines = {line.split()[0]: line for line in text.splitlines() if line.split()[:1] and line.split()[0] in PLACES}
    assert list(lines) == PLACES
    assert lines["model.layers.1.self_attn"].endswith("FIRST BAD")
    assert text.endswith("first bad: model.layers.1.self_attn, from prefill on, position 0")
    assert "When nobody watches" not in text


def test_a_session_that_computes_otherwise_when_watched_is_pointed_out() -> None:
    found = msgspec.structs.replace(localised(examined()), undisturbed=0.4)
    assert "When nobody watches, the logits lie 0.4 of their RMS away" in describe_localisation(found, 80, "utf-8")


class Watched:
    """A session that gives its tokens as states."""

    def __init__(self) -> None:
        self.fed: list[list[int]] = []

    def reset(self) -> None:
        self.fed = []

    def append(self, tokens: Any) -> Any:
        self.fed.append([int(token) for token in tokens])
        return np.zeros((tokens.size, 3), dtype=np.float32)


def test_states_are_gathered_from_a_prompt_at_once_and_the_rest_one_by_one() -> None:
    session: Any = Watched()
    calls: list[int] = []

    def read() -> dict[str, Any]:
        calls.append(len(session.fed[-1]))
        return {"model.norm": np.array([[token] for token in session.fed[-1]], dtype=np.float32)}

    found = gather(session, [4, 5, 6, 7, 8], 3, read)
    assert calls == [3, 1, 1]
    assert found["model.norm"][:, 0].tolist() == [4, 5, 6, 7, 8]
    assert found[LOGITS].shape == (5, 3)


def test_a_line_for_a_failure_says_why_there_is_none() -> None:
    class Refusing:
        target = "planted:cpu:fp32"

        def references(self) -> None:
            raise Unsupported("its weights cannot be read\nmore")

    refusing: Any = Refusing()
    assert first_bad(refusing, refusing) == "first bad: not localised, its weights cannot be read"
