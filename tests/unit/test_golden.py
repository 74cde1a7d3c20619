from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness.checkpoint import Checkpoint, Fingerprint, open_checkpoint, sha256_file
from harness.errors import GoldenError
from harness.golden import (
    HIDDEN,
    LOGITS,
    MANIFEST,
    Golden,
    Manifest,
    golden_roots,
    open_golden,
    user_root,
    verify_files,
)
from harness.golden_writing import write_golden
from harness.prompts import PromptSuite, read_suite


class Setup(NamedTuple):
    """A golden on disk, and what it belongs to."""

    root: Path
    checkpoint: Checkpoint
    suite: PromptSuite

    @property
    def folder(self) -> Path:
        return self.root / self.suite.name

    def open(self) -> Golden:
        return open_golden([self.root], self.checkpoint, self.checkpoint.fingerprint(), self.suite)


@pytest.fixture
def setup(golden_root: Path, checkpoint: Checkpoint, suite: PromptSuite) -> Setup:
    return Setup(golden_root, checkpoint, suite)


def _refused(setup: Setup) -> str:
    """The problem for which a golden is refused; every refusal comes with the command that records anew."""
    with pytest.raises(GoldenError) as caught:
        setup.open()
    remedy = caught.value.remedy
    assert "phi3-conformance golden record --prompts=" in remedy
    assert str(setup.suite.path) in remedy
    assert f"--checkpoint={setup.checkpoint.path}" in remedy
    return caught.value.problem


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again where it still fits its schema: a forger would."""
    content = json.loads((folder / MANIFEST).read_bytes())
    change(content)
    with contextlib.suppress(msgspec.ValidationError):
        content = msgspec.to_builtins(msgspec.convert(content, Manifest).sealed())
    (folder / MANIFEST).write_text(json.dumps(content), encoding="utf-8")


def _replace_logits(folder: Path, tensors: dict[str, NDArray[Any]]) -> None:
    """Other logits, with a manifest that knows of them."""
    path = folder / LOGITS
    save_file(tensors, path)
    entry = {"sha256": sha256_file(path), "bytes": path.stat().st_size}
    _edit(folder, lambda manifest: manifest["files"].update({LOGITS: entry}))


def test_a_golden_gives_what_was_recorded(setup: Setup, made: Any) -> None:
    golden = setup.open()
    for name, expected in made.logits.items():
        np.testing.assert_array_equal(golden.logits(name), expected)
    hidden = golden.hidden_states("two")
    assert hidden is not None
    np.testing.assert_array_equal(hidden, made.hidden["two"])
    assert golden.hidden_states("one") is None
    assert golden.case("one").sequence == (1, 5, 6, 7, 2)
    assert golden.manifest.noise == made.manifest.noise


def test_a_golden_without_hidden_states_is_whole(setup: Setup) -> None:
    (setup.folder / HIDDEN).unlink()
    _edit(setup.folder, lambda manifest: manifest["files"].pop(HIDDEN))
    assert setup.open().hidden_states("two") is None


def test_a_missing_golden_names_checkpoint_and_suite(setup: Setup) -> None:
    shutil.rmtree(setup.folder)
    problem = _refused(setup)
    assert "there is no golden of phi-3-random" in problem
    assert "'tiny'" in problem


def test_the_first_root_that_has_the_suite_is_taken(setup: Setup, tmp_path: Path) -> None:
    fingerprint = setup.checkpoint.fingerprint()
    found = open_golden([tmp_path / "none", setup.root], setup.checkpoint, fingerprint, setup.suite)
    assert found.folder == setup.folder
    broken = tmp_path / "broken" / setup.suite.name
    broken.mkdir(parents=True)
    (broken / MANIFEST).write_text("{}", encoding="utf-8")
    both = [tmp_path / "broken", setup.root]
    assert open_golden(both, setup.checkpoint, fingerprint, setup.suite).folder == setup.folder
    with pytest.raises(GoldenError, match="broken"):
        open_golden(both[:1], setup.checkpoint, fingerprint, setup.suite)


def test_a_golden_of_these_prompts_is_preferred_to_one_of_others_of_the_same_name(setup: Setup, tmp_path: Path) -> None:
    shutil.copytree(setup.root, tmp_path / "other")
    _edit(tmp_path / "other" / setup.suite.name, lambda manifest: manifest.update(suite_sha256="0" * 64))
    roots = [tmp_path / "other", setup.root]
    found = open_golden(roots, setup.checkpoint, setup.checkpoint.fingerprint(), setup.suite)
    assert found.folder == setup.folder


def test_a_golden_of_changed_prompts_is_stale(setup: Setup) -> None:
    path = setup.suite.path
    path.write_text(path.read_text(encoding="utf-8").replace('"a"', '"b"'), encoding="utf-8")
    problem = _refused(setup._replace(suite=read_suite(path)))
    assert "stale" in problem
    assert str(path) in problem


@pytest.mark.parametrize(
    "parts", [["weights"], ["tokenizer"], ["config"], ["weights", "config"], ["weights", "tokenizer", "config"]]
)
def test_a_golden_of_another_checkpoint_says_what_differs(setup: Setup, parts: list[str]) -> None:
    _edit(setup.folder, lambda manifest: manifest["fingerprint"].update(dict.fromkeys(parts, "0" * 64)))
    problem = _refused(setup)
    assert "another checkpoint" in problem
    assert f": {', '.join(parts)} differ" in problem


def test_a_golden_of_another_checkpoint_is_not_to_be_overwritten(setup: Setup) -> None:
    _edit(setup.folder, lambda manifest: manifest["fingerprint"].update(weights="0" * 64))
    with pytest.raises(GoldenError) as caught:
        setup.open()
    assert caught.value.remedy.startswith("leave --golden out")
    assert "--golden=" not in caught.value.remedy


def test_where_there_is_no_golden_says_where_was_looked(setup: Setup, tmp_path: Path) -> None:
    elsewhere = tmp_path / "else where"
    with pytest.raises(GoldenError, match=f"in {elsewhere / 'tiny'}") as caught:
        open_golden([elsewhere], setup.checkpoint, setup.checkpoint.fingerprint(), setup.suite)
    assert f"'--golden={elsewhere}'" in caught.value.remedy


def test_a_folder_of_goldens_is_none_and_names_those_in_it(setup: Setup) -> None:
    with pytest.raises(GoldenError, match="holds goldens in folders: tiny"):
        verify_files(setup.root)


@pytest.mark.parametrize("name", [LOGITS, HIDDEN])
def test_a_truncated_file_is_refused(setup: Setup, name: str) -> None:
    path = setup.folder / name
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{name} is truncated" in _refused(setup)


@pytest.mark.parametrize("name", [LOGITS, HIDDEN])
@pytest.mark.parametrize("place", [0, -1])
def test_one_changed_byte_is_noticed(setup: Setup, name: str, place: int) -> None:
    content = bytearray((setup.folder / name).read_bytes())
    content[place] ^= 1
    (setup.folder / name).write_bytes(content)
    assert f"{name} was changed" in _refused(setup)


@pytest.mark.parametrize("name", [LOGITS, HIDDEN])
def test_a_missing_file_is_named(setup: Setup, name: str) -> None:
    (setup.folder / name).unlink()
    assert f"{name} is missing" in _refused(setup)


@pytest.mark.parametrize("name", ["extra.bin", "../tiny/logits.safetensors", "/etc/hostname"])
def test_a_file_that_goldens_do_not_have_is_refused_by_name(setup: Setup, name: str) -> None:
    _edit(setup.folder, lambda manifest: manifest["files"].update({name: {"sha256": "0", "bytes": 1}}))
    assert f"unknown file {name!r}" in _refused(setup)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 5000])
def test_a_corrupt_manifest_is_refused(setup: Setup, content: bytes) -> None:
    (setup.folder / MANIFEST).write_bytes(content)
    assert "cannot be read" in _refused(setup)


def test_a_manifest_of_another_schema_is_refused_as_such_whatever_else_it_has(setup: Setup) -> None:
    (setup.folder / MANIFEST).write_text('{"schema": 3, "new": true}', encoding="utf-8")
    problem = _refused(setup)
    assert "schema 3" in problem
    assert "reads 1, 2" in problem


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda manifest: manifest.pop("noise"), "noise"),
        (lambda manifest: manifest.update(extra=1), "extra"),
        (lambda manifest: manifest["cases"][0].pop("tokens"), "tokens"),
        (lambda manifest: manifest.update(vocabulary="many"), "vocabulary"),
        (lambda manifest: manifest.update(cases=[]), "no cases"),
        (lambda manifest: manifest["files"].pop(LOGITS), LOGITS),
    ],
)
def test_a_manifest_that_breaks_its_schema_is_refused_by_field(
    setup: Setup, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    _edit(setup.folder, change)
    assert named in _refused(setup)


def _reading_refused(setup: Setup, name: str) -> str:
    golden = setup.open()
    with pytest.raises(GoldenError) as caught:
        golden.logits(name)
    assert caught.value.remedy.startswith("phi3-conformance golden record")
    return caught.value.problem


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_finite_are_refused_though_the_hashes_fit(setup: Setup, made: Any, bad: float) -> None:
    made.logits["one"][3, 4] = bad
    _replace_logits(setup.folder, made.logits)
    assert "one has NaN or Inf" in _reading_refused(setup, "one")
    assert setup.open().logits("two").shape == (3, 24)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 24), dtype=np.float32),
        np.zeros((6, 24), dtype=np.float32),
        np.zeros((5, 23), dtype=np.float32),
        np.zeros((1, 5, 24), dtype=np.float32),
        np.zeros((5, 24), dtype=np.float64),
        np.zeros((5, 24), dtype=np.float16),
    ],
    ids=lambda array: f"{array.dtype}-{array.shape}",
)
def test_logits_of_another_shape_or_type_are_refused_though_the_hashes_fit(
    setup: Setup, made: Any, wrong: NDArray[Any]
) -> None:
    _replace_logits(setup.folder, {**made.logits, "one": wrong})
    problem = _reading_refused(setup, "one")
    assert str(wrong.shape) in problem
    assert str(wrong.dtype) in problem
    assert "float32 (5, 24)" in problem


def test_a_case_without_logits_is_refused(setup: Setup, made: Any) -> None:
    _replace_logits(setup.folder, {"two": made.logits["two"]})
    assert "one" in _reading_refused(setup, "one")


def test_a_prompt_that_was_not_recorded_is_refused(setup: Setup) -> None:
    assert "no case 'three'" in _reading_refused(setup, "three")


def test_goldens_lie_in_a_folder_of_their_checkpoint(checkpoint: Checkpoint) -> None:
    one, other = Fingerprint("a", "b", "c"), Fingerprint("a", "b", "d")
    assert user_root(checkpoint, one) != user_root(checkpoint, other)
    assert golden_roots(checkpoint, one) == (user_root(checkpoint, one),)


def test_the_bundled_checkpoint_has_its_goldens_beside_it(checkpoint: Checkpoint, tree: Path) -> None:
    bundled = msgspec.structs.replace(checkpoint, path=tree / "golden" / "phi-3-tiny" / "checkpoint")
    fingerprint = Fingerprint("a", "b", "c")
    assert golden_roots(bundled, fingerprint) == (tree / "golden" / "phi-3-tiny", user_root(bundled, fingerprint))


def test_a_manifest_survives_json(made: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(made.manifest), type=Manifest) == made.manifest


@pytest.mark.parametrize("old", ['"ended": false', '"margins"', '"centred_rms_mean"'])
def test_a_manifest_edited_by_hand_is_refused(setup: Setup, old: str) -> None:
    path = setup.folder / MANIFEST
    text = path.read_text(encoding="utf-8")
    assert old in text
    number = text.index(old) + len(old)
    if "ended" in old:
        path.write_text(text.replace(old, '"ended": true', 1), encoding="utf-8")
    else:
        digit = next(i for i in range(number, len(text)) if text[i] in "12345678")
        path.write_text(text[:digit] + "9" + text[digit + 1 :], encoding="utf-8")
    assert "own hash differs" in _refused(setup)


@pytest.fixture
def crossing(setup: Setup, made: Any) -> Setup:
    """The golden with a case that crosses a switch at 4 tokens while decoding."""
    cases = (msgspec.structs.replace(made.manifest.cases[0], switch=4), made.manifest.cases[1])
    fresh = {"one": made.logits["one"][4:] + 1}
    write_golden(setup.folder, msgspec.structs.replace(made.manifest, cases=cases), made.logits, made.hidden, fresh)
    return setup


def test_a_golden_across_the_switch_holds_both_forms(crossing: Setup, made: Any) -> None:
    golden = verify_files(crossing.folder)
    cached = made.logits["one"]
    np.testing.assert_array_equal(golden.logits("one"), cached)
    np.testing.assert_array_equal(golden.fresh_logits("one"), cached[4:] + 1)
    np.testing.assert_array_equal(golden.choosing_logits("one", cached=True), cached[2:4])
    np.testing.assert_array_equal(golden.choosing_logits("two"), made.logits["two"][1:2])


def test_an_answer_is_chosen_by_the_form_that_is_computed_anew(setup: Setup, made: Any) -> None:
    cases = (msgspec.structs.replace(made.manifest.cases[0], switch=3), made.manifest.cases[1])
    fresh = {"one": made.logits["one"][3:] + 1}
    write_golden(setup.folder, msgspec.structs.replace(made.manifest, cases=cases), made.logits, {}, fresh)
    chosen = verify_files(setup.folder).choosing_logits("one")
    np.testing.assert_array_equal(chosen, [made.logits["one"][2], made.logits["one"][3] + 1])


def test_a_switch_that_the_configuration_does_not_have_is_refused(crossing: Setup) -> None:
    assert "knows nothing of the switch of LongRoPE" in _refused(crossing)


def test_a_golden_of_before_the_switch_was_known_is_refused(
    make_folder: Callable[..., Path], setup: Setup, made: Any
) -> None:
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    folder = make_folder("long", original_max_position_embeddings=4, rope_scaling={"type": "longrope", **factors})
    checkpoint = open_checkpoint(folder)
    manifest = msgspec.structs.replace(made.manifest, fingerprint=checkpoint.fingerprint())
    write_golden(setup.folder, manifest, made.logits, {})
    problem = _refused(Setup(setup.root, checkpoint, setup.suite))
    assert "knows nothing of the switch of LongRoPE, which its answers pass" in problem


@pytest.mark.parametrize(
    ("switch", "files", "said"),
    [(2, True, "does not cross 2 tokens"), (5, True, "does not cross 5 tokens"), (4, False, "no fresh.safetensors")],
)
def test_a_switch_that_cannot_be_is_refused(crossing: Setup, switch: int, files: bool, said: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest["cases"][0]["switch"] = switch
        if not files:
            del manifest["files"]["fresh.safetensors"]

    _edit(crossing.folder, change)
    with pytest.raises(GoldenError, match=said):
        verify_files(crossing.folder)
