"""Figures as people read them: numbers with their units, and never more digits than they are worth."""

from __future__ import annotations

import math

NOT_FINITE = "not finite"


def number(value: float, digits: int = 2) -> str:
    """`0.0123`, `119`, `2.4e-6`: significant digits, the whole part whole, an exponent far from the point."""
    if not math.isfinite(value):
        return NOT_FINITE
    if value == 0:
        return "0"
    if 1 <= abs(value) < 10**5:
        digits = max(digits, len(str(int(abs(value)))))
    rounded = float(f"{value:.{digits - 1}e}")
    if 1e-3 <= abs(rounded) < 10**5:
        exponent = math.floor(math.log10(abs(rounded)))
        return f"{rounded:.{max(0, digits - 1 - exponent)}f}"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}e{int(power)}"


def ratio(value: float, digits: int = 2) -> str:
    """`2.1 ×`: how many times something."""
    if not math.isfinite(value):
        return NOT_FINITE
    return f"{number(value, digits)} ×"


def share(value: float) -> str:
    """A share of 1 in per cent: `98.96 %`, and `100 %` where it is all."""
    if not math.isfinite(value):
        return NOT_FINITE
    return "100 %" if value == 1 else f"{math.floor(value * 10_000) / 100:.2f} %"


def duration(seconds: float) -> str:
    """`7 min 57 s`, `0.32 s`, `1 h 04 min`."""
    if not math.isfinite(seconds) or seconds < 0:
        return "unknown"
    if seconds < 10:
        return f"{number(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def milliseconds(value: float) -> str:
    """`12.3 ms`, or `2.41 s` from a second on."""
    if not math.isfinite(value):
        return NOT_FINITE
    return f"{number(value / 1000, 3)} s" if value >= 1000 else f"{number(value, 3)} ms"


def size(value: float) -> str:
    """Bytes in decimal units: `11.7 MB`."""
    if not math.isfinite(value) or value <= 0:
        return "unknown"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{number(value, 3)} {unit}"


def count(number_of: int, what: str, several: str = "") -> str:
    """`1 case`, `2 cases`, `2,225 cases`."""
    return f"{number_of:,} {what if number_of == 1 else several or what + 's'}"


def enumerate_names(names: list[str], most: int = 4) -> str:
    """`a, b and c`, or `a, b, c and 12 more`."""
    shown = names if len(names) <= most else [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def shown(value: float) -> str:
    """A number, or a dash where there is none."""
    return "–" if math.isnan(value) else number(value)
