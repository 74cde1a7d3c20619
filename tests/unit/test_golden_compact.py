"""Compact goldens on disk: written, verified, refused where they were changed, and read as whole ones are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from harness.checkpoint import Checkpoint, sha256_file
from harness.compact import CompactRows
from harness.compact_plan import Plan
from harness.errors import GoldenError, UsageError
from harness.golden import MANIFEST, Golden, open_golden, verify_files
from harness.golden_compact import plan_of_form
from harness.golden_manifest import COMPACT, COMPACT_SCHEMA, FRESH, Manifest
from harness.golden_writing import write_golden
from harness.prompts import PromptSuite

PLAN = Plan(vocabulary=24, top=4, even=6, drawn=5, seed=3)


class Both(NamedTuple):
    """The same golden in both forms."""

    compact: Path
    whole: Path
    logits: dict[str, NDArray[np.float32]]


@pytest.fixture
def both(made: Any, suite: PromptSuite, tmp_path: Path) -> Both:
    manifest = msgspec.structs.replace(made.manifest, schema=COMPACT_SCHEMA, compact=PLAN)
    folders = tmp_path / "compact" / suite.name, tmp_path / "whole" / suite.name
    write_golden(folders[0], manifest, made.logits, made.hidden)
    write_golden(folders[1], *made)
    return Both(*folders, made.logits)


def _edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest and seal it again: a forger would."""
    content = json.loads((folder / MANIFEST).read_bytes())
    change(content)
    sealed = msgspec.to_builtins(msgspec.convert(content, Manifest).sealed())
    (folder / MANIFEST).write_text(json.dumps(sealed), encoding="utf-8")


def _replace_rows(folder: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    """Other rows, with a manifest that knows of them."""
    tensors = load_file(folder / COMPACT)
    change(tensors)
    save_file(tensors, folder / COMPACT)
    entry = {"sha256": sha256_file(folder / COMPACT), "bytes": (folder / COMPACT).stat().st_size}
    _edit(folder, lambda manifest: manifest["files"].update({COMPACT: entry}))


def test_a_compact_golden_has_rows_and_no_logits(both: Both) -> None:
    golden = verify_files(both.compact)
    assert sorted(path.name for path in both.compact.iterdir()) == [COMPACT, "hidden.safetensors", MANIFEST]
    assert golden.plan == PLAN
    with pytest.raises(GoldenError, match="does not hold every logit") as caught:
        golden.logits("one")
    assert "--form=full" in caught.value.remedy
    np.testing.assert_array_equal(golden.rows("one").best(), both.logits["one"].argmax(axis=1))
    assert golden.hidden_states("two") is not None


def test_a_whole_golden_says_nothing_of_forms(both: Both) -> None:
    content = json.loads((both.whole / MANIFEST).read_bytes())
    assert content["schema"] == 1
    assert "compact" not in content
    golden = verify_files(both.whole)
    assert golden.plan is None
    np.testing.assert_array_equal(golden.rows("two").best(), both.logits["two"].argmax(axis=1))


def test_a_compact_golden_is_opened_and_checked_as_a_whole_one_is(
    both: Both, checkpoint: Checkpoint, suite: PromptSuite
) -> None:
    root = both.compact.parent
    assert open_golden([root], checkpoint, checkpoint.fingerprint(), suite).plan == PLAN
    path = both.compact / COMPACT
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(GoldenError, match="its SHA-256 differs"):
        open_golden([root], checkpoint, checkpoint.fingerprint(), suite)
    path.unlink()
    with pytest.raises(GoldenError, match="is missing"):
        open_golden([root], checkpoint, checkpoint.fingerprint(), suite)


def test_the_rows_that_choose_know_the_tokens_they_chose(both: Both) -> None:
    compact, whole = verify_files(both.compact), verify_files(both.whole)
    for case in compact.manifest.cases:
        for cached in (False, True):
            rows = compact.choosing_rows(case.id, cached=cached)
            exact = whole.choosing_rows(case.id, cached=cached)
            assert rows.shape == exact.shape
            found = rows.regret(case.continuation)
            assert found.known.all()
            np.testing.assert_allclose(found.least, exact.regret(case.continuation).least, rtol=1e-12)


def test_rows_past_longropes_switch_are_kept_too(made: Any, suite: PromptSuite, tmp_path: Path) -> None:
    cases = (msgspec.structs.replace(made.manifest.cases[0], switch=4), made.manifest.cases[1])
    manifest = msgspec.structs.replace(made.manifest, schema=COMPACT_SCHEMA, compact=PLAN, cases=cases)
    fresh = {"one": made.logits["one"][4:] + 1}
    write_golden(tmp_path / suite.name, manifest, made.logits, {}, fresh)
    golden = verify_files(tmp_path / suite.name)
    assert FRESH not in golden.manifest.files
    np.testing.assert_array_equal(golden.fresh_rows("one").best(), fresh["one"].argmax(axis=1))
    rows = golden.choosing_rows("one")
    expected = np.concatenate([made.logits["one"][:4], fresh["one"]])[2:4]
    np.testing.assert_array_equal(rows.best(), expected.argmax(axis=1))
    assert isinstance(rows, CompactRows)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.update(schema=1),
        lambda content: content["compact"].update(vocabulary=25),
        lambda content: content["compact"].update(top=24),
        lambda content: content["compact"].update(even=0),
        lambda content: content["compact"].update(drawn=-1),
        lambda content: content["compact"].update(even=25),
        lambda content: content["compact"].update(seed=-1),
        lambda content: content["compact"].update(drawn=1 << 40),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(both: Both, change: Callable[[dict[str, Any]], object]) -> None:
    _edit(both.compact, change)
    with pytest.raises(GoldenError) as caught:
        verify_files(both.compact)
    assert caught.value.remedy.startswith("phi3-conformance golden record")


def test_a_whole_golden_does_not_pass_for_a_compact_one(both: Both) -> None:
    _edit(both.whole, lambda content: content.update(schema=2))
    with pytest.raises(GoldenError, match="schema 2 does not go with whole rows"):
        verify_files(both.whole)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("one"),
        lambda tensors: tensors.update(one=tensors["one"][:-1]),
        lambda tensors: tensors.update(one=tensors["one"][:, 4:].copy()),
        lambda tensors: tensors.update(one=tensors["one"].view(np.int8)),
        lambda tensors: tensors["one"].fill(255),
    ],
)
def test_rows_that_are_no_rows_are_refused(both: Both, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    _replace_rows(both.compact, change)
    golden: Golden = verify_files(both.compact)
    with pytest.raises(GoldenError) as caught:
        golden.rows("one")
    assert caught.value.remedy.startswith("phi3-conformance golden record")


def test_the_form_follows_the_vocabulary_unless_it_is_given() -> None:
    assert plan_of_form(2048, None) is None
    assert plan_of_form(32064, None) is not None
    assert plan_of_form(32064, "full") is None
    small = plan_of_form(2048, "compact")
    assert small is not None
    assert small.row.itemsize <= 512
    with pytest.raises(UsageError, match="too small for compact rows"):
        plan_of_form(24, "compact")
