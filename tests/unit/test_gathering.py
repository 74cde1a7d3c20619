"""Streamed references: what is known to be asked for is computed in the same pass over the weights, and kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.arithmetic import Arithmetic, CachePrecision
from harness.decompose import ArtifactReferences, Inference
from harness.errors import Stage
from harness.kept import Kept
from harness.target import Precision
from harness.wanted import MOST_ROWS, VARIANTS, Wanted, fitting, rows
from harness.worker import Worker

WIDTH = 6
EMULATED = Arithmetic(Precision.FP32, 32, CachePrecision.U8)
TEXTS = [((5, 6, 7, 8), 2), ((9, 8, 7), 3), ((1, 2, 3, 4, 5, 6), 0)]


class FakeWorker:
    """A worker with a model of its own: logits that tell which text and which arithmetic they are of."""

    def __init__(self, layers: int = 3) -> None:
        self.running = True
        self.layers = layers
        self.passes: list[list[Wanted]] = []
        self._left = 0
        self._results: list[Any] = []

    def call(self, stage: Stage, operation: str, **asked: Any) -> Any:  # noqa: ARG002 - the worker's signature
        if operation == "open":
            return {"missing": []}
        if operation == "open_reference":
            assert asked["streamed"]
            return ""
        if operation == "holds_codes":
            return True
        if operation == "begin_reference":
            self.passes.append(asked["asked"]["wanted"])
            self._left, self._results = self.layers, [answer(one) for one in self.passes[-1]]
            return None
        if operation == "advance_reference":
            self._left -= 1
            return self.layers - self._left - 1 if self._left >= 0 else None
        assert operation == "reference_result"
        return self._results.pop(0)


def answer(one: Wanted) -> dict[str, Any]:
    """What the fake computes for a text: the device computes with `EMULATED`, and lies nearest to that."""
    n = len(one.tokens)
    base = np.arange(n * WIDTH, dtype=np.float32).reshape(n, WIDTH) ** 2 + np.float32(sum(one.tokens))
    if one.yardsticks:
        return {f"variant {number}": np.full(n, 1e-3 * (number + 1)) for number in range(VARIANTS)}
    apart = np.zeros(WIDTH, np.float32)
    apart[0] = 1.0 if one.arithmetic == EMULATED else 2.0
    return {"logits": base + apart}


@pytest.fixture
def worker() -> FakeWorker:
    return FakeWorker()


@pytest.fixture
def references(worker: FakeWorker, tmp_path: Path) -> ArtifactReferences:
    """Streamed references, kept below an absolute path that takes the cache's place."""
    return made(worker, tmp_path)


def made(worker: FakeWorker, folder: Path, told: list[str] | None = None) -> ArtifactReferences:
    tell = told.append if told is not None else (lambda _: None)
    return ArtifactReferences(
        lambda: cast(Worker, worker), {}, str(folder / "kept"), lambda _: None, streamed=True, tell=tell
    )


def infer(references: ArtifactReferences) -> Inference:
    probes = [(tokens, prefill, answer(Wanted(tokens, prefill, EMULATED))["logits"]) for tokens, prefill in TEXTS[:2]]
    return references.infer([Arithmetic(), EMULATED], probes)


def test_an_inference_is_one_pass_for_all_candidates_and_one_for_its_yardsticks(
    references: ArtifactReferences, worker: FakeWorker
) -> None:
    found = infer(references)
    assert found.arithmetic == EMULATED
    assert [len(one) for one in worker.passes[:1]] == [4]  # two candidates of two probes
    assert all(one.yardsticks for one in worker.passes[1][:1])
    assert len(worker.passes) == 3  # a probe that is not foreseen brings no other's yardsticks with it


def test_all_prompts_of_a_suite_are_taken_apart_in_one_pass(references: ArtifactReferences, worker: FakeWorker) -> None:
    references.foresee(TEXTS, exact=True)
    infer(references)
    before = len(worker.passes)
    assert before == 2
    for tokens, prefill in TEXTS:  # what decompose asks for
        for arithmetic in (Arithmetic(), EMULATED):
            expected = answer(Wanted(tokens, prefill, arithmetic))["logits"]
            np.testing.assert_array_equal(references.logits(tokens, prefill, arithmetic), expected)
        assert set(references.yardsticks(tokens, prefill, EMULATED)) == {f"variant {i}" for i in range(VARIANTS)}
    assert len(worker.passes) == before  # the yardsticks' pass of the inference had room for everything


def test_what_was_computed_is_found_again_by_another_run(
    references: ArtifactReferences, worker: FakeWorker, tmp_path: Path
) -> None:
    references.foresee(TEXTS, exact=True)
    infer(references)
    later = FakeWorker()
    again = made(later, tmp_path)
    again.foresee(TEXTS, exact=True)
    infer(again)
    for tokens, prefill in TEXTS:
        expected = answer(Wanted(tokens, 0 if prefill == 1 else prefill, Arithmetic()))
        np.testing.assert_array_equal(again.logits(tokens, prefill, Arithmetic()), expected["logits"])
    assert not later.passes
    assert worker.passes


def test_where_nothing_can_be_kept_only_what_is_asked_is_computed_twice(worker: FakeWorker, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("no folder", encoding="utf-8")
    references = made(worker, tmp_path)
    references.foresee(TEXTS, exact=True)
    infer(references)
    for _ in range(2):
        for tokens, prefill in TEXTS * 4:
            references.yardsticks(tokens, prefill, EMULATED)
    sizes = [len(one) for one in worker.passes]
    assert sum(sizes) - len(sizes) <= 4 + 3 * len(TEXTS)  # others than the one asked for came along once


def test_a_pass_tells_how_far_it_is(worker: FakeWorker, tmp_path: Path) -> None:
    told: list[str] = []
    made(worker, tmp_path, told).logits(*TEXTS[0], Arithmetic())
    assert [line.rpartition(" ")[2] for line in told] == ["1", "2", "3"]


@given(
    st.lists(
        st.builds(
            Wanted,
            st.lists(st.integers(0, 3), min_size=1, max_size=900).map(tuple),
            st.just(1),
            st.sampled_from([Arithmetic(), EMULATED]),
            st.booleans(),
        ),
        min_size=1,
        max_size=8,
    )
)
def test_a_pass_takes_what_is_asked_for_and_no_more_than_fits(wanted: list[Wanted]) -> None:
    found = fitting(wanted[0], wanted[1:])
    assert found[0] == wanted[0]
    assert len(found) == len(set(found))
    assert set(found) <= set(wanted)
    assert len(found) == 1 or rows(found) <= MOST_ROWS
    for one in set(wanted) - set(found):
        assert rows([*found, one]) > MOST_ROWS


def test_the_rows_of_yardsticks_are_those_of_the_reference_s_variants() -> None:
    source = (Path(__file__).parents[2] / "harness" / "reference" / "kernels.py").read_text(encoding="utf-8")
    listed = source.partition("VARIANTS = (")[2].partition("\n)")[0]
    assert listed.count("Variant(") == VARIANTS


def test_a_file_that_is_cut_is_as_none(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.put("one", {"rows": np.arange(4.0)}, on_disk=True)
    path = next(tmp_path.glob("one*"))
    path.write_bytes(path.read_bytes()[:-8])
    assert Kept(tmp_path).get("one") is None
    assert Kept(tmp_path).get("two") is None
