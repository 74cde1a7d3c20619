"""`phi3-conformance diff A.json B.json`: is the second run as good as the first?"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from rich.console import Console

from harness.diff.runs import Demands, check_patterns, compare_runs, of_host, of_targets
from harness.errors import RecordError, UsageError
from harness.options import POLICY
from harness.policy import read_policy
from harness.record import RunRecord, read_record
from harness.report.diff import as_json, as_markdown, print_diff

_FILE = click.Path(path_type=Path)
# A table is folded rather than cut, but not where a log file has all the width there is.
_LOG_WIDTH = 180


@click.command()
@click.argument("before", type=_FILE)
@click.argument("after", type=_FILE)
@click.option("--repeat", multiple=True, type=_FILE, metavar="FILE", help="Another run of either machine: its noise.")
@click.option("--targets", multiple=True, metavar="GLOB", help="Compare these targets only.")
@click.option("--before-host", default="", metavar="NAME", help="Take a host's part of BEFORE, as if run there.")
@click.option("--after-host", default="", metavar="NAME", help="Take a host's part of AFTER, as if run there.")
@click.option("--allow-missing", is_flag=True, help="Cases that were not judged in AFTER do not fail.")
@click.option("--strict", is_flag=True, help="Whatever moved beyond the noise fails, and new failures.")
@click.option("--slower-max", type=float, default=None, metavar="FACTOR", help="Latencies that grew by more fail.")
@click.option("--policy", type=_FILE, default=POLICY, show_default="the project's", help="Where its default is from.")
@click.option("--all", "everything", is_flag=True, help="List every case, not the weightiest.")
@click.option(
    "--json", "json_file", type=_FILE, default=None, metavar="FILE", help="Write all of it, with raw numbers."
)
@click.option("--markdown", type=_FILE, default=None, metavar="FILE", help="Write it for a pull request.")
@click.option("--html", type=_FILE, default=None, metavar="FILE", help="Write it as a page of its own.")
def diff(
    before: Path,
    after: Path,
    repeat: tuple[Path, ...],
    targets: tuple[str, ...],
    before_host: str,
    after_host: str,
    allow_missing: bool,
    strict: bool,
    slower_max: float | None,
    policy: Path,
    everything: bool,
    json_file: Path | None,
    markdown: Path | None,
    html: Path | None,
) -> None:
    """Compare the run AFTER with the run BEFORE, case by case and number by number.

    Both are records of pytest (--record FILE). Ends with status 0 if nothing regressed, 1 if something did or is
    missing, 2 if the records cannot be compared.
    """
    demands = Demands(missing=not allow_missing, strict=strict, slower=_slower_max(slower_max, policy))
    records = _of(before, before_host), _of(after, after_host)
    repeats = [
        (path.name, of_targets(part, targets))
        for path in repeat
        for part in _parts(read_record(path), (before_host, after_host))
    ]
    check_patterns(targets, records)
    parts = [of_targets(record, targets) for record in records]
    names = _names(before, after, before_host, after_host)
    try:
        found = compare_runs(parts[0], parts[1], names, repeats)
    except ArithmeticError as error:  # of records that somebody made up
        raise RecordError(f"{names[0]} and {names[1]} hold impossible numbers: {error}", "record the runs") from None
    console = Console()
    if not console.is_terminal:
        console = Console(width=_LOG_WIDTH)
    print_diff(found, demands, console, everything=everything)
    if json_file is not None:
        _write(json_file, as_json(found, demands))
    if markdown is not None:
        _write(markdown, as_markdown(found, demands, everything=everything))
    if html is not None:
        from harness.report.diff_html import to_html  # plots take a second to import

        _write(html, to_html(found, demands, parts[0], parts[1]))
    sys.exit(found.exit_status(demands))


def _slower_max(given: float | None, policy: Path) -> float | None:
    """The factor of the option, or the policy's, None where neither has one. Raises UsageError."""
    limit = read_policy(policy).comparison.slower_max
    factor = limit.limit if given is None and limit is not None else given
    if factor is not None and not factor >= 1:
        raise UsageError(f"{factor:g} is no factor for a latency to grow by", "give 1 or more: --slower-max 1.2")
    return factor


def _of(path: Path, host: str) -> RunRecord:
    record = read_record(path)
    return of_host(record, host) if host else record


def _parts(record: RunRecord, hosts: tuple[str, str]) -> list[RunRecord]:
    """What a repeat holds of the hosts compared; all of it where it has none of them."""
    return [of_host(record, host) for host in dict.fromkeys(hosts) if host in record.hosts] or [record]


def _names(before: Path, after: Path, before_host: str, after_host: str) -> tuple[str, str]:
    """The files' names, with as many folders as tell them apart."""
    names = [path.name if before.name != after.name else str(path) for path in (before, after)]
    hosts = (before_host, after_host)
    named = [f"{name} ({host})" if host else name for name, host in zip(names, hosts, strict=True)]
    return named[0], named[1]


def _write(path: Path, text: str) -> None:
    """Write a file. Raises RecordError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise RecordError(f"{path} cannot be written: {error}", "name a file in a folder you may write to") from None
