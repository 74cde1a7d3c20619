"""`phi3-conformance operator`: one case of an operator over again, without a run and without an artifact."""

from __future__ import annotations

import sys
from typing import Any

import click

from harness import machines
from harness.compare import Outcome
from harness.devices import parse_interpreters
from harness.errors import Stage
from harness.lab import parse_hosts
from harness.operators.case import parse_case
from harness.target import Target


@click.command()
@click.argument("target")
@click.argument("case")
@click.option("--interpreter", multiple=True, metavar="BACKEND=PATH", help="The Python that has a backend's runtime.")
@click.option("--host", multiple=True, metavar="NAME=SPEC", help="Another machine: lab1=ssh=user@machine//python=PATH.")
def operator(target: str, case: str, interpreter: tuple[str, ...], host: tuple[str, ...]) -> None:
    """Run CASE, as a failure of test_operators names it, on the device of TARGET, and judge it.

    Ends with status 0 if it is right, 1 if it is wrong, 2 if it cannot be run.
    """
    from harness.operators.examine import replay  # hypothesis takes a while to import, for which others have no use

    asked, parsed = Target.parse(target), parse_case(case)
    with machines.crew(parse_interpreters(list(interpreter)), parse_hosts(host)) as crew:
        machines.check_device(crew, asked)
        worker = crew.take(asked)

        def call(operation: str, **arguments: Any) -> Any:
            return worker.call(Stage.RUN, operation, **arguments)

        verdict = replay(call, asked, parsed)
    numbers = verdict.numbers
    worst = (
        f"worst element {numbers['worst']:.3g} of what its roundings allow, {numbers['worst_units']:.3g} units in the"
    )
    click.echo(f"{asked} {parsed}: {verdict.outcome.value}, {worst} last place off; all together {numbers['mean']:.3g}")
    if verdict.message:
        click.echo(verdict.message)
    sys.exit(0 if verdict.outcome is Outcome.PASS else 1)
