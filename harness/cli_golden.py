"""The commands `phi3-conformance golden record | merge | verify | show`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness.checkpoint import Checkpoint, find_checkpoint
from harness.cli_options import CHECKPOINT, GOLDEN, SUITES, read_suites
from harness.devices import parse_interpreters
from harness.errors import UsageError
from harness.golden import Manifest, golden_roots, open_golden, user_root, verify_files
from harness.golden_compact import FORMS
from harness.golden_hosts import Asked, record_spread
from harness.golden_parts import Part, find_parts, merge_parts
from harness.lab import parse_hosts
from harness.machines import crew
from harness.options import parse_size
from harness.recording import Streaming, must_stream, record_golden

_FORM = click.option(
    "--form", type=click.Choice(FORMS), help="Keep every logit, or 2 KB a position. Default: by the vocabulary."
)


@click.group()
def golden() -> None:
    """Record, verify and show FP32 PyTorch goldens."""


@golden.command()
@CHECKPOINT
@SUITES
@GOLDEN
@click.option("--interpreter", multiple=True, metavar="pytorch=PATH", help="The Python that has torch.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
@click.option("--hidden/--no-hidden", default=True, help="Keep hidden states of a few prompts, or none.")
@click.option(
    "--memory", metavar="SIZE", default=None, help="What recording may take, e.g. 6GB. Default: what is free."
)
@click.option(
    "--streamed/--whole", default=None, help="Read the weights layer by layer, or hold them. Default: by the memory."
)
@click.option("--draft", type=click.Path(path_type=Path), help="Another build's golden, whose answers are tried first.")
@click.option("--drafting/--no-drafting", default=True, help="Try several tokens in a pass where weights are streamed.")
@_FORM
@click.option("--part", metavar="K/N", help="Only every N-th prompt, from the K-th: see merge.")
@click.option("--host", multiple=True, metavar="NAME=SPEC", help="A machine that takes its share; may be repeated.")
def record(
    checkpoint: str,
    prompts: tuple[str, ...],
    golden: Path | None,
    interpreter: tuple[str, ...],
    trust_remote_code: bool,
    hidden: bool,
    memory: str | None,
    streamed: bool | None,
    draft: Path | None,
    drafting: bool,
    form: str | None,
    part: str | None,
    host: tuple[str, ...],
) -> None:
    """Record the golden of a checkpoint on one or more prompt suites.

    A model that does not fit into memory is read from disk layer by layer, over and over. A recording that is stopped
    goes on from its last pass when it is started again. Machines may share the work: each records a part, by itself
    with --host, by hand with --part.
    """
    found = find_checkpoint(checkpoint)
    drafts = _drafts(draft, found) if draft else None
    share, hosts, interpreters = (
        Part.parse(part) if part else None,
        parse_hosts(host),
        parse_interpreters([*interpreter]),
    )
    if share and hosts:
        raise UsageError("--part and --host do not go together", "leave --part out: hosts are given theirs")
    root = golden or user_root(found, found.fingerprint())
    how: dict[str, Any] = {"trust_remote_code": trust_remote_code, "hidden": hidden, "form": form}
    most = parse_size(memory) if memory else None
    there = [f"--memory={memory}"] if memory else []
    there += ["--drafting" if drafting else "--no-drafting", "--hidden" if hidden else "--no-hidden"]
    there += ["--trust-remote-code"] * trust_remote_code
    with crew(interpreters, hosts) as made:
        worker = made.hire_for("golden-recorder", "pytorch")
        for suite in read_suites(prompts):
            out = share.folder(root, suite) if share else root / suite.name
            alike = must_stream(found, suite, most) if hosts and streamed is None else streamed
            how["streaming"] = Streaming(most, alike, drafting, drafts)
            with _progress(suite.name) as progress:
                here = partial(record_golden, found, suite, worker=worker, progress=progress, **how)
                if hosts:
                    asked = Asked(found, suite, out, there, bool(alike), hidden, form)
                    manifest = record_spread(made, asked, here, progress)
                else:
                    manifest = here(out=out, part=share)
            click.echo(_recorded(out, manifest))


@golden.command()
@click.argument("roots", nargs=-1, type=click.Path(path_type=Path))
@CHECKPOINT
@SUITES
@GOLDEN
@_FORM
def merge(
    roots: tuple[Path, ...], checkpoint: str, prompts: tuple[str, ...], golden: Path | None, form: str | None
) -> None:
    """Put together goldens that were recorded in parts: ROOTS, or all that lie in these (by default, where goldens do).

    The files have the same bytes as those of one recording. Parts must come of the same versions and kind of processor.
    """
    found = find_checkpoint(checkpoint)
    root = golden or user_root(found, found.fingerprint())
    for suite in read_suites(prompts):
        parts = find_parts(roots or (root,), suite)
        click.echo(_recorded(root / suite.name, merge_parts(found, suite, parts, root / suite.name, form=form)))


@golden.command()
@CHECKPOINT
@SUITES
@GOLDEN
def verify(checkpoint: str, prompts: tuple[str, ...], golden: Path | None) -> None:
    """Check that goldens are whole, unchanged, and belong to the checkpoint and the prompts."""
    found = find_checkpoint(checkpoint)
    fingerprint = found.fingerprint()
    roots = (golden,) if golden else golden_roots(found, fingerprint)
    for suite in read_suites(prompts):
        opened = open_golden(roots, found, fingerprint, suite)
        for case in opened.manifest.cases:
            opened.rows(case.id)
            if case.switch:
                opened.fresh_rows(case.id)
        click.echo(
            f"{opened.folder}: whole, {len(opened.manifest.cases)} cases, as recorded {opened.manifest.recorded}"
        )


@golden.command()
@click.argument("folder", type=click.Path(path_type=Path))
def show(folder: Path) -> None:
    """Print what the golden in FOLDER was made from, and its cases."""
    manifest = verify_files(folder).manifest
    noise = manifest.noise
    versions = ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    click.echo(f"checkpoint  {manifest.checkpoint} ({manifest.fingerprint.key})")
    click.echo(f"suite       {manifest.suite}, vocabulary {manifest.vocabulary}, window {manifest.window}")
    click.echo(f"recorded    {manifest.recorded} with {versions}")
    click.echo(f"machine     {manifest.machine.processor}, {manifest.machine.system} {manifest.machine.architecture}")
    if manifest.part:
        number, count = manifest.part
        click.echo(f"part        {number} of {count}, not yet checked against float64: phi3-conformance golden merge")
    else:
        click.echo(
            f"noise       centred RMS {noise.centred_rms_mean:.1e} mean, {noise.centred_rms_worst:.1e} worst (logits)"
        )
    if plan := manifest.compact or None:
        click.echo(
            f"form        compact, {plan.row.itemsize} bytes a position: {plan.top} likeliest tokens, "
            f"{plan.even} even and {plan.drawn} drawn samples"
        )
    click.echo(f"\n{'case':32} {'prompt':>6} {'new':>4} {'ended':>6} {'least margin':>13}")
    for case in manifest.cases:
        ended = "yes" if case.ended else "no"
        click.echo(f"{case.id:32} {len(case.tokens):6} {len(case.continuation):4} {ended:>6} {min(case.margins):13.3g}")


def _drafts(draft: Path, checkpoint: Checkpoint) -> dict[str, Sequence[int]]:
    """Answers of another build by prompt. Raises GoldenError; UsageError where its tokens are others."""
    manifest = verify_files(draft).manifest
    if manifest.vocabulary != checkpoint.vocabulary:
        raise UsageError(
            f"--draft {draft} has a vocabulary of {manifest.vocabulary}, {checkpoint.name} one of "
            f"{checkpoint.vocabulary}: its tokens are others",
            "give a golden of another build of the same model",
        )
    return {case.id: case.continuation for case in manifest.cases}


def _recorded(out: Path, manifest: Manifest) -> str:
    if manifest.part:
        return f"{out}: {len(manifest.cases)} cases, checked when the parts are put together: golden merge"
    noise = manifest.noise
    return (
        f"{out}: {len(manifest.cases)} cases; against float64 ({len(noise.cases)} cases): "
        f"centred RMS {noise.centred_rms_mean:.1e} logits, largest difference {noise.max_abs:.1e}"
    )


@contextmanager
def _progress(suite: str) -> Iterator[Callable[[str, int, int], None]]:
    """A progress bar on a terminal, a line a case elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: click.echo(f"{suite} {done}/{total}: {what}", err=True)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(suite, total=None)
        yield lambda what, done, total: bar.update(task, description=f"{suite}: {what}", completed=done, total=total)
