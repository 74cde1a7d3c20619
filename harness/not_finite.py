"""NaN and infinity in a record: JSON has neither, so such a number is written as null and read as NaN."""

from __future__ import annotations

import math
from typing import Any

_BY_POSITION = ("kl", "quantisation", "implementation", "yardstick")


def with_nan(plain: Any) -> Any:
    """A plain record whose numbers that are null are NaN; changed in place. What else is null stays."""
    for case in plain.get("cases") or ():
        for name in ("numbers", "limits"):
            case[name] = _restored(case[name])
        detail = case.get("detail") or {}
        detail.update({name: _restored(detail[name]) for name in _BY_POSITION if name in detail})
    for session in plain.get("sessions") or ():
        found = session.get("localisation") or {}
        for holder in (session, found):
            if "distances" in holder:
                holder["distances"] = _restored(holder["distances"])
        if "undisturbed" in found:
            found["sublayers"] = [_restored(sublayer, but="first") for sublayer in found["sublayers"]]
            found["undisturbed"] = _restored([found["undisturbed"]])[0]
        session["repeats"] = [_restored(repeat) for repeat in session.get("repeats") or ()]
    return plain


def _restored(numbers: Any, but: str = "") -> Any:
    if isinstance(numbers, dict):
        return {name: math.nan if value is None and name != but else value for name, value in numbers.items()}
    return [math.nan if value is None else value for value in numbers]
