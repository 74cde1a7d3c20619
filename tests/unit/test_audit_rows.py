"""The audit reads a tensor by some rows at a time: a vocabulary of 200,064 in float64 would fill the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import save_file

import exported
from harness import audit_grid
from harness.audit import audit
from harness.checkpoint import Checkpoint
from harness.errors import CheckpointError
from harness.tensor_files import TensorFiles, TensorRows
from harness.weights import Plain

EMBEDDING, DOWN = "model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize("scheme", ["float16", "bfloat16", "sym4", "kquant8", "awq"])
def test_a_report_does_not_hang_on_how_many_rows_are_read_at_once(
    scheme: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt() -> exported.Artifact:
        made = exported.export(checkpoint, scheme)
        for name, row in ((EMBEDDING, 21), (DOWN, 9)):
            content = made.stored[made.place(name)].content
            held = np.array(content.values if isinstance(content, Plain) else content.codes)
            held[row] = held[row - 3]
            made.change(name, **{"values" if isinstance(content, Plain) else "codes": held})
        return made

    whole = audit(spoilt(), checkpoint)
    assert {(finding.tensor, finding.row) for finding in whole.findings} >= {(EMBEDDING, 21), (DOWN, 9)}
    sizes: list[int] = []
    read = TensorRows.__getitem__

    def watched(rows: TensorRows, index: Any) -> NDArray[np.float64]:
        found = read(rows, index)
        sizes.append(found.size)
        return found

    monkeypatch.setattr(TensorRows, "__getitem__", watched)
    monkeypatch.setattr(audit_grid, "_CHUNK", 40)
    monkeypatch.setattr("harness.audit_explain._ROWS", 2)
    assert audit(spoilt(), checkpoint) == whole
    assert max(sizes) <= 64


@given(start=st.integers(0, 5), count=st.integers(0, 9), data=st.data())
def test_rows_are_those_of_the_tensor(start: int, count: int, data: st.DataObject) -> None:
    held = np.arange(24, dtype=np.float32).reshape(6, 4)
    bits = (held.view(np.uint32) >> 16).astype(np.uint16)
    divisor = np.array([1, 2, 4, 8])
    whole = held[start : start + count]
    for mapped, dtype in ((held, "float32"), (bits, "bfloat16")):
        rows = TensorRows(mapped[start : start + count], dtype)
        assert rows.shape == whole.shape
        np.testing.assert_array_equal(rows[:], whole)
        assert rows[:].dtype == np.float64
        if whole.shape[0]:
            picked = data.draw(st.lists(st.integers(0, whole.shape[0] - 1)))
            np.testing.assert_array_equal(rows.over(divisor)[np.array(picked, dtype=np.intp)], whole[picked] / divisor)
            np.testing.assert_array_equal(rows[whole.shape[0] - 1], whole[-1])


def test_a_tensor_that_is_not_there_has_no_rows(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 3), dtype=np.float16)}, tmp_path / "a.safetensors")
    files = TensorFiles([tmp_path / "a.safetensors"])
    assert files.rows("a", 1, 9).shape == (1, 3)
    with pytest.raises(CheckpointError, match="there is no tensor b"):
        files.rows("b", 0, 1)
