"""The journal of a run: what is finished is on disk at once, so that a run that is killed leaves what it saw.

Lines of JSON beside the record, `<record>.journal`. Each has the time `at` and one other key that says what it is:
`begin` (the record without its parts), `case`, `session`, `prompt`, `waiver`, `words`, `platform`. A case or session
that comes again takes the place of the earlier one. Values are builtins, of the form that the record has.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from harness.untrusted import decode

SUFFIX = ".journal"
NOT_ENDED = -1
"""The exit status of a run that did not live to have one."""
# By which a part of a record is known to be the one that came before.
_KEYS = {"case": ("id",), "session": ("target",), "prompt": ("suite", "id"), "waiver": ("id",)}


def journal_of(record: Path) -> Path:
    """Where the journal of a record is."""
    return record.with_name(record.name + SUFFIX)


class Journal:
    """Writes the journal of one run. Raises OSError where it cannot; the run goes on without."""

    def __init__(self, record: Path, begin: Mapping[str, Any]) -> None:
        self._path = journal_of(record)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file: BinaryIO = self._path.open("wb")
        self.write("begin", begin)

    def write(self, what: str, value: Any) -> None:
        """Append one thing; it outlives this process from here on."""
        now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
        self._file.write(msgspec.json.encode({"at": now, what: value}) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Leave the journal where it is."""
        self._file.close()

    def remove(self) -> None:
        """Delete the journal: the record is whole."""
        self._file.close()
        self._path.unlink(missing_ok=True)


def replay(content: bytes) -> Any:
    """The plain record of a run that did not end. Raises ValueError where more than the last line is broken."""
    record: dict[str, Any] | None = None
    parts: dict[str, dict[tuple[Any, ...], Any]] = {what: {} for what in _KEYS}
    for number, line in _lines(content):
        if record is None:
            if not isinstance(line.get("begin"), dict):
                raise ValueError("its first line is not the beginning of a journal")
            record = {**line["begin"], "complete": False, "exit_status": NOT_ENDED, "words": {}}
        try:
            _enter(record, parts, line)
        except (TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"line {number} is no line of a journal: {error}") from None
    if record is None:
        raise ValueError("it holds no whole line")
    return {**record, **{f"{what}s": list(found.values()) for what, found in parts.items()}}


def _lines(content: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every whole line with its number; the last one may have been cut short."""
    lines = content.split(b"\n")
    lines.pop()  # what is after the last line's end is a line that was not finished
    for number, line in enumerate(lines, start=1):
        try:
            plain = decode(line)
        except (ValueError, msgspec.DecodeError) as error:
            raise ValueError(f"line {number} is broken: {error}") from None
        if not isinstance(plain, dict):
            raise ValueError(f"line {number} is no object")  # noqa: TRY004 - of the file, and not of an argument
        yield number, plain


def _enter(record: dict[str, Any], parts: dict[str, dict[tuple[Any, ...], Any]], line: dict[str, Any]) -> None:
    record["finished"] = line["at"]
    for what, value in line.items():
        if what in _KEYS:
            parts[what][tuple(str(value[key]) for key in _KEYS[what])] = value
        elif what == "words":
            record["words"].update(value)
        elif what == "platform":
            record.update(hosts=value["hosts"], runtimes=value["runtimes"])
