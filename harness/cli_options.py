"""Options that several commands of `phi3-conformance` have, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import click

from harness.options import DEFAULT_CHECKPOINT, PROMPTS
from harness.prompts import PromptSuite, check_names, read_suite

CHECKPOINT = click.option(
    "--checkpoint", default=str(DEFAULT_CHECKPOINT), show_default="the bundled one", help="A Phi-3 folder or hub name."
)
GOLDEN = click.option(
    "--golden", type=click.Path(path_type=Path), default=None, help="The folder that holds the checkpoint's goldens."
)
INTERPRETER = click.option(
    "--interpreter", multiple=True, metavar="BACKEND=PATH", help="The Python that has a backend's runtime."
)
SUITES = click.option(
    "--prompts",
    multiple=True,
    help="A suite of the project (core, long) or a .jsonl file; may be repeated. Default: all of the project.",
)


def read_suites(names: tuple[str, ...]) -> list[PromptSuite]:
    """The suites of `--prompts`, all of the project where none are named.

    Raises PromptError where one cannot be read, UsageError where two have one name.
    """
    if not names:
        return [read_suite(path) for path in sorted(PROMPTS.glob("*.jsonl"))]
    paths = [PROMPTS / f"{name}.jsonl" for name in names]
    suites = [read_suite(own if own.is_file() else Path(name)) for own, name in zip(paths, names, strict=True)]
    check_names(suites)
    return suites
