"""The commands `phi3-conformance cache show | clean`."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import click
import msgspec
from rich.console import Console
from rich.table import Table

from harness.cache import cache_root
from harness.cache_contents import KINDS, Entry, delete, entries, unused
from harness.report.figures import count, size
from harness.report.terminal import render

_UNUSED = 30


@click.group()
def cache() -> None:
    """Show and clean the cache: all in it can be made again."""


@cache.command()
@click.option("--json", "as_json", is_flag=True, help="Print every entry, as JSON.")
def show(as_json: bool) -> None:
    """Print what lies in the cache folder, how large it is, and when it was last used."""
    root = cache_root()
    found = entries(root)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode([_builtins(entry, root) for entry in found]), indent=1))
        return
    click.echo(f"{root} (PHI3_CONFORMANCE_CACHE moves it): {_size(found)}")
    if found:
        click.echo(render(_table(found), Console().width, sys.stdout.encoding or "utf-8"))


@cache.command()
@click.argument("kinds", nargs=-1, type=click.Choice(list(KINDS)), metavar="[KIND]...")
@click.option("--unused", "days", type=click.IntRange(min=0), default=_UNUSED, show_default=True, metavar="DAYS",
              help="Delete what has not been used for so many days; 0: all, while nothing runs.")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
def clean(kinds: tuple[str, ...], days: int, dry_run: bool) -> None:
    """Delete what has not been used for a while: of each KIND, or of all.

    KINDS are artifacts, compiled, references, parts and depot: see show. Goldens and records do not lie there and are
    never deleted. Ends with status 1 where something could not be deleted.
    """
    root = cache_root()
    chosen = unused(entries(root), kinds or tuple(KINDS), days)
    kept = []
    for entry in chosen:
        why = "" if dry_run else delete(entry)
        if why:
            kept.append(entry)
            click.echo(f"not deleted: {_name(entry, root)}: {why}", err=True)
        else:
            click.echo(f"{'would be deleted' if dry_run else 'deleted'}: {_name(entry, root)} ({_bytes([entry])})")
    gone = [entry for entry in chosen if entry not in kept]
    click.echo(f"{'would free' if dry_run else 'freed'} {_size(gone)} of {root}")
    sys.exit(1 if kept else 0)


def _size(found: list[Entry]) -> str:
    return f"{_bytes(found)}, {count(len(found), 'entry', 'entries')}"


def _bytes(found: list[Entry]) -> str:
    total = sum(entry.bytes for entry in found)
    return size(total) if total else "0 B"


def _name(entry: Entry, root: Path) -> str:
    return entry.path.relative_to(root).as_posix()


def _builtins(entry: Entry, root: Path) -> dict[str, object]:
    return {"kind": entry.kind, "path": _name(entry, root), "bytes": entry.bytes, "used": _date(entry.used)}


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().date().isoformat()


def _table(found: list[Entry]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (("kind", "left"), ("entries", "right"), ("size", "right"), ("last used", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    table.add_column("what it is")
    for kind, said in KINDS.items():
        of_kind = [entry for entry in found if entry.kind == kind]
        if of_kind:
            used = _date(max(entry.used for entry in of_kind))
            table.add_row(kind, str(len(of_kind)), _bytes(of_kind), used, said)
    return table
