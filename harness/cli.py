"""The command line: `phi3-conformance devices | prepare | audit | localise`, and the commands of other modules."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console

from harness import __version__, machines
from harness.audit import audit as audit_weights
from harness.audit import to_json
from harness.backend import load_backend
from harness.checkpoint import find_checkpoint
from harness.cli_cache import cache
from harness.cli_coverage import coverage
from harness.cli_diff import diff
from harness.cli_golden import golden as golden_commands
from harness.cli_operator import operator
from harness.cli_options import CHECKPOINT, GOLDEN, INTERPRETER, SUITES, read_suites
from harness.cli_record import record as record_commands
from harness.cli_report import report
from harness.cli_signoff import signoff
from harness.cli_waivers import waivers
from harness.devices import parse_interpreters
from harness.errors import HarnessError, UsageError
from harness.lab import parse_hosts
from harness.options import POLICY, WAIVERS, Options, select_targets
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


main.add_command(cache)
main.add_command(coverage)
main.add_command(diff)
main.add_command(golden_commands)
main.add_command(operator)
main.add_command(signoff)
main.add_command(record_commands)
main.add_command(report)
main.add_command(waivers)


@main.command()
@INTERPRETER
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
@CHECKPOINT
@INTERPRETER
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
@CHECKPOINT
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
@CHECKPOINT
@SUITES
@GOLDEN
@INTERPRETER
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
    for setting in load_option:
        if not re.fullmatch("[^=]+=.*", setting):
            raise UsageError(f"--load-option {setting!r} is not NAME=VALUE", "write --load-option whole-prompt=yes")
    options = Options(
        checkpoint=checkpoint,
        golden=golden,
        prompts=tuple(suite.path for suite in read_suites(prompts)),
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
        asked = _one(state.targets())
        machines.check_device(state.run().crew, asked)
        session = TargetSession(state.run(), asked)
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


if __name__ == "__main__":
    main()
