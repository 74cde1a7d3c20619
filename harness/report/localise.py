"""Where a target breaks, as text and as data for a plot of the error by layer."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from rich.table import Table

from harness.localise import Localisation, Sublayer
from harness.report.terminal import render

_PHASES = ("prefill", "decode")
# Beyond this, relative, the watched session is not the one that is judged: half precision differs by less.
_DISTURBED = 0.05


def describe_localisation(found: Localisation, width: int, encoding: str) -> str:
    """The finding as text that `encoding` can hold: a line for every place, and where the first bad one is."""
    lines = [
        f"{found.target}, prompt {found.prompt!r}: each sublayer on the device's own input, against the reference on",
        f"the artifact's exact weights, computed in {found.arithmetic}",
        "",
        render(_table(found), width, encoding),
        "typical and worst: the median and the largest error of a position, in yardsticks. error: the median, relative",
        "to the residual stream. drift: the mean against a reference that goes its own way, with all errors before it.",
        f"allowed: typical {found.typical_limit:g} x, worst {found.worst_limit:g} x the yardstick.",
        *_disturbance(found),
        "",
        found.sentence,
    ]
    return "\n".join(lines).encode(encoding, errors="replace").decode(encoding)


def as_json(found: Localisation) -> str:
    """The finding as JSON: `sentence`, and for every place and phase its figures, those that are not finite as null."""
    plain: dict[str, Any] = msgspec.to_builtins(found)
    plain["sentence"] = found.sentence
    for one, fields in zip(found.sublayers, plain["sublayers"], strict=True):
        fields.update(ratio_typical=one.ratio_typical, ratio_worst=one.ratio_worst)
        fields.update({key: None for key, value in fields.items() if _is_wild(value)})
    plain["undisturbed"] = None if _is_wild(found.undisturbed) else found.undisturbed
    return msgspec.json.format(msgspec.json.encode(plain), indent=2).decode()


def _is_wild(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _disturbance(found: Localisation) -> list[str]:
    if math.isnan(found.undisturbed) or found.undisturbed <= _DISTURBED:
        return []
    return [
        f"When nobody watches, the logits lie {found.undisturbed:.2g} of their RMS away: what breaks there may be",
        "undone by watching, such as a fusion of operators.",
    ]


def _table(found: Localisation) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("place", no_wrap=True)
    present = [phase for phase in _PHASES if any(one.phase == phase for one in found.sublayers)]
    for phase in present:
        for name in (f"{phase} error", "typical", "worst", "at", "drift"):
            table.add_column(name, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    places: dict[str, dict[str, Sublayer]] = {}
    for one in found.sublayers:
        places.setdefault(one.place, {})[one.phase] = one
    first = found.bad[0].place if found.bad else ""
    for place, phases in places.items():
        cells = [cell for phase in present for cell in _cells(phases.get(phase))]
        bad = any(one.first is not None for one in phases.values())
        table.add_row(place, *cells, "FIRST BAD" if place == first else "bad" if bad else "")
    return table


def _cells(one: Sublayer | None) -> tuple[str, ...]:
    if one is None:
        return ("-",) * 5
    return (
        f"{one.typical:.1e}",
        f"{one.ratio_typical:.2g} x",
        f"{one.ratio_worst:.2g} x",
        str(one.position),
        f"{one.drift:.1e}",
    )
