"""Files that somebody else made: read with a bound, decoded without surprises, and harmless when printed.

Records and goldens are passed on, so whoever reads one did not choose what is in it. All functions raise ValueError
(or OSError) in the end; whoever calls says which file it was.
"""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any

import msgspec

MAX_BYTES = 128 << 20
# An empty list costs 20 times the memory of the two characters it is written with; a list of numbers hardly 5 times.
_MAX_CONTAINERS = 6_000_000
# All that moves a cursor, colours, rings or reverses the direction of text; newline and tab do not.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SEPARATORS = re.compile(r"[/\\\r\n\t]|\.\.")
_LONGEST_NAME = 200


def read_bounded(path: Path, limit: int = MAX_BYTES) -> bytes:
    """The bytes of a regular file of at most `limit` bytes; the size is looked at before anything is read."""
    with path.open("rb") as file:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("it is no regular file")
        if found.st_size > limit:
            raise ValueError(f"it has {found.st_size / 1e6:.0f} MB; at most {limit / 1e6:.0f} MB are read")
        content = file.read(limit + 1)
    if len(content) > limit:  # it has grown
        raise ValueError(f"it has more than {limit / 1e6:.0f} MB")
    return content


def decode(content: bytes) -> Any:
    """JSON as builtins. Refuses what is deeply nested, NaN and Infinity, numbers out of range, and too many lists."""
    containers = content.count(b"[") + content.count(b"{")
    if containers > _MAX_CONTAINERS:
        raise ValueError(f"it has {containers} lists and objects; at most {_MAX_CONTAINERS} are read")
    try:
        return msgspec.json.decode(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def printable(text: str) -> str:
    r"""A text with every control character but newline and tab shown as its escape, such as `\x1b`."""
    return _CONTROL.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def all_printable(plain: Any) -> Any:
    """Builtins with `printable` done to every text in them, keys included."""
    if isinstance(plain, str):
        return printable(plain)
    if isinstance(plain, dict):
        return {printable(str(key)): all_printable(value) for key, value in plain.items()}
    if isinstance(plain, list):
        return plain if plain and isinstance(plain[0], (int, float)) else [all_printable(value) for value in plain]
    return plain


def is_plain_name(text: str) -> bool:
    """Whether a text can name a thing and no path: no separators, no `..`, no control characters, not too long."""
    return 0 < len(text) <= _LONGEST_NAME and printable(text) == text and _SEPARATORS.search(text) is None
