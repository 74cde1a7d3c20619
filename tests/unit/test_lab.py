"""The hosts of a lab, with outposts that keep real files and answer without ssh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from harness.connection import Host
from harness.devices import Machine
from harness.errors import Stage, StageError, UsageError, WorkerDied, WorkerRaised
from harness.lab import Lab, parse_hosts
from harness.outpost import Outpost

LOST = WorkerDied(Stage.PREPARE, "the worker of lab1-outpost died: its connection ended")


class FakeOutpost:
    """A host's outpost with a cache of its own. Operations in `faults` raise; a host that died stays dead."""

    def __init__(self, label: str, outpost: Outpost, machine: Machine) -> None:
        self.label = label
        self.running = False
        self.started = 0
        self.stopped = False
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.faults: dict[str, StageError] = {}
        self._outpost = outpost
        self._machine = machine

    def start(self, _stage: Stage) -> None:
        self.started += 1
        if "start" in self.faults:
            raise self.faults["start"]
        self.running = True

    def call(self, _stage: Stage, operation: str, **arguments: Any) -> Any:
        assert self.running
        self.calls.append((operation, arguments))
        if operation in self.faults:
            self.running = not isinstance(self.faults[operation], WorkerDied)
            raise self.faults[operation]
        if operation == "machine":
            return msgspec.to_builtins(self._machine)
        return getattr(self._outpost, f"do_{operation}")(**arguments)

    def stop(self) -> None:
        self.running = False
        self.stopped = True

    def asked(self, operation: str) -> list[dict[str, Any]]:
        return [arguments for name, arguments in self.calls if name == operation]


class Fakes:
    """A lab of lab1 and lab2."""

    def __init__(self, outposts: Mapping[str, FakeOutpost]) -> None:
        self.one, self.two = outposts["lab1"], outposts["lab2"]
        self.said: list[str] = []
        hire: Any = lambda _label, host: outposts[host.name]  # noqa: E731
        self.lab = Lab({name: Host(name, f"ssh={name}") for name in outposts}, hire)

    def bring(self, folder: Path, host: str = "lab1", **arguments: Any) -> Path:
        return Path(self.lab.bring(host, folder, self.said.append, **arguments))

    def failed(self, host: str = "lab1", operation: str = "missing", **arguments: Any) -> StageError:
        with pytest.raises(StageError) as caught:
            self.lab.ask(host, Stage.PREPARE, operation, **(arguments or {"entries": []}))
        return caught.value


@pytest.fixture
def fakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: Machine) -> Fakes:
    outposts = {}
    for host in ("lab1", "lab2"):
        monkeypatch.setenv("PHI3_CONFORMANCE_CACHE", str(tmp_path / f"cache-of-{host}"))
        outposts[host] = FakeOutpost(f"{host}-outpost", Outpost(), machine)
    return Fakes(outposts)


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a folder of files."""

    def make_folder(name: str, files: Mapping[str, bytes]) -> Path:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_bytes(content)
        return tmp_path / name

    return make_folder


def read(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_hosts_are_read_with_their_whole_spec() -> None:
    texts = ["lab1=ssh=user@machine//python=/opt/py=3/bin/python", "b=vagrant_ssh=box"]
    assert parse_hosts(texts) == {
        "lab1": Host("lab1", "ssh=user@machine//python=/opt/py=3/bin/python"),
        "b": Host("b", "vagrant_ssh=box"),
    }
    assert parse_hosts([]) == {}


@pytest.mark.parametrize(
    ("texts", "words"),
    [
        (["lab1"], "names no new host"),
        (["=ssh=x"], "names no new host"),
        (["Lab1=ssh=x"], "names no new host"),
        (["1=ssh=x"], "names no new host"),
        (["lab-1=ssh=x"], "names no new host"),
        (["lab1:npu=ssh=x"], "names no new host"),
        (["a=ssh=x", "b=ssh=y", "a=ssh=z"], "'a=ssh=z' names no new host"),
        (["lab1="], "how to reach"),
        (["lab1=user@machine"], "how to reach"),
        (["lab1=popen//python=ssh"], "how to reach"),
        (["lab1=socket=machine:8888"], "how to reach"),
    ],
)
def test_what_names_no_host_is_refused_with_the_form_to_write(texts: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        parse_hosts(texts)
    assert "--host lab1=ssh=" in caught.value.remedy


def test_a_folder_is_brought_as_it_is(fakes: Fakes, make: Make) -> None:
    files = {"config.json": b"{}", "empty": b"", "sub/weights.bin": bytes(range(256)) * (5 << 12), ".hidden": b"h"}
    assert read(fakes.bring(make("model", files))) == files
    (said,) = fakes.said
    assert said == "bringing model to lab1: 5.2 MB in 4 files"


def test_a_large_file_travels_in_pieces_from_its_start_to_its_end(fakes: Fakes, make: Make) -> None:
    content = b"".join(number.to_bytes(4, "big") for number in range(9 << 18))
    fakes.bring(make("model", {"weights": content}))
    pieces = fakes.one.asked("write")
    assert len(pieces) > 1
    assert b"".join(piece["content"] for piece in pieces) == content
    lengths = [len(piece["content"]) for piece in pieces]
    assert [piece["offset"] for piece in pieces] == [sum(lengths[:number]) for number in range(len(pieces))]


def test_only_what_is_missing_is_sent_in_order_and_each_content_once(fakes: Fakes, make: Make) -> None:
    fakes.bring(make("first", {"shared": bytes(200_000)}))
    before = len(fakes.one.calls)
    second = make("second", {"a": b"1", "b": bytes(200_000), "c/d": b"2", "e": b"1"})
    assert read(fakes.bring(second)) == read(second)
    sent = [arguments["content"] for name, arguments in fakes.one.calls[before:] if name == "write"]
    assert sent == [b"1", b"2"]
    names = [name for name, _ in fakes.one.calls[before:]]
    assert names == ["missing", "write", "finish", "write", "finish", "assemble"]
    assert fakes.said[1:] == ["bringing second to lab1: 0.0 MB in 2 files"]


def test_a_folder_is_brought_once_to_each_host(fakes: Fakes, make: Make) -> None:
    folder = make("model", {"a": b"1"})
    first = fakes.bring(folder)
    calls = len(fakes.one.calls)
    assert fakes.bring(folder) == first
    assert len(fakes.one.calls) == calls
    assert fakes.bring(folder, "lab2") != first
    assert fakes.bring(folder) == first
    assert len(fakes.two.asked("write")) == 1


def test_nothing_is_announced_where_everything_is_there(fakes: Fakes, make: Make) -> None:
    fakes.bring(make("one", {"a": b"1"}))
    fakes.bring(make("two", {"b": b"1"}))
    assert len(fakes.said) == 1
    assert len(fakes.one.asked("write")) == 1


def test_of_a_checkpoint_hidden_files_and_weights_that_are_never_loaded_stay_here(fakes: Fakes, make: Make) -> None:
    loaded = {"config.json": b"1", "model-00001-of-00002.safetensors": b"2", "code/modeling.py": b"3"}
    left = {
        ".gitattributes": b"4",
        ".cache/huggingface/model.safetensors": b"5",
        "pytorch_model.bin": b"6",
        "old/model.gguf": b"7",
        "cpu/model.onnx": b"8",
        "cpu/model.onnx.data": b"9",
    }
    folder = make("checkpoint", loaded | left)
    assert read(fakes.bring(folder, everything=False)) == loaded
    assert read(fakes.bring(folder, "lab2")) == loaded | left


def test_a_folder_below_a_hidden_one_is_brought(fakes: Fakes, make: Make) -> None:
    folder = make(".cache/hub/model", {"config.json": b"1"})
    assert read(fakes.bring(folder, everything=False)) == {"config.json": b"1"}


@pytest.mark.parametrize("operation", ["missing", "write", "finish", "assemble"])
def test_a_host_that_is_lost_while_files_are_brought_fails_and_is_not_asked_again(
    fakes: Fakes, make: Make, operation: str
) -> None:
    fakes.one.faults[operation] = LOST
    folder = make("model", {"a": b"1"})
    with pytest.raises(StageError, match="the host lab1 was lost: the worker of lab1-outpost died") as caught:
        fakes.bring(folder)
    assert caught.value.remedy
    calls = len(fakes.one.calls)
    with pytest.raises(StageError) as again:
        fakes.bring(folder)
    assert again.value is caught.value
    assert (len(fakes.one.calls), fakes.one.started) == (calls, 1)
    assert read(fakes.bring(folder, "lab2")) == {"a": b"1"}


@pytest.mark.parametrize("operation", ["start", "machine"])
def test_a_host_that_cannot_be_used_is_tried_once(fakes: Fakes, operation: str) -> None:
    fakes.one.faults[operation] = StageError(Stage.DISCOVER, "no worker on lab1", "try: ssh lab1")
    first = fakes.failed()
    assert "the host lab1 cannot be used: no worker on lab1" in first.problem
    assert first.remedy == "try: ssh lab1"
    assert fakes.failed() is first
    assert (fakes.one.started, fakes.one.stopped) == (1, True)
    assert fakes.lab.outposts == []
    assert fakes.lab.machines == {}
    fakes.lab.check("lab2", Stage.RUN)


def test_an_error_of_an_outpost_that_lives_is_passed_on_and_it_is_asked_again(fakes: Fakes) -> None:
    full = WorkerRaised(Stage.PREPARE, "the disk is full", "free space")
    fakes.one.faults["missing"] = full
    assert fakes.failed() is full
    del fakes.one.faults["missing"]
    fakes.lab.check("lab1", Stage.RUN)


def test_files_that_did_not_arrive_are_brought_when_asked_for_again(fakes: Fakes, make: Make) -> None:
    folder = make("model", {"a": b"1"})
    fakes.one.faults["finish"] = WorkerRaised(Stage.PREPARE, "a file has another hash", "try again")
    with pytest.raises(WorkerRaised):
        fakes.bring(folder)
    del fakes.one.faults["finish"]
    assert read(fakes.bring(folder)) == {"a": b"1"}


def test_a_host_is_reached_when_it_is_first_needed_and_then_known(fakes: Fakes, machine: Machine) -> None:
    assert fakes.lab.machines == {}
    assert fakes.lab.outposts == []
    for _ in range(2):
        fakes.lab.check("lab1", Stage.RUN)
    assert fakes.one.started == 1
    assert fakes.two.started == 0
    assert fakes.lab.machines == {"lab1": machine}
    assert [worker.label for worker in fakes.lab.outposts] == ["lab1-outpost"]


def test_checking_a_host_that_is_lost_says_so(fakes: Fakes) -> None:
    fakes.lab.check("lab1", Stage.RUN)
    fakes.one.faults["missing"] = LOST
    with pytest.raises(StageError, match="was lost"):
        fakes.lab.check("lab1", Stage.RUN)
    with pytest.raises(StageError, match="was lost"):
        fakes.lab.interpreter("lab1", "openvino", "npu")


def test_a_worker_is_ended_and_its_output_read_by_the_outpost(fakes: Fakes, tmp_path: Path) -> None:
    log = tmp_path / "worker.log"
    log.write_text("driver: about to abort\n", encoding="utf-8")
    assert "driver: about to abort" in fakes.lab.tail("lab1", str(log))
    fakes.one.faults["end"] = WorkerRaised(Stage.RUN, "not ours to end")  # what it raises harms nobody
    fakes.lab.end("lab1", 4711)
    assert fakes.one.asked("end") == [{"pid": 4711}]


def test_on_a_host_that_was_lost_nothing_is_ended_or_read(fakes: Fakes) -> None:
    fakes.one.faults["missing"] = LOST
    fakes.failed()
    calls = len(fakes.one.calls)
    fakes.lab.end("lab1", 4711)
    assert fakes.lab.tail("lab1", "worker.log") == ""
    assert len(fakes.one.calls) == calls


def test_a_host_that_is_lost_while_a_worker_is_ended_is_lost_without_an_error(fakes: Fakes) -> None:
    fakes.lab.check("lab1", Stage.RUN)
    fakes.one.faults |= {"end": LOST, "tail": LOST}
    fakes.lab.end("lab1", 4711)
    assert fakes.lab.tail("lab1", "worker.log") == ""
    assert fakes.one.asked("tail") == []
    with pytest.raises(StageError, match="was lost"):
        fakes.lab.check("lab1", Stage.RUN)
