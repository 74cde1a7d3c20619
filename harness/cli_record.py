"""The commands `phi3-conformance record show | times | schema`."""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from harness.errors import RecordError
from harness.record import RunRecord, read_record
from harness.record_schema import schema_text
from harness.report.terminal import render, summarise
from harness.report.times import suite_times, times_table


@click.group()
def record() -> None:
    """Show run records, and what is in them."""


@record.command()
@click.argument("file", type=click.Path(path_type=Path))
def show(file: Path) -> None:
    """Print the summary of the run record FILE, or of the journal of a run that was killed."""
    found = read_record(file)
    try:
        text = summarise(found, Console().width, sys.stdout.encoding or "utf-8")
    except (LookupError, ArithmeticError, ValueError) as error:
        raise RecordError(f"{file} lacks numbers that its cases must have: {error}", "record the run again") from None
    for line in _head(found):
        click.echo(line)
    click.echo(text)


def _head(found: RunRecord) -> list[str]:
    machine, checkpoint = found.machine, found.checkpoint
    ended = f"ended with status {found.exit_status}" if found.exit_status >= 0 else "was killed"
    if not found.complete:
        ended += "; INCOMPLETE: it was cut short"
    lines = [
        f"run         {found.started} to {found.finished}, {ended}",
        f"harness     {found.harness}, record of schema {found.schema}",
        f"checkpoint  {f'{checkpoint.name} ({checkpoint.fingerprint.key})' if checkpoint else 'none'}",
        f"machine     {machine.processor}, {machine.system} {machine.release} {machine.architecture}",
    ]
    if found.environment:
        lines.append(f"set         {', '.join(f'{name}={value}' for name, value in found.environment.items())}")
    return [*lines, ""]


@record.command()
@click.argument("file", type=click.Path(path_type=Path))
def times(file: Path) -> None:
    """Print where the time of the run record FILE went, by suite."""
    found = suite_times(read_record(file))
    if not found:
        raise RecordError(f"in {file} nothing was run", "name the record of a run that judged something")
    click.echo(render(times_table(found), Console().width, sys.stdout.encoding or "utf-8"))


@record.command()
def schema() -> None:
    """Print the JSON Schema of run records."""
    click.echo(schema_text(), nl=False)
