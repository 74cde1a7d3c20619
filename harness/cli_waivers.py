"""`phi3-conformance waivers check [RECORD...]`: is every known defect still known, owned and needed?"""

from __future__ import annotations

import contextlib
import datetime
import io
import sys
from pathlib import Path

import click
import msgspec
import pytest

from harness.errors import PolicyError
from harness.fixtures import CaseId, case_id
from harness.golden import TREE
from harness.options import WAIVERS
from harness.prompts import read_suite
from harness.record import read_record
from harness.waiver_check import check_declared, check_records
from harness.waivers import read_waivers


@click.group()
def waivers() -> None:
    """Known defects of runtimes."""


@waivers.command()
@click.argument("records", nargs=-1, type=click.Path(path_type=Path))
@click.option("--waivers", "file", type=click.Path(path_type=Path), default=WAIVERS, show_default="the project's")
@click.option("--prompts", multiple=True, type=click.Path(path_type=Path), metavar="FILE", help="A suite of your own.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(records: tuple[Path, ...], file: Path, prompts: tuple[Path, ...], as_json: bool) -> None:
    """Check the waivers: valid, in date, and matching declared targets and cases; with RECORDs also whether needed.

    Ends with status 0 if nothing is wrong, 1 if something is, 2 if the file or a record cannot be read.
    """
    known = read_waivers(file)
    found = check_declared(known, _declared_cases(prompts), datetime.date.today())
    if records:
        found += check_records(known, [(path.name, read_record(path)) for path in records])
    order = [waiver.id for waiver in known]
    found.sort(key=lambda one: (not one.wrong, order.index(one.waiver)))
    wrong = sum(one.wrong for one in found)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
    else:
        for one in found:
            click.echo(f"{'WRONG' if one.wrong else 'note'}  {one.waiver}: {one.sentence}")
        looked = f" and {len(records)} record{'s' if len(records) > 1 else ''}" if records else ""
        click.echo(f"{len(known)} waivers{looked}: {f'{wrong} things are wrong' if wrong else 'nothing is wrong'}")
    sys.exit(1 if wrong else 0)


class _Cases:
    """A plugin that keeps the cases of what pytest collects."""

    def __init__(self) -> None:
        self.found: list[CaseId] = []

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Keep them."""
        self.found = [case for case in map(case_id, session.items) if case is not None]


def _declared_cases(prompts: tuple[Path, ...]) -> list[CaseId]:
    """Every case of the project's suites on every declared target, by pytest's own collection: nothing is run.

    Raises PromptError where a suite cannot be read, PolicyError where cases cannot be collected.
    """
    own = [f"--prompts={read_suite(path).path}" for path in prompts]
    cases, said = _Cases(), io.StringIO()
    given = ["--collect-only", "-q", "-c", str(TREE / "pyproject.toml"), "-p", "no:cacheprovider", "--no-header"]
    given.append("--minutes=1")  # soaks are cases, too
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        status = pytest.main([*given, *own, str(TREE / "conformance")], plugins=[cases])
    if status != pytest.ExitCode.OK or not cases.found:
        raise PolicyError(f"the suites cannot be collected:\n{said.getvalue().strip()[-2000:]}", "run: pytest --co -q")
    return cases.found
