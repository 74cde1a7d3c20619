"""What `phi3-conformance devices` and `prepare` do: look at every target, export without running."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import PurePath

import msgspec

from harness import __version__
from harness.artifacts import Artifact, describe
from harness.backend import Backend, DeviceReport, load_backends
from harness.checkpoint import Checkpoint
from harness.connection import Host
from harness.crew import Crew
from harness.devices import this_machine
from harness.errors import HarnessError, Stage, StageError, UsageError
from harness.preparation import export_by
from harness.report.devices import DevicesReport, TargetReport
from harness.target import Target, Unavailable
from harness.watch import Limits

SCHEMA = 1


@contextmanager
def crew(interpreters: Mapping[str, PurePath], hosts: Mapping[str, Host]) -> Iterator[Crew]:
    """A crew for every registered backend, ended afterwards."""
    made = Crew(load_backends(), interpreters=interpreters, hosts=hosts, limits=Limits())
    try:
        yield made
    finally:
        made.close()


def look(made: Crew) -> DevicesReport:
    """Ask every runtime, here and on every host, for the device of every target that is declared."""
    declared = [target for backend in made.backends.values() for target in backend.targets()]
    there = [msgspec.structs.replace(target, host=host) for host in made.lab.hosts for target in declared]
    targets = [_report(made, target) for target in (*declared, *there)]
    return DevicesReport(
        schema=SCHEMA,
        harness=__version__,
        machine=this_machine(),
        hosts=made.lab.machines,
        runtimes=made.discovery.reports(),
        targets=targets,
    )


def check_device(made: Crew, target: Target) -> None:
    """Ask the runtime for the target's device before anything is done on it.

    Raises UsageError where no such target is declared or its host is not named, StageError(discover) where the device
    is not there.
    """
    declared = [one for backend in made.backends.values() for one in backend.targets()]
    if msgspec.structs.replace(target, device=target.base_device, host=None) not in declared:
        raise UsageError(f"no backend declares the target {target}", "one of: " + ", ".join(map(str, declared)))
    if target.host is not None and target.host not in made.lab.hosts:
        raise UsageError(f"no host {target.host!r} is named", f"add --host {target.host}=ssh=USER@MACHINE//python=PATH")
    found = made.discovery.find(target)
    if isinstance(found, Unavailable):
        raise StageError(Stage.DISCOVER, f"{target} cannot be used: {found.reason}", found.remedy)


def _report(made: Crew, target: Target) -> TargetReport:
    kind = made.backends[target.backend].devices[target.base_device]
    try:
        found = made.discovery.find(target)
    except StageError as error:
        return TargetReport(str(target), kind, False, reason=f"ERROR: {error.problem}", remedy=error.remedy)
    if isinstance(found, Unavailable):
        return TargetReport(str(target), kind, False, reason=found.reason, remedy=found.remedy)
    assert isinstance(found, DeviceReport)
    return TargetReport(str(target), kind, True, device=found.name, properties=found.properties)


def export(
    made: Crew,
    checkpoint: Checkpoint,
    target: Target,
    recipe_name: str | None,
    announce: Callable[[str], None],
    *,
    trust_remote_code: bool,
) -> Artifact:
    """Export a target's artifact into the cache, whether or not its device is here, and check what came out.

    It is exported by the interpreter that would load it here: an artifact of a newer builder may not load in an
    older runtime. Raises HarnessError.
    """
    backend = made.backends[target.backend]
    recipe = backend.recipe(target, recipe_name)
    if recipe is None:
        return describe(checkpoint.path, "checkpoint")
    worker = made.hire(f"{target}-exporter", target)
    worker.start(Stage.PREPARE)
    try:
        _refuse_missing(backend, worker.call(Stage.PREPARE, "open", backend=target.backend)["missing"])
        versions = worker.call(Stage.PREPARE, "versions", names=list(recipe.exporter))
        key = checkpoint.fingerprint().key
        return export_by(
            worker,
            checkpoint,
            key,
            target.backend,
            recipe,
            versions,
            announce,
            trust_remote_code=trust_remote_code,
        )
    finally:
        worker.stop()


def _refuse_missing(backend: Backend, missing: Sequence[str]) -> None:
    if missing:
        names = ", ".join(name.split("|")[0] for name in missing)
        raise HarnessError(f"nothing can be exported for {backend.name}: {names} not installed", backend.install)
