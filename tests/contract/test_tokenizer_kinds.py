"""The runtimes' tokenizers on the kinds of tokenizer that Phi-3's family has, small ones made on the spot.

What fails here is a finding about a runtime, kept in docs/findings. One that no longer fails is to be taken off the
list.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tokenizer_files
from adapters import Adapter, opened
from harness.backend import load_backend
from harness.checkpoint import find_checkpoint
from harness.compare import Outcome
from harness.devices import find_interpreter
from harness.errors import Unsupported
from harness.golden import TREE
from harness.options import DEFAULT_CHECKPOINT
from harness.texts import suite
from tokenizer_checks import CHECKS, target_of

TARGETS = ("pytorch:cpu:fp32", "openvino:cpu:int4", "ort-genai:cpu:int4", "npu-library:cpu:fp16")
# What optimum-cli does with a checkpoint's tokenizer beside exporting its model.
CONVERT = """
import sys
from optimum.exporters.openvino.convert import export_tokenizer
from transformers import AutoTokenizer
for folder in sys.argv[1:]:
    export_tokenizer(AutoTokenizer.from_pretrained(folder), folder)
"""
# Long words, which take time, are left to the bundled checkpoint's tokenizer.
ASKED = [check for check in CHECKS if not check.endswith("long-words")]
NUL = {f"{aspect}-control-characters" for aspect in ("encode", "decode", "stream", "round-trip")}
AFTER_NEWLINE = {f"stream-{kind}" for kind in ("prompts", "words", "control-characters", "special-tokens")}
BYTES = {"decode-special-tokens", "decode-any-tokens", "stream-any-tokens"}
FIRST_SPACE = {check for check in ASKED if check.startswith(("decode-", "stream-", "round-trip-"))}
KNOWN = {
    ("pytorch", "sentencepiece"): AFTER_NEWLINE,
    ("npu-library", "sentencepiece"): AFTER_NEWLINE,
    ("openvino", "sentencepiece"): AFTER_NEWLINE | {"stream-any-tokens"},
    ("openvino", "split"): {"stream-any-tokens"},
    ("ort-genai", "sentencepiece"): FIRST_SPACE | NUL,
    ("ort-genai", "split"): NUL | BYTES,
}


@pytest.fixture(scope="module", params=TARGETS)
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapter]:
    checkpoint = find_checkpoint(str(DEFAULT_CHECKPOINT))
    with opened(request.param, checkpoint, tmp_path_factory.mktemp("worker")) as made:
        yield made


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of each kind, OpenVINO's models among them."""
    made = {kind: tmp_path_factory.mktemp("files") / kind for kind in tokenizer_files.KINDS}
    for kind, folder in made.items():
        tokenizer_files.KINDS[kind](folder)
    python = find_interpreter(load_backend("openvino"), {}, TREE)
    subprocess.run([str(python), "-c", CONVERT, *map(str, made.values())], check=True, capture_output=True)
    return made


def with_tokenizer(artifact: Path, files: Path, out: Path) -> str:
    """A copy of an artifact with its tokenizer replaced by another."""
    shutil.copytree(artifact, out, ignore=shutil.ignore_patterns("*tokenizer*", "chat_template.jinja"))
    for file in files.glob("*tokenizer*"):
        shutil.copy(file, out)
    return str(out)


@pytest.mark.parametrize("kind", tokenizer_files.KINDS)
def test_tokenizers_agree_on_all_that_is_not_a_known_finding(
    adapter: Adapter, kind: str, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suite, "_CAUSES", 0)  # which checks fail is enough
    if adapter.backend.name == "npu-library" and kind != "sentencepiece":
        pytest.skip("the same code as pytorch's, in older versions, and a process each")
    adapter.load(artifact=with_tokenizer(adapter.artifact, files[kind], tmp_path / "artifact"))
    target = target_of(adapter.call, files[kind])
    failing: dict[str, str] = {}
    for check in ASKED:
        try:
            verdict = CHECKS[check](target)
        except Unsupported:
            continue
        if verdict.outcome is not Outcome.PASS:
            failing[check] = verdict.message
    known: Any = KNOWN.get((adapter.backend.name, kind.removesuffix("-begun")), set())
    assert set(failing) == known, failing


def test_openvinos_other_cores_do_not_get_the_tokenizers_extension(files: dict[str, Path]) -> None:
    code = (
        "import sys, openvino; from pathlib import Path\n"
        "from harness.backends.openvino_tokenizer import OpenVinoTokenizer\n"
        "before = openvino.Core.__init__\n"
        "text = OpenVinoTokenizer(Path(sys.argv[1])).decode([300], special=True)\n"
        "print(text != '', openvino.Core.__init__ is before)"
    )
    python = find_interpreter(load_backend("openvino"), {}, TREE)
    command = [str(python), "-c", code, str(files["split"])]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]
