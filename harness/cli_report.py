"""`phi3-conformance report`: a run record as a page, as Markdown for a pull request, as JUnit XML."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import click

from harness.errors import UsageError
from harness.record import RunRecord, read_record

_FILE = click.Path(path_type=Path, dir_okay=False, allow_dash=True)


@click.command()
@click.argument("record", type=click.Path(path_type=Path))
@click.option("--html", type=_FILE, default=None, help="The page, in one file. Default: beside the record.")
@click.option("--markdown", type=_FILE, default=None, help="Markdown for a pull request; - for the standard output.")
@click.option("--junit", type=_FILE, default=None, help="JUnit XML, with the figures as properties.")
def report(record: Path, html: Path | None, markdown: Path | None, junit: Path | None) -> None:
    """Make a report of the run that RECORD holds: a page, unless only others are asked for."""
    found = read_record(record)
    if html is None and markdown is None and junit is None:
        html = record.with_suffix(".html")
    for path, make in ((html, _html), (markdown, _markdown), (junit, _junit)):
        if path is not None:
            write(path, make(found))


# matplotlib takes a second to import, and the other commands have no use for it.
def _html(record: RunRecord) -> str:
    from harness.report.html import to_html

    return to_html(record)


def _markdown(record: RunRecord) -> str:
    from harness.report.markdown import to_markdown

    return to_markdown(record)


def _junit(record: RunRecord) -> str:
    from harness.report.junit import to_junit

    return to_junit(record)


def write(path: Path, text: str) -> None:
    """Write a report beside its place and move it there, or to the standard output for `-`. Raises UsageError."""
    if str(path) == "-":
        click.echo(text, nl=False)
        return
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise UsageError(f"the report {path} cannot be written: {error}", "name another file") from None
    click.echo(f"{path}: {len(text.encode()) / 1e6:.2f} MB", err=True)
