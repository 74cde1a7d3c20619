"""`phi3-conformance coverage`: which suites run on which backends, and which tests catch the defects of the field."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.checkpoint import find_checkpoint
from harness.coverage import read_coverage
from harness.coverage_check import cells, check
from harness.golden import TREE
from harness.options import DEFAULT_CHECKPOINT
from harness.record import RunRecord, read_record
from harness.report.coverage import describe_coverage, markdown_coverage

COVERAGE = TREE / "conformance" / "coverage.toml"


@click.command()
@click.option("--record", type=click.Path(path_type=Path), default=None, metavar="FILE", help="Hold a run against it.")
@click.option("--markdown", is_flag=True, help="Print the page that is docs/coverage.md.")
def coverage(record: Path | None, markdown: bool) -> None:
    """Print suites by backend and capability, and defects of the field by the tests that catch them.

    With --record, what the run made of each, and every case that contradicts the table. Ends with status 0, 1 where a
    case does, 2 if a file cannot be read.
    """
    table = read_coverage(COVERAGE)
    ran = None if record is None else read_record(record)
    found = None if ran is None else cells(table, ran)
    show = markdown_coverage if markdown else describe_coverage
    click.echo(show(table, found), nl=not markdown)
    if ran is None:
        return
    wrong = check(table, ran, bundled=_is_bundled(ran))
    for one in wrong:
        click.echo(f"WRONG  {one.target} {one.case}: {one.sentence}", err=True)
    said = f"{len(wrong)} cases contradict the table" if wrong else "no case contradicts the table"
    click.echo(f"{len(ran.cases)} cases: {said}", err=True)
    sys.exit(1 if wrong else 0)


def _is_bundled(record: RunRecord) -> bool:
    """Whether a run was of the checkpoint that comes with the project, by its hashes."""
    bundled = find_checkpoint(str(DEFAULT_CHECKPOINT)).fingerprint()
    return record.checkpoint is not None and record.checkpoint.fingerprint == bundled
