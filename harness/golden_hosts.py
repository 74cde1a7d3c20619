"""A golden recorded by several machines at once: this one and the hosts of a lab, each a part, put together here.

Every machine takes every N-th prompt: see `harness.golden_parts`. Checkpoint and prompts are brought to the hosts, and
their parts fetched, each as soon as it is done. Parts lie beside the golden until it is written, so that a recording
that was cut, or that lost a host, goes on with those that it has.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from harness.checkpoint import Checkpoint
from harness.crew import Crew
from harness.devices import Machine, this_machine
from harness.errors import GoldenError, ResourceError, Stage, StageError
from harness.golden import HIDDEN, verify_files, writing
from harness.golden_manifest import Manifest
from harness.golden_parts import Part, find_parts, merge_parts
from harness.prompts import PromptSuite
from harness.recording import REFERENCE_TARGET, was_streamed
from harness.target import Target
from harness.worker import Worker

# What computes a golden, or makes the tokens that it is computed of.
_COMPUTING = ("torch", "transformers", "tokenizers")
_LOOK_SECONDS = 1.0
_PIECE_BYTES = 4 << 20

Progress = Callable[[str, int, int], None]


class RecordHere(Protocol):
    """Records a part on this machine, in the folder `out`."""

    def __call__(self, *, out: Path, part: Part) -> Manifest: ...  # noqa: D102


class Asked(NamedTuple):
    """What is to be recorded in the folder `out`; `options` of `golden record` are given to the hosts.

    `streamed`: a layer at a time, on every machine: the two ways agree to rounding, which is not to the last bit.
    """

    checkpoint: Checkpoint
    suite: PromptSuite
    out: Path
    options: Sequence[str]
    streamed: bool
    hidden: bool
    form: str | None


def record_spread(crew: Crew, asked: Asked, record_here: RecordHere, progress: Progress) -> Manifest:
    """Record the golden of a suite with all hosts of the crew's lab, and this machine, which takes the first part.

    Raises GoldenError before anything is computed where a host would round differently; after all others are done
    where one has failed. Other errors are those of `merge_parts`.
    """
    count = min(len(crew.lab.hosts) + 1, len(asked.suite.prompts))
    hosts = dict(zip(crew.lab.hosts, (Part(number, count) for number in range(2, count + 1)), strict=False))
    versions = _must_be_alike(crew, list(hosts))
    ours = Part(1, count)
    lacking = {host: part for host, part in hosts.items() if not _is_there(asked, versions, part)}
    with _begun(crew, asked, lacking, versions, progress) as begun:
        if not _is_there(asked, versions, ours):
            record_here(out=_beside(asked, ours), part=ours)
        _wait(crew, asked, begun, progress)
    folders = [_beside(asked, part) for part in (ours, *hosts.values())]
    parts = find_parts(folders, asked.suite)
    merged = merge_parts(asked.checkpoint, asked.suite, parts, asked.out, form=asked.form)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return merged


def _beside(asked: Asked, part: Part) -> Path:
    return part.folder(asked.out.parent, asked.suite)


def _must_be_alike(crew: Crew, hosts: Sequence[str]) -> dict[str, str]:
    """The versions that compute here. Raises GoldenError where a host has others, or another kind of processor."""
    versions, here = _versions(crew, None), this_machine()
    for host in hosts:
        theirs = _versions(crew, host)
        there: Machine = crew.lab.machines[host]
        differ = [
            f"{name} {theirs.get(name, 'none')} there, {versions.get(name, 'none')} here"
            for name in sorted({*versions, *theirs})
            if theirs.get(name) != versions.get(name)
        ]
        differ += [
            f"{getattr(there, name)} there, {getattr(here, name)} here"
            for name in ("architecture", "processor")
            if getattr(there, name) != getattr(here, name)
        ]
        if differ:
            raise GoldenError(
                f"{host} may round differently, so that its part would not fit: {'; '.join(differ)}",
                "name hosts with the same versions and the same kind of processor, or record without it",
            )
    return versions


def _versions(crew: Crew, host: str | None) -> dict[str, str]:
    """Versions of what computes a golden on a machine. Raises StageError, GoldenError where something is missing."""
    target = _reference_on(host)
    worker: Worker = crew.hire(f"recorder of {host or 'this machine'}", target)
    worker.start(Stage.DISCOVER)
    try:
        opened = worker.call(Stage.DISCOVER, "open", backend=target.backend)
        found: dict[str, str] = worker.call(Stage.DISCOVER, "versions", names=list(_COMPUTING))
    finally:
        worker.stop()
    if opened["missing"]:
        raise GoldenError(
            f"{host or 'this machine'} lacks {', '.join(opened['missing'])} in {opened['executable']}",
            "python -m pip install -e .[pytorch]",
        )
    return found


def _reference_on(host: str | None) -> Target:
    return Target.parse(REFERENCE_TARGET if host is None else f"{REFERENCE_TARGET}:{host}")


def _is_there(asked: Asked, versions: Mapping[str, str], part: Part) -> bool:
    """Whether the part is beside the golden already, as it would be recorded now."""
    try:
        manifest = verify_files(_beside(asked, part)).manifest
    except GoldenError:
        return False
    return (
        manifest.part == (part.number, part.count)
        and manifest.fingerprint == asked.checkpoint.fingerprint()
        and manifest.suite_sha256 == asked.suite.sha256
        and (HIDDEN in manifest.files or not asked.hidden)
        and versions.items() <= manifest.versions.items()
        and was_streamed(manifest) == asked.streamed
        and manifest.machine.processor == this_machine().processor
        and manifest.machine.architecture == this_machine().architecture
    )


@contextmanager
def _begun(
    crew: Crew, asked: Asked, hosts: Mapping[str, Part], versions: Mapping[str, str], progress: Progress
) -> Iterator[dict[str, Part]]:
    """Have the hosts record their parts; whatever comes, none goes on afterwards."""
    lab, total = crew.lab, len(crew.lab.hosts) + 1

    def announce(what: str) -> None:
        progress(what, 0, total)

    begun: dict[str, Part] = {}
    prompts = crew.scratch / "prompts" / asked.suite.sha256
    prompts.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(asked.suite.path, prompts / asked.suite.path.name)
    try:
        for host, part in hosts.items():
            checkpoint = lab.bring(host, asked.checkpoint.path, announce, everything=False)
            suite = lab.bring(host, prompts, lambda _: None)
            file = f"{suite}/{asked.suite.path.name}"
            arguments = {"checkpoint": checkpoint, "prompts": file, "part": str(part)}
            python = crew.interpreter(_reference_on(host))
            options = [*asked.options, "--streamed" if asked.streamed else "--whole"]
            options += [f"--interpreter=pytorch={python}"] if python else []
            lab.ask(host, Stage.RUN, "begin_part", **arguments, options=options, versions=dict(versions))
            begun[host] = part
        yield begun
    finally:
        for host in begun:
            with contextlib.suppress(StageError):
                lab.ask(host, Stage.RUN, "end_part")


def _wait(crew: Crew, asked: Asked, begun: Mapping[str, Part], progress: Progress) -> None:
    """Fetch each part as it is done. Raises GoldenError at the end where a host has none to give."""
    going, failed = dict(begun), dict[str, str]()
    total = len(crew.lab.hosts) + 1
    while going:
        for host, part in list(going.items()):
            try:
                ended = _look(crew, asked, host, part, lambda said: progress(said, total - len(going), total))
            except (StageError, GoldenError, ResourceError) as error:
                failed[host], ended = error.problem, True
            if ended:
                del going[host]
        if going:
            time.sleep(_LOOK_SECONDS)
    if failed:
        raise GoldenError(
            "; ".join(f"{host} has not recorded part {begun[host]}: {why}" for host, why in failed.items()),
            "mend that and give the same command again: the other parts are kept, and what a host has begun goes on",
        )


def _look(crew: Crew, asked: Asked, host: str, part: Part, say: Callable[[str], None]) -> bool:
    """Whether a host is done, its part fetched. Raises GoldenError where its recording failed."""
    found: dict[str, Any] = crew.lab.ask(host, Stage.RUN, "part_progress")
    if found["status"] is None:
        if found["said"]:
            say(f"{host}: {found['said']}")
        return False
    if found["status"] != 0:
        raise GoldenError(f"its recording ended with status {found['status']}{found['tail']}")
    say(f"fetching part {part} from {host}")
    _fetch(crew, host, _beside(asked, part))
    return True


def _fetch(crew: Crew, host: str, out: Path) -> None:
    """Bring a part here, whole or not at all. Raises ResourceError on a full disk, GoldenError where it is broken."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    name = out.name
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(out):
            partial.mkdir(parents=True)
            files: dict[str, int] = crew.lab.ask(host, Stage.RUN, "part_files", name=name)
            for file, size in files.items():
                with (partial / Path(file).name).open("wb") as opened:
                    while opened.tell() < size:
                        piece = {"name": name, "file": file, "offset": opened.tell(), "size": _PIECE_BYTES}
                        opened.write(crew.lab.ask(host, Stage.RUN, "read_part", **piece))
            verify_files(partial)
            shutil.rmtree(out, ignore_errors=True)
            partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    crew.lab.ask(host, Stage.RUN, "forget_part", name=name)
