from __future__ import annotations

from pathlib import Path

import pytest

from harness.backend import Recipe, load_backends
from harness.errors import UsageError
from harness.signoff.candidates import Candidate, Plan, read_plan, recipe_of, with_ready_made
from harness.signoff.suite import CANDIDATES
from harness.target import Precision

HEAD = 'schema = 1\n[[candidate]]\nname = "one"\ntarget = "openvino:cpu:int4"\n'


def read(tmp_path: Path, text: str) -> Plan:
    path = tmp_path / "candidates.toml"
    path.write_text(text, encoding="utf-8")
    return read_plan(path)


def test_a_plan_is_read(tmp_path: Path) -> None:
    plan = read(tmp_path, HEAD + 'recipe = "int4-sym-g128-r1.0"\n')
    assert plan.candidate == (Candidate("one", "openvino:cpu:int4", recipe="int4-sym-g128-r1.0"),)
    assert plan.to_pass() == ("one",)


def test_a_ready_made_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    plan = read(tmp_path, HEAD + 'artifact = "vendor"\n')
    assert plan.candidate[0].artifact == str((tmp_path / "vendor").resolve())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "schema"),
        ("schema = 2\ncandidate = []", "schema 2"),
        ("schema = 1\ncandidate = []", "no candidates"),
        ("schema = 1", "candidate"),
        (HEAD + 'colour = "red"', "colour"),
        (HEAD.replace("one", "One"), "lower case"),
        (HEAD.replace("one", "../one"), "lower case"),
        (HEAD + HEAD.partition("\n")[2], "twice"),
        (HEAD + 'recipe = "a"\noptions = ["b"]', "more than one"),
        (HEAD + 'recipe = "a"\nartifact = "b"', "more than one"),
        (HEAD.replace("openvino:cpu:int4", "openvino"), "openvino"),
        ("schema = ", ""),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        read(tmp_path, text)
    assert said in caught.value.problem


def test_candidates_are_added_and_chosen(tmp_path: Path) -> None:
    two = HEAD + '[[candidate]]\nname = "two"\ntarget = "openvino:cpu:int8"\n'
    (tmp_path / "given").mkdir()
    plan = with_ready_made(read(tmp_path, two), [f"vendor=ort-genai:cpu:int4={tmp_path / 'given'}"], ["two"])
    assert [candidate.name for candidate in plan.candidate] == ["two", "vendor"]
    assert plan.candidate[1].artifact == str((tmp_path / "given").resolve())


@pytest.mark.parametrize(
    ("ready_made", "only", "said"),
    [
        (["vendor"], [], "NAME=TARGET=FOLDER"),
        (["vendor=openvino:cpu:int4=nowhere-at-all"], [], "no folder"),
        (["one=openvino:cpu:int4=."], [], "twice"),
        ([], ["other"], "no candidate 'other'"),
    ],
)
def test_what_cannot_be_added_or_chosen_is_refused(
    tmp_path: Path, ready_made: list[str], only: list[str], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        with_ready_made(read(tmp_path, HEAD), ready_made, only)


def test_options_are_the_exporters_whole_and_have_a_recipe_of_their_own() -> None:
    candidate = Candidate("a", "ort-genai:cpu:int4", options=("-p", "int4", "-e", "cpu"))
    recipe = recipe_of(candidate, load_backends())
    assert isinstance(recipe, Recipe)
    assert (recipe.precision, recipe.options) == (Precision.INT4, ("-p", "int4", "-e", "cpu"))
    assert recipe.exporter
    assert recipe.name.endswith("-cpu")
    other = recipe_of(Candidate("a", "ort-genai:cpu:int4", options=("-p", "int4")), load_backends())
    assert isinstance(other, Recipe)
    assert other.name != recipe.name


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (Candidate("a", "nobody:cpu:int4"), "no backend 'nobody'"),
        (Candidate("a", "openvino:cpu:int4", recipe="int5"), "no recipe 'int5'"),
        (Candidate("a", "openvino:cpu:int8", recipe="int4-sym-g128-r1.0"), "no recipe"),
        (Candidate("a", "pytorch:cpu:fp16", options=("--x",)), "nothing is exported"),
    ],
)
def test_a_candidate_that_cannot_be_is_refused(candidate: Candidate, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        recipe_of(candidate, load_backends())


def test_the_examples_can_be_made_and_cover_the_usual_schemes() -> None:
    plan = read_plan(CANDIDATES)
    backends = load_backends()
    for candidate in plan.candidate:
        recipe_of(candidate, backends)
    targets = [candidate.target for candidate in plan.candidate]
    assert targets.count("openvino:cpu:int4") >= 4
    assert any(target.startswith("ort-genai:") for target in targets)
    assert set(plan.to_pass()) <= {candidate.name for candidate in plan.candidate}
