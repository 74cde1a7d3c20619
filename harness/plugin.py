"""The pytest plugin: options, markers, parametrisation by target and prompt, outcomes, summary and record.

Loaded with `-p harness.plugin`. It imports no runtime; those live in worker processes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Generator
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness import __version__, alone, fixtures, idle_threads, marks, parametrising, soak_marks
from harness.devices import Machine
from harness.discovery import RuntimeReport
from harness.errors import HarnessError
from harness.fixtures import case_id
from harness.golden import TREE
from harness.interruptions import Terminator
from harness.options import DEFAULT_CHECKPOINT, POLICY, WAIVERS, Options
from harness.outcomes import conclude
from harness.progress import announcer, stepper
from harness.publication import publish
from harness.record import write_record
from harness.report.terminal import summarise
from harness.run import DEVICE_WAIT
from harness.state import STATE, State
from harness.target import DeviceKind, Precision

PROBLEMS = pytest.StashKey[list[str]]()
WRITTEN = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the group phi3-conformance."""
    group = parser.getgroup("phi3-conformance", "Phi-3 conformance")
    add = group.addoption
    add("--targets", action="append", default=[], metavar="GLOB", help="judge these targets only: openvino:*:int4")
    add("--require", action="append", default=[], metavar="WHAT", help="fail unless something ran on WHAT: npu, a glob")
    add("--checkpoint", default=str(DEFAULT_CHECKPOINT), metavar="DIR|NAME", help="a Phi-3 folder or hub name")
    add("--golden", type=Path, default=None, metavar="DIR", help="the folder that holds the checkpoint's goldens")
    add("--prompts", action="append", type=Path, default=[], metavar="FILE", help="a prompt suite of your own (.jsonl)")
    add("--artifact", action="append", default=[], metavar="TARGET=DIR|NAME", help="judge a ready-made one")
    add("--recipe", action="append", default=[], metavar="TARGET=NAME", help="export by this recipe")
    add("--load-option", action="append", default=[], metavar="TARGET=NAME=VALUE", help="diagnostic: not the defaults")
    add("--interpreter", action="append", default=[], metavar="BACKEND=PATH", help="the Python of a backend's workers")
    add("--host", action="append", default=[], metavar="NAME=SPEC", help="another machine: lab1=ssh=user@machine")
    add("--device-wait", type=float, default=DEVICE_WAIT, metavar="S", help="seconds to wait for a device in use")
    add("--stage-timeout", action="append", default=[], metavar="STAGE=S", help="seconds: discover, prepare, load, run")
    add("--worker-memory", type=float, default=None, metavar="GIB", help="kill a worker that holds more (no limit)")
    add("--memory", default=None, metavar="SIZE", help="what a reference may take, e.g. 6GB (what is free)")
    add("--policy", type=Path, default=POLICY, metavar="FILE", help="the limits (conformance/policy.toml)")
    add("--waivers", type=Path, default=WAIVERS, metavar="FILE", help="known defects (conformance/waivers.toml)")
    add("--record", type=Path, default=None, metavar="FILE", help="where the run record goes (records/)")
    add("--report", type=Path, default=None, metavar="FILE", help="where the page goes (beside the record)")
    add("--no-report", action="store_true", help="make no page")
    add("--minutes", type=float, default=None, metavar="N", help="run soaks, too, each for so long (with -m soak: 1)")
    add("--trust-remote-code", action="store_true", help="run code that the checkpoint brings")


def pytest_configure(config: pytest.Config) -> None:
    """Register markers and read the options."""
    try:
        command = ["pytest", *map(str, config.invocation_params.args)]
        announce = announcer(config)
        state = State(_options(config), announce, command, stepper(config, announce))
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    config.stash[STATE] = state
    config.pluginmanager.register(fixtures, "phi3-conformance-fixtures")
    config.pluginmanager.register(alone, "phi3-conformance-alone")
    config.pluginmanager.register(idle_threads, "phi3-conformance-idle-threads")
    config.pluginmanager.register(marks, "phi3-conformance-marks")
    config.pluginmanager.register(soak_marks, "phi3-conformance-soak-marks")
    config.pluginmanager.register(parametrising, "phi3-conformance-parametrising")
    config.pluginmanager.register(Terminator(), "phi3-conformance-terminator")
    names = {
        **{kind.value: f"cases on a device of kind {kind.value}" for kind in DeviceKind},
        **{name: f"cases of the backend {name}" for name in state.backends},
        **{precision.value: f"cases at {precision.value}" for precision in Precision},
    }
    names["slow"] = "cases that take long; -m 'not slow' leaves out the most expensive four fifths of a run"
    for name, meaning in names.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


def _options(config: pytest.Config) -> Options:
    get = config.getoption
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    return Options(
        checkpoint=get("checkpoint"),
        golden=get("golden"),
        prompts=tuple(get("prompts")),
        targets=tuple(get("targets")),
        require=tuple(get("require")),
        artifacts=tuple(get("artifact")),
        recipes=tuple(get("recipe")),
        load_options=tuple(get("load_option")),
        interpreters=tuple(get("interpreter")),
        hosts=tuple(get("host")),
        device_wait=get("device_wait"),
        stage_timeouts=tuple(get("stage_timeout")),
        worker_memory=get("worker_memory"),
        memory=get("memory"),
        policy=get("policy"),
        waivers=get("waivers"),
        record=get("record") or config.rootpath / "records" / f"run-{now}.json",
        trust_remote_code=get("trust_remote_code"),
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Name the checkpoint in the header."""
    checkpoint = str(config.getoption("checkpoint")).removeprefix(f"{config.rootpath}/")
    return f"phi3-conformance: {__version__}, checkpoint {checkpoint}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Note which waivers have cases at all, before -m and -k deselect."""
    state = config.stash[STATE]
    found = [case for case in map(case_id, items) if case is not None]
    if not found:
        return
    try:
        waivers = state.waivers()
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None
    state.matched_waivers |= {w.id for w in waivers if any(w.covers(c.target, c.case) for c in found)}


def pytest_collection_finish(session: pytest.Session) -> None:
    """Count the cases of each target, so that a run can say what is left."""
    state = session.config.stash[STATE]
    found = [case for case in map(case_id, session.items) if case is not None]
    state.due = Counter(case.target for case in found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn what happened into an outcome, and put it into the report."""
    report = yield
    case = case_id(item)
    if case is not None:
        conclude(item.config.stash[STATE], item, case, call, report)
    return report


class Collector:
    """Gathers cases and sessions from the reports of this process and of xdist's workers."""

    def __init__(self, state: State) -> None:
        self.state = state

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the case of a report."""
        plain = getattr(report, "conformance", None)
        if plain is None:
            return
        self.state.take(plain["case"], plain["session"])

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what an xdist worker found out while collecting."""
        output = getattr(node, "workeroutput", {})
        self.state.matched_waivers |= set(output.get("matched_waivers", ()))
        self.state.ledger.platform(
            msgspec.convert(output.get("machines", {}), dict[str, Machine]),
            msgspec.convert(output.get("runtimes", []), list[RuntimeReport]),
        )


def pytest_sessionstart(session: pytest.Session) -> None:
    """Begin to gather reports; in a run of conformance/, read what the options name before anything runs."""
    config = session.config
    state = config.stash[STATE]
    if hasattr(config, "workerinput"):  # what its reports bring is entered by the main process
        return
    config.pluginmanager.register(Collector(state), "phi3-conformance-collector")
    if not _judges_hardware(config):
        return
    try:
        if config.getoption("collectonly"):  # nothing is run: what it would be run with may be missing
            state.targets(), state.suites()
        else:
            state.check()
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None


def _judges_hardware(config: pytest.Config) -> bool:
    suites = TREE / "conformance"
    return any(path.is_relative_to(suites) or suites.is_relative_to(path) for path in _paths(config))


def _paths(config: pytest.Config) -> list[Path]:
    return [(config.invocation_params.dir / argument.split("::")[0]).resolve() for argument in config.args]


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """In the main process, judge the run as a whole and write the record; then stop workers, which may take a while."""
    state = session.config.stash[STATE]
    complete = False
    try:
        state.keep_known()
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["matched_waivers"] = sorted(state.matched_waivers)
            output["machines"] = msgspec.to_builtins(state.ledger.machines)
            output["runtimes"] = msgspec.to_builtins(list(state.ledger.runtimes.values()))
        elif not session.config.getoption("collectonly"):
            complete = _conclude(session, state, exitstatus)
    finally:
        _close(session, state, complete=complete)


def _conclude(session: pytest.Session, state: State, exitstatus: int) -> bool:
    """Set the exit status, find problems and write the record; whether the run was complete."""
    config = session.config
    ended = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)
    complete = ended and not session.shouldfail and not session.shouldstop
    problems = [f"--require {wanted}: nothing ran on it" for wanted in state.unmet()]
    if complete and state.ledger.cases and _whole_run(config):
        problems += stale_waivers(state)
    if problems and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if state.ledger.cases:
        problems += _write(config, state, complete=complete, exit_status=int(session.exitstatus))
    if problems and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    config.stash[PROBLEMS] = problems
    return complete


def _close(session: pytest.Session, state: State, *, complete: bool) -> None:
    """Stop workers. What fails there fails the run, and loses neither summary nor record."""
    try:
        state.close()
    except Exception as error:  # noqa: BLE001 - whatever it is, the run's results are worth more
        problem = f"workers could not be stopped: {type(error).__name__}: {error}"
        session.config.stash.setdefault(PROBLEMS, []).append(problem)
        if session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            if WRITTEN in session.config.stash:
                _write(session.config, state, complete=complete, exit_status=int(session.exitstatus))


def _write(config: pytest.Config, state: State, *, complete: bool, exit_status: int) -> list[str]:
    """Write the record; what prevents it is returned, and fails the run."""
    path = state.options.record
    try:
        write_record(path, state.record(complete=complete, exit_status=exit_status))
    except HarnessError as error:
        state.ledger.end(written=False)
        return [str(error)]
    state.ledger.end(written=True)
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    config.stash[WRITTEN] = f"{shown}" if complete else f"{shown} (incomplete: the run was cut short)"
    return []


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give all cases of a CPU target to one xdist worker, and all of a machine's NPU, or of its GPUs, to one."""
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import LoadScopeScheduling

    state = config.stash[STATE]
    # Longest first: a target of this machine is the beginning of the same target's name on a host.
    groups = {str(target): state.device_group(target) for target in state.targets()}
    names = sorted(groups, key=len, reverse=True)

    class DeviceScheduling(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            _, bracket, parameters = nodeid.partition("[")
            found = next((name for name in names if bracket and _begins(parameters, name)), None)
            return str(super()._split_scope(nodeid)) if found is None else groups[found]

    return DeviceScheduling(config, log)


def _begins(parameters: str, name: str) -> bool:
    """Whether a test id's parameters begin with a target: what follows it is a dash, or the end."""
    return parameters.startswith(name) and parameters[len(name) : len(name) + 1] in ("-", "]")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print the table of targets, then what the run as a whole lacks, then where the record is."""
    state = config.stash[STATE]
    problems = config.stash.get(PROBLEMS, [])
    if not state.ledger.cases and not problems:
        return
    terminalreporter.section("phi3-conformance")
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    record = state.record(complete=True, exit_status=0)
    terminalreporter.write_line(summarise(record, terminalreporter._tw.fullwidth, encoding))
    for problem in problems:
        terminalreporter.write_line(f"FAILED as a whole: {problem}", red=True)
    if WRITTEN in config.stash:
        terminalreporter.write_line(f"record: {config.stash[WRITTEN]}")
        _report(terminalreporter, config, state.options.record)


def _report(terminalreporter: Any, config: pytest.Config, record: Path) -> None:
    """Make the page where one is asked for, or where the run judged hardware; the record is there in any case."""
    asked: Path | None = config.getoption("report")
    if config.getoption("no_report") or not (asked or _judges_hardware(config)):
        return
    page = asked or record.with_suffix(".html")
    problem = publish(record, page)
    if problem:
        terminalreporter.write_line(f"report: not made: {problem}", red=True)
        return
    shown = page.relative_to(Path.cwd()) if page.is_relative_to(Path.cwd()) else page
    terminalreporter.write_line(f"report: {shown}")


def _whole_run(config: pytest.Config) -> bool:
    """Whether every case of the project's own suites was collected, so that an unused waiver is stale."""
    state = config.stash[STATE]
    everything = all((TREE / "conformance").is_relative_to(path) for path in _paths(config))
    return everything and not state.options.prompts and not state.options.targets


def stale_waivers(state: State) -> list[str]:
    """What is wrong with the waivers of a whole run: expired ones, and ones that match no case."""
    today = date.today()
    problems = []
    for waiver in state.waivers():
        if waiver.id not in state.matched_waivers:
            problems.append(f"waiver {waiver.id!r} matches no case: delete it or mend its globs")
        elif waiver.expired(today):
            problems.append(f"waiver {waiver.id!r} expired on {waiver.expires}: look again, then extend or delete it")
    return problems
