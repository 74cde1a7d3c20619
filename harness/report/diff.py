"""A comparison of two runs on a terminal and in Markdown: the verdict first, then what differs, then the cases."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from harness.diff.runs import Demands, Diff, Verdict
from harness.report.diff_sections import Section, facts, headline, sections, tally

_COLOURS = {
    Verdict.REGRESSED: "bold red",
    Verdict.MISSING: "bold red",
    Verdict.DIFFERS: "bold yellow",
    Verdict.NOTHING_REGRESSED: "bold green",
}
# Records are written by others: what would move a terminal's cursor or end a table is not printed.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

# What Markdown takes for more than itself; underscores are only so at the edge of a word.
_MARKUP = re.compile(r"[\\`*<|\[\]~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def print_diff(diff: Diff, demands: Demands, console: Console, *, everything: bool = False) -> None:
    """Print the comparison."""
    verdict = diff.verdict(demands)
    line = Text(verdict.value, style=_COLOURS[verdict])
    console.print(line.append(f": {headline(diff, demands)}", style="default"))
    console.print(Text(f"  before  {_plain(facts(diff.before))}"))
    console.print(Text(f"  after   {_plain(facts(diff.after))}"))
    console.print(Text(f"  cases   {tally(diff)}"))
    for warning in diff.warnings:
        console.print(Text(f"  note    {_plain(warning)}", style="yellow"))
    for section in sections(diff, demands, everything=everything):
        _print_section(section, console)


def _print_section(section: Section, console: Console) -> None:
    if not section.title:
        return
    console.print()
    console.print(Text(_plain(section.title), style="bold"))
    if section.note:
        console.print(Text(f"  {_plain(section.note)}"))
    if section.rows:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for name in section.header:
            table.add_column(name, overflow="fold")
        for row in section.rows:
            table.add_row(*(Text(_plain(cell)) for cell in row))
        console.print(Padding(table, (0, 0, 0, 2), expand=False))
    if section.left:
        console.print(Text(f"  and {section.left} more (--all)"))


def as_markdown(diff: Diff, demands: Demands, *, everything: bool = False) -> str:
    """The comparison for a pull request."""
    return "\n".join(_markdown(diff, demands, everything)) + "\n"


def _markdown(diff: Diff, demands: Demands, everything: bool) -> Iterator[str]:
    yield f"## {diff.verdict(demands).value}: {_escaped(headline(diff, demands))}\n"
    yield f"- before: {_escaped(facts(diff.before))}"
    yield f"- after: {_escaped(facts(diff.after))}"
    yield f"- cases: {_escaped(tally(diff))}"
    for warning in diff.warnings:
        yield f"- note: {_escaped(warning)}"
    for section in sections(diff, demands, everything=everything):
        if section.title:
            yield f"\n### {_escaped(section.title)}\n"
            yield from [_escaped(section.note), ""] if section.note else []
            if section.rows:
                yield f"| {' | '.join(section.header)} |"
                yield f"|{' --- |' * len(section.header)}"
                yield from (f"| {' | '.join(map(_escaped, row))} |" for row in section.rows)
            if section.left:
                yield f"\nand {section.left} more"


def as_json(diff: Diff, demands: Demands) -> str:
    """The comparison with raw numbers, those that are not finite as null; verdict and exit status first."""
    plain: dict[str, Any] = {"schema": diff.schema, "verdict": diff.verdict(demands).value}
    plain |= {"exit_status": diff.exit_status(demands), "sentence": diff.surroundings.sentence, "demands": demands}
    plain |= msgspec.structs.asdict(diff)
    plain["speed"] = [
        {**msgspec.structs.asdict(change), "ratio": change.ratio, "beyond": change.beyond} for change in diff.speed
    ]
    return msgspec.json.format(msgspec.json.encode(plain), indent=1).decode() + "\n"


def _plain(text: str) -> str:
    return _CONTROL.sub(" ", text)


def _escaped(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    return _MARKUP.sub(r"\\\g<0>", _plain(text))
