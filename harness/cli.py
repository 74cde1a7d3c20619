"""The command line: `phi3-conformance devices | prepare | audit | localise | golden`, which has its own commands."""

from __future__ import annotations

import io
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from harness import __version__, machines
from harness.audit import audit as audit_weights
from harness.audit import to_json
from harness.backend import load_backend
from harness.checkpoint import find_checkpoint
from harness.cli_coverage import coverage
from harness.cli_diff import diff
from harness.cli_operator import operator
from harness.cli_record import record as record_commands
from harness.cli_report import report
from harness.cli_signoff import signoff
from harness.cli_waivers import waivers
from harness.devices import find_interpreter, parse_interpreters
from harness.errors import HarnessError, UsageError
from harness.golden import TREE, golden_roots, open_golden, user_root, verify_files
from harness.golden_compact import FORMS
from harness.lab import parse_hosts
from harness.options import DEFAULT_CHECKPOINT, POLICY, PROMPTS, WAIVERS, Options, parse_size, select_targets
from harness.prompts import PromptSuite, read_suite
from harness.recording import Streaming, record_golden
from harness.report.audit import describe_audit
from harness.report.devices import describe_devices
from harness.report.localise import as_json as localisation_as_json
from harness.report.localise import describe_localisation
from harness.run import DEVICE_WAIT, PromptCase
from harness.sessions import TargetSession
from harness.state import State
from harness.target import Target
from harness.tracing import trace
from harness.weights import ReadsWeights
from harness.worker import Worker

_CHECKPOINT = click.option(
    "--checkpoint", default=str(DEFAULT_CHECKPOINT), show_default="the bundled one", help="A Phi-3 folder or hub name."
)
_GOLDEN = click.option(
    "--golden", type=click.Path(path_type=Path), default=None, help="The folder that holds the checkpoint's goldens."
)
_INTERPRETER = click.option(
    "--interpreter", multiple=True, metavar="BACKEND=PATH", help="The Python that has a backend's runtime."
)
_SUITES = click.option(
    "--prompts",
    multiple=True,
    help="A suite of the project (core, long) or a .jsonl file; may be repeated. Default: all of the project.",
)


class _Commands(click.Group):
    """Prints the harness's own errors as sentences and ends with status 2; Ctrl-C with 130."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["standalone_mode"] = False
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a console of code page 1252 lacks most letters there are
                stream.reconfigure(errors="replace")
        try:
            return sys.exit(super().main(*args, **kwargs))
        except HarnessError as error:
            click.echo(f"error: {error}", err=True)
            sys.exit(2)
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("stopped; no half-made golden or artifact was left behind", err=True)
            sys.exit(130)


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="phi3-conformance")
def main() -> None:
    """Conformance and correctness harness for Phi-3 on AI PCs."""


main.add_command(coverage)
main.add_command(diff)
main.add_command(operator)
main.add_command(signoff)
main.add_command(record_commands)
main.add_command(report)
main.add_command(waivers)


@main.command()
@_INTERPRETER
@click.option("--host", multiple=True, metavar="NAME=SPEC", help="Another machine: lab1=ssh=user@machine//python=PATH.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def devices(interpreter: tuple[str, ...], host: tuple[str, ...], as_json: bool) -> None:
    """Say what this machine is, and which targets run on it or why not."""
    with machines.crew(parse_interpreters(list(interpreter)), parse_hosts(host)) as crew:
        report = machines.look(crew)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        click.echo(describe_devices(report))


@main.command()
@_CHECKPOINT
@_INTERPRETER
@click.option("--targets", multiple=True, required=True, metavar="GLOB", help="Targets, e.g. 'ort-genai:dml:*'.")
@click.option("--recipe", default=None, metavar="NAME", help="A recipe other than each target's default.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
def prepare(
    checkpoint: str, interpreter: tuple[str, ...], targets: tuple[str, ...], recipe: str | None, trust_remote_code: bool
) -> None:
    """Export the artifacts of targets into the cache and check them, whether or not their devices are here."""
    found = find_checkpoint(checkpoint)
    with machines.crew(parse_interpreters(list(interpreter)), {}) as crew:
        declared = [target for backend in crew.backends.values() for target in backend.targets()]
        for target in select_targets(declared, targets, crew.backends):
            artifact = machines.export(crew, found, target, recipe, click.echo, trust_remote_code=trust_remote_code)
            made = artifact.recipe or "as it is"
            click.echo(
                f"{target}: {made}, {artifact.bytes / 1e6:.1f} MB, sha256 {artifact.sha256[:16]}, {artifact.path}"
            )


# The file by which each backend's artifacts are known.
_MARKS = {
    "openvino_model.xml": "openvino",
    "genai_config.json": "ort-genai",
    "npu-library-weights.json": "npu-library",
    "config.json": "pytorch",
}


@main.command()
@click.argument("artifact", type=click.Path(path_type=Path))
@_CHECKPOINT
@click.option("--backend", default=None, metavar="NAME", help="Whose artifact it is. Default: by the files in it.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def audit(artifact: Path, checkpoint: str, backend: str | None, as_json: bool) -> None:
    """Hold the weights of ARTIFACT against its checkpoint, without a runtime or a device.

    Ends with status 0 if the artifact is clean, 1 if there are findings, 2 if it cannot be read.
    """
    found = find_checkpoint(checkpoint)
    name = backend or _recognise(artifact)
    reader = load_backend(name)
    if not isinstance(reader, ReadsWeights):
        raise UsageError(f"the backend {name} cannot read weights", "name another with --backend")
    report = audit_weights(reader.dequantized_weights(artifact, found.config), found)
    if as_json:
        click.echo(to_json(report))
    else:
        console = Console()
        click.echo(describe_audit(report, console.width, sys.stdout.encoding or "utf-8"))
    sys.exit(0 if report.clean else 1)


def _recognise(artifact: Path) -> str:
    """The backend whose artifact a folder is, by the files in it. Raises UsageError where there are none of these."""
    if not artifact.is_dir():
        raise UsageError(f"there is no folder {artifact}", "give the folder that was exported")
    for file, name in _MARKS.items():
        if (artifact / file).is_file():
            return name
    raise UsageError(f"{artifact} holds none of {', '.join(_MARKS)}", "give an exported folder, or --backend NAME")


@main.command()
@click.argument("target")
@_CHECKPOINT
@_SUITES
@_GOLDEN
@_INTERPRETER
@click.option("--artifact", type=click.Path(path_type=Path), default=None, help="Its artifact. Default: as a run's.")
@click.option("--prompt", "prompt_id", default=None, metavar="ID", help="Default: the longest of the first suite.")
@click.option("--load-option", multiple=True, metavar="NAME=VALUE", help="Beyond the runtime's defaults; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON: what a plot of the error by layer needs.")
def localise(
    target: str,
    checkpoint: str,
    prompts: tuple[str, ...],
    golden: Path | None,
    interpreter: tuple[str, ...],
    artifact: Path | None,
    prompt_id: str | None,
    load_option: tuple[str, ...],
    as_json: bool,
) -> None:
    """Say at which layer and sublayer TARGET leaves the reference on its artifact's own weights.

    Ends with status 0 if every sublayer is right, 1 if one is not, 2 if it cannot be told.
    """
    options = Options(
        checkpoint=checkpoint,
        golden=golden,
        prompts=tuple(suite.path for suite in _suites(prompts)),
        targets=(target,),
        require=(),
        artifacts=(f"{target}={artifact}",) if artifact else (),
        recipes=(),
        load_options=tuple(f"{target}={setting}" for setting in load_option),
        interpreters=interpreter,
        hosts=(),
        device_wait=DEVICE_WAIT,
        stage_timeouts=(),
        worker_memory=None,
        memory=None,
        policy=POLICY,
        waivers=WAIVERS,
        record=Path(),
        trust_remote_code=False,
    )
    state = State(options, lambda line: click.echo(line, err=True))
    try:
        state.check()
        session = TargetSession(state.run(), _one(state.targets()))
        session.start()
        found = trace(session, _choose(state, prompt_id))
        session.close()
    finally:
        state.close()
    if as_json:
        click.echo(localisation_as_json(found))
    else:
        click.echo(describe_localisation(found, Console().width, sys.stdout.encoding or "utf-8"))
    sys.exit(1 if found.bad else 0)


def _one(targets: list[Target]) -> Target:
    if len(targets) != 1:
        raise UsageError(f"{len(targets)} targets are named", f"name one: {', '.join(map(str, targets))}")
    return targets[0]


def _choose(state: State, prompt_id: str | None) -> PromptCase:
    """The prompt of that id, or the longest of the first suite. Raises UsageError where there is none."""
    run, suites = state.run(), state.suites()
    known = {case.id: suite for suite in suites for case in run.golden(suite).manifest.cases}
    if prompt_id is None:
        prompt_id = max(run.golden(suites[0]).manifest.cases, key=lambda case: len(case.sequence)).id
    if prompt_id not in known:
        raise UsageError(f"no suite has a prompt {prompt_id!r}", f"one of {', '.join(known)}")
    return run.case(known[prompt_id], prompt_id)


@main.group()
def golden() -> None:
    """Record, verify and show FP32 PyTorch goldens."""


@golden.command()
@_CHECKPOINT
@_SUITES
@_GOLDEN
@click.option("--interpreter", multiple=True, metavar="pytorch=PATH", help="The Python that has torch.")
@click.option("--trust-remote-code", is_flag=True, help="Run code that the checkpoint brings.")
@click.option("--hidden/--no-hidden", default=True, help="Keep hidden states of a few prompts, or none.")
@click.option(
    "--memory", metavar="SIZE", default=None, help="What recording may take, e.g. 6GB. Default: what is free."
)
@click.option("--draft", type=click.Path(path_type=Path), help="Another build's golden, whose answers are tried first.")
@click.option("--drafting/--no-drafting", default=True, help="Try several tokens in a pass where weights are streamed.")
@click.option(
    "--form", type=click.Choice(FORMS), help="Keep every logit, or 2 KB a position. Default: by the vocabulary."
)
def record(
    checkpoint: str,
    prompts: tuple[str, ...],
    golden: Path | None,
    interpreter: tuple[str, ...],
    trust_remote_code: bool,
    hidden: bool,
    memory: str | None,
    draft: Path | None,
    drafting: bool,
    form: str | None,
) -> None:
    """Record the golden of a checkpoint on one or more prompt suites.

    A model that does not fit into memory is read from disk layer by layer, over and over. A recording that is stopped
    goes on from its last pass when it is started again.
    """
    drafts = {case.id: case.continuation for case in verify_files(draft).manifest.cases} if draft else None
    streaming = Streaming(parse_size(memory) if memory else None, drafting, drafts)
    found = find_checkpoint(checkpoint)
    suites = _suites(prompts)
    root = golden or user_root(found, found.fingerprint())
    python = find_interpreter(load_backend("pytorch"), parse_interpreters(list(interpreter)), TREE)
    with tempfile.TemporaryDirectory(prefix="phi3-conformance-") as scratch:
        worker = Worker("golden-recorder", Path(scratch), interpreter=python)
        try:
            for suite in suites:
                with _progress(suite.name) as progress:
                    manifest = record_golden(
                        found,
                        suite,
                        root / suite.name,
                        worker,
                        progress=progress,
                        trust_remote_code=trust_remote_code,
                        hidden=hidden,
                        streaming=streaming,
                        form=form,
                    )
                noise = manifest.noise
                click.echo(
                    f"{root / suite.name}: {len(manifest.cases)} cases; against float64 ({len(noise.cases)} cases): "
                    f"centred RMS {noise.centred_rms_mean:.1e} logits, largest difference {noise.max_abs:.1e}"
                )
        finally:
            worker.stop()


@golden.command()
@_CHECKPOINT
@_SUITES
@_GOLDEN
def verify(checkpoint: str, prompts: tuple[str, ...], golden: Path | None) -> None:
    """Check that goldens are whole, unchanged, and belong to the checkpoint and the prompts."""
    found = find_checkpoint(checkpoint)
    fingerprint = found.fingerprint()
    roots = (golden,) if golden else golden_roots(found, fingerprint)
    for suite in _suites(prompts):
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


def _suites(names: tuple[str, ...]) -> list[PromptSuite]:
    if not names:
        return [read_suite(path) for path in sorted(PROMPTS.glob("*.jsonl"))]
    paths = [PROMPTS / f"{name}.jsonl" for name in names]
    return [read_suite(own if own.is_file() else Path(name)) for own, name in zip(paths, names, strict=True)]


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


if __name__ == "__main__":
    main()
