"""`phi3-conformance signoff run | pack | verify`: may this quantised build ship?"""

from __future__ import annotations

import datetime
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePath

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness import __version__
from harness.devices import parse_interpreters
from harness.errors import PackageError, UsageError
from harness.options import DEFAULT_CHECKPOINT, POLICY, WAIVERS
from harness.signoff.candidates import read_plan, with_ready_made
from harness.signoff.package import read_files, write_zip
from harness.signoff.report import PAGE
from harness.signoff.session import Request, sign_off
from harness.signoff.suite import CANDIDATES, CORE, SUITE
from harness.signoff.verify import Verified, rendered, verify

_FILE = click.Path(path_type=Path)


@click.group()
def signoff() -> None:
    """Sign off quantised builds: judge candidates of a checkpoint side by side, into a package that others verify."""


@signoff.command()
@click.option(
    "--candidates", type=_FILE, default=CANDIDATES, show_default="the examples", help="The TOML file of them."
)
@click.option("--candidate", "only", multiple=True, metavar="NAME", help="Of the file, this one; repeatable.")
@click.option("--ready-made", multiple=True, metavar="NAME=TARGET=FOLDER", help="One more: an exported folder.")
@click.option("--out", type=_FILE, required=True, metavar="FOLDER", help="Where the package is written.")
@click.option(
    "--checkpoint", default=str(DEFAULT_CHECKPOINT), show_default="the bundled one", help="Folder or hub name."
)
@click.option("--prompts", type=_FILE, default=SUITE, show_default="the project's", help="The suite that is scored.")
@click.option("--answers", type=_FILE, default=CORE, show_default="core", help="The suite that is answered.")
@click.option("--golden", type=_FILE, default=None, help="The folder that holds the checkpoint's goldens.")
@click.option("--policy", type=_FILE, default=POLICY, show_default="the project's", help="What is good enough.")
@click.option("--waivers", type=_FILE, default=WAIVERS, show_default="the project's", help="They excuse nothing here.")
@click.option("--items", type=click.IntRange(min=0), default=0, help="Ask so many only; below 100 nothing is decided.")
@click.option("--interpreter", multiple=True, metavar="BACKEND=PATH", help="The Python that has a backend's runtime.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
def run(
    candidates: Path,
    only: tuple[str, ...],
    ready_made: tuple[str, ...],
    out: Path,
    checkpoint: str,
    prompts: Path,
    answers: Path,
    golden: Path | None,
    policy: Path,
    waivers: Path,
    items: int,
    interpreter: tuple[str, ...],
    trust_remote_code: bool,
) -> None:
    """Measure every candidate, judge it by the policy, and write the package of the sign-off.

    Ends with status 0 if all that must pass do, 1 if one does not, 2 if the sign-off cannot be carried out.
    """
    plan = with_ready_made(read_plan(candidates), ready_made, only)
    request = Request(
        plan=msgspec.structs.replace(plan, items=items or plan.items),
        checkpoint=checkpoint,
        prompts=prompts,
        answers=answers,
        golden=golden,
        policy=policy,
        waivers=waivers,
        interpreters=parse_interpreters(list(interpreter)),
        trust_remote_code=trust_remote_code,
        command=("phi3-conformance", *map(_shown, sys.argv[1:])),
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        harness=__version__,
    )
    with _progress() as (announce, progress):
        found = sign_off(request, out, announce, progress)
    click.echo(found.report)
    click.echo(f"package {out}, {found.files} files, SHA-256 of its manifest: {found.identity}")
    sys.exit(0 if found.passed else 1)


def _shown(word: str) -> str:
    """A word of the command line as a package shows it: of an absolute path its last name."""
    head, equals, value = word.rpartition("=")
    return f"{head}{equals}{PurePath(value).name}" if PurePath(value).is_absolute() else word


@signoff.command()
@click.argument("package", type=_FILE)
@click.option("--out", type=_FILE, required=True, metavar="FILE.zip", help="Where it is written.")
def pack(package: Path, out: Path) -> None:
    """Pack the folder PACKAGE of a sign-off into one zip file, once it has been verified."""
    found = verify(package)
    if found.problems:
        raise PackageError(f"{package} is not whole: {found.problems[0]}", "run the sign-off again")
    write_zip(out, read_files(package))
    click.echo(f"{out}: {out.stat().st_size / 1e6:.1f} MB")


@signoff.command("verify")
@click.argument("package", type=_FILE)
@click.option("--manifest-sha256", default="", metavar="HEX", help="Refuse a package with another manifest.")
@click.option("--html", type=_FILE, default=None, metavar="FILE", help="Draw its page anew, of a whole package only.")
def verify_package(package: Path, manifest_sha256: str, html: Path | None) -> None:
    """Verify PACKAGE, a folder or a zip file: nothing changed, missing or added, and its numbers give its verdicts.

    Ends with status 0 if it is whole and signed off, 1 if it is whole and not signed off, 2 if it is refused.
    """
    found = verify(package)
    if found.package is not None and manifest_sha256 and found.package.identity != manifest_sha256.strip().lower():
        other = f"the SHA-256 of its manifest is {found.package.identity}, not {manifest_sha256}"
        found = Verified(found.package, (*found.problems, other), found.notes)
    if found.problems or found.package is None:
        lines = "\n".join(f"  {problem}" for problem in found.problems)
        click.echo(f"REFUSED: {package}\n{lines}", err=True)
        sys.exit(2)
    conclusion = found.package.conclusion
    click.echo(f"{package}: whole, nothing changed, missing or added; its numbers give its verdicts")
    click.echo(f"SHA-256 of its manifest: {found.package.identity} (no signature: compare it with the sender's)")
    for note in found.notes:
        click.echo(f"note: {note}")
    for candidate in conclusion.candidates:
        click.echo(f"  {candidate.outcome:8} {candidate.name}")
    click.echo(conclusion.sentence)
    if html is not None:
        _write(html, rendered(PAGE, found.package))
    sys.exit(0 if conclusion.passed else 1)


def _write(path: Path, page: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(page)
    except OSError as error:
        raise UsageError(f"the page {path} cannot be written: {error}", "name another file") from None


@contextmanager
def _progress() -> Iterator[tuple[Callable[[str], None], Callable[[str, int, int], None]]]:
    """Announcements, and a progress bar below them on a terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda line: click.echo(line, err=True), lambda *_: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield (
            lambda line: console.print(line, markup=False, highlight=False),
            lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
        )
