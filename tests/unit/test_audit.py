"""The audit passes what exporters make and finds every fault planted in it, with tensor, row and group."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from exported import SCHEMES, Artifact, export, grouped, k_quant
from harness.audit import audit, to_json
from harness.audit_grid import measure, nearest_rule, place
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.findings import LIMIT, AuditReport, Finding
from harness.phi3_float64 import Weights
from harness.report.audit import describe_audit
from harness.weights import Plain, Quantised, Statement, Stored

PREFIX = "model.layers.0."
QKV, DOWN, HEAD = f"{PREFIX}self_attn.qkv_proj.weight", f"{PREFIX}mlp.down_proj.weight", "lm_head.weight"
EMBEDDING, NORM = "model.embed_tokens.weight", f"{PREFIX}input_layernorm.weight"
FLOATS = ("float32", "float16", "bfloat16")
NEAREST = tuple(scheme for scheme in SCHEMES if scheme != "moved")
ROW, GROUP = 37, 1
MADE: dict[str, Artifact] = {}


@pytest.fixture
def original(make_folder: Callable[..., Path]) -> Checkpoint:
    """A checkpoint of one layer, wide enough for two groups of 128."""
    folder = make_folder(hidden_size=256, intermediate_size=256, num_hidden_layers=1, vocab_size=128)
    return open_checkpoint(folder)


@pytest.fixture
def exported(original: Checkpoint) -> Callable[[str], Artifact]:
    """The checkpoint by a scheme, for a test to spoil. Each is made once: the weights are the same every time."""

    def make(scheme: str) -> Artifact:
        if scheme not in MADE:
            MADE[scheme] = export(original, scheme)
        return Artifact(list(MADE[scheme].stored), MADE[scheme].scheme)

    return make


def only(report: AuditReport, tensor: str) -> list[Finding]:
    """The findings, all of which must be about one tensor."""
    assert report.findings
    assert {finding.tensor for finding in report.findings} == {tensor}
    assert report.count >= len(report.findings)
    return list(report.findings)


def group_of(content: Quantised, row: int, group: int) -> tuple[int, slice]:
    return row, slice(group * content.group, (group + 1) * content.group)


def last_group(content: Quantised) -> int:
    return int(content.scales.shape[1]) - 1


@pytest.mark.parametrize("scheme", [*SCHEMES, *FLOATS])
def test_what_exporters_make_is_clean(scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    report = audit(exported(scheme), original)
    assert report.clean, [finding.sentence for finding in report.findings]
    assert len(report.tensors) == 9
    if scheme in NEAREST:
        assert all(figures.moved == 0.0 for figures in report.tensors)


@pytest.mark.parametrize(
    ("scheme", "rule"),
    [
        ("sym4", "extreme / 8"),
        ("sym8", "extreme / 128"),
        ("asym4", "range / 15"),
        ("asym8", "range / 255"),
        ("channel", "extreme / 7"),
        ("block", "extreme / 8"),
        ("awq", "extreme / 8"),
        ("rtn4", "extreme / 7.5"),
        ("rtn8", "extreme / 127.5"),
        ("kquant4", "k-quant's search"),
        ("kquant8", "k-quant's search"),
    ],
)
def test_the_rule_of_the_scales_is_inferred(
    scheme: str, rule: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    found = {figures.grid for figures in audit(exported(scheme), original).tensors if figures.group}
    assert found == {rule}


@pytest.mark.parametrize("strength", [1.005, 0.99, 1.01, 0.95, 2.0])
@pytest.mark.parametrize("scheme", [scheme for scheme in NEAREST if scheme != "searched"])
def test_one_scale_that_is_off_is_found(
    scheme: str, strength: float, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    content = artifact.quantised(QKV)
    group, scales = last_group(content), content.scales.copy()
    scales[ROW, group] *= scales.dtype.type(strength)
    artifact.change(QKV, scales=scales)
    found = only(audit(artifact, original), QKV)
    assert [(finding.row, finding.group) for finding in found] == [(ROW, group)]
    # At 8 bits half a per cent moves enough codes for the audit to say more than that they do not fit.
    assert found[0].what in ("scale", "codes")


def test_a_searched_scale_that_is_off_is_found_by_its_codes(
    original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported("searched")
    scales = artifact.quantised(QKV).scales.copy()
    scales[:64, 0] *= np.float16(1.01)
    artifact.change(QKV, scales=scales)
    # One group in twenty has no code near enough to an edge to be moved by 1 %; then nothing tells.
    assert 58 <= audit(artifact, original).count <= 64


@pytest.mark.parametrize(("groups", "times", "expected"), [(1, 1.9, 0), (1, 5.0, 1), (5, 1.9, 5)])
def test_a_searched_scale_may_lie_far_off_with_its_codes_if_it_is_alone(
    original: Checkpoint, exported: Callable[[str], Artifact], groups: int, times: float, expected: int
) -> None:
    artifact = exported("searched")
    content = artifact.quantised(QKV)
    scales = content.scales.copy()
    scales[:groups, GROUP] *= scales.dtype.type(times)
    other = msgspec.structs.replace(content, scales=scales)
    weight = Weights(original)[QKV]
    at = place(other, weight, slice(0, weight.shape[0]), "float32")
    nearest = np.clip(np.round(at.middle), content.low, content.high).reshape(weight.shape).astype(np.int16)
    codes = content.codes.astype(np.int16)
    codes[:groups] = nearest[:groups]
    artifact.change(QKV, scales=scales, codes=codes)
    report = audit(artifact, original)
    assert report.count == expected
    assert all(finding.what == "scale" for finding in report.findings)


@pytest.mark.parametrize("strength", [0.95, 1.05])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_channel_whose_scales_are_off_is_found(
    scheme: str, strength: float, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    scales = artifact.quantised(QKV).scales.copy()
    scales[ROW] *= scales.dtype.type(strength)
    artifact.change(QKV, scales=scales)
    assert {finding.row for finding in only(audit(artifact, original), QKV)} == {ROW}


def test_the_ratio_that_a_scale_is_off_by_is_named(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("sym4")
    scales = artifact.quantised(QKV).scales.copy()
    scales[ROW, GROUP] *= np.float16(1.05)
    artifact.change(QKV, scales=scales)
    (finding,) = only(audit(artifact, original), QKV)
    assert finding.what == "scale"
    assert finding.figures["ratio"] == pytest.approx(1.05, abs=0.01)
    assert f"row {ROW}" in finding.sentence


@pytest.mark.parametrize("bit", [10, 11, 12, 13])
@pytest.mark.parametrize("scheme", ["sym4", "asym8", "searched", "moved"])
def test_one_wrong_bit_in_the_exponent_of_a_scale_is_found(
    scheme: str, bit: int, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    scales = artifact.quantised(DOWN).scales.copy()
    scales.view(np.uint16)[ROW, -1] ^= np.uint16(1 << bit)
    artifact.change(DOWN, scales=scales)
    assert {finding.row for finding in only(audit(artifact, original), DOWN)} == {ROW}


@pytest.mark.parametrize("off", [-1, 1, 3])
@pytest.mark.parametrize("scheme", ["asym4", "asym8"])
def test_a_zero_point_that_is_off_is_found_and_named(
    scheme: str, off: int, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    zeros = artifact.quantised(QKV).zero_points.copy()
    zeros[ROW, -1] += off
    artifact.change(QKV, zero_points=zeros)
    (finding,) = only(audit(artifact, original), QKV)
    assert (finding.what, finding.row) == ("zero point", ROW)
    assert finding.figures["off"] == -off


@pytest.mark.parametrize("scheme", NEAREST)
def test_rounding_down_is_found(scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported(scheme)
    content = artifact.quantised(QKV)
    weight = Weights(original)[QKV]
    at = place(content, weight, slice(0, weight.shape[0]), "float32")
    codes = np.clip(np.floor(at.middle), content.low, content.high).reshape(weight.shape).astype(np.int16)
    artifact.change(QKV, codes=codes)
    (finding,) = only(audit(artifact, original), QKV)
    assert finding.what == "rounding"
    assert "down" in finding.sentence


@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_group_rounded_down_is_found(
    scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    content = artifact.quantised(QKV)
    weight = Weights(original)[QKV]
    at = place(content, weight, slice(0, weight.shape[0]), "float32")
    floor = np.clip(np.floor(at.middle), content.low, content.high).reshape(weight.shape)
    where = group_of(content, ROW, last_group(content))
    codes = content.codes.copy()
    codes[where] = floor[where]
    artifact.change(QKV, codes=codes)
    found = only(audit(artifact, original), QKV)
    assert {(finding.row, finding.group) for finding in found} == {(ROW, last_group(content))}


@pytest.mark.parametrize("name", [QKV, HEAD, EMBEDDING])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_swapped_rows_are_found_and_each_is_told_to_be_the_other(
    scheme: str, name: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    order = np.arange(artifact.quantised(name).codes.shape[0])
    order[[ROW, ROW + 50]] = order[[ROW + 50, ROW]]
    content = artifact.quantised(name)
    zeros = content.zero_points if content.zero_points.size == 1 else content.zero_points[order]
    artifact.change(name, codes=content.codes[order], scales=content.scales[order], zero_points=zeros)
    found = only(audit(artifact, original), name)
    assert [(f.what, f.row, f.figures["other"]) for f in found] == [
        ("row of another row", ROW, ROW + 50),
        ("row of another row", ROW + 50, ROW),
    ]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_duplicated_row_is_found(scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported(scheme)
    content = artifact.quantised(HEAD)
    codes, scales = content.codes.copy(), content.scales.copy()
    zeros = content.zero_points.copy()
    codes[ROW], scales[ROW] = codes[ROW - 1], scales[ROW - 1]
    if zeros.size > 1:
        zeros[ROW] = zeros[ROW - 1]
    artifact.change(HEAD, codes=codes, scales=scales, zero_points=zeros)
    (finding,) = only(audit(artifact, original), HEAD)
    assert (finding.what, finding.row, finding.figures["other"]) == ("row of another row", ROW, ROW - 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_swapped_nibbles_are_found(scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported(scheme)
    codes = artifact.quantised(DOWN).codes
    artifact.change(DOWN, codes=codes.reshape(codes.shape[0], -1, 2)[..., ::-1].reshape(codes.shape))
    (finding,) = only(audit(artifact, original), DOWN)
    assert finding.what == "nibbles"


@pytest.mark.parametrize("width", [2, 16])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_nibbles_swapped_in_one_row_are_found(
    scheme: str, width: int, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    codes = artifact.quantised(DOWN).codes.copy()
    few = codes[ROW, :width].copy()
    few[0], few[1] = (7, 0) if width == 2 else (few[0], few[1])
    codes[ROW, :width] = few.reshape(-1, 2)[:, ::-1].reshape(-1)
    artifact.change(DOWN, codes=codes)
    if scheme == "moved" and width == 2:
        pytest.skip("two codes in 128 are within what GPTQ moves")
    found = only(audit(artifact, original), DOWN)
    assert {(finding.row, finding.group) for finding in found} == {(ROW, 0)}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_transposed_tile_is_found_in_each_of_its_rows(
    scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    codes = artifact.quantised(DOWN).codes.copy()
    codes[16:32, 32:48] = codes[16:32, 32:48].T
    artifact.change(DOWN, codes=codes)
    report = audit(artifact, original)
    found = only(report, DOWN)
    assert {finding.row for finding in found} <= set(range(16, 32))
    # GPTQ's own errors hide a tile in some of its rows, the diagonal's code being in its place anyway.
    assert report.count >= (12 if scheme == "moved" else 16)
    assert len(found) <= LIMIT


@pytest.mark.parametrize("scheme", ["sym4", "asym4", "block", "searched", "awq", "moved"])
def test_codes_shifted_by_a_group_are_found_and_named(
    scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    content = artifact.quantised(QKV)
    codes = content.codes.copy()
    codes[ROW] = np.roll(codes[ROW], content.group)
    artifact.change(QKV, codes=codes)
    found = only(audit(artifact, original), QKV)
    assert {finding.row for finding in found} == {ROW}
    assert {finding.what for finding in found} == {"group of another group"}
    assert found[0].figures["other"] == last_group(content)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_flipped_sign_is_found_and_named(
    scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    content = artifact.quantised(QKV)
    scales = content.scales.copy()
    scales[ROW, -1] *= -1
    artifact.change(QKV, scales=scales)
    (finding,) = only(audit(artifact, original), QKV)
    assert (finding.what, finding.row, finding.group) == ("sign", ROW, last_group(content))


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("scheme", ["sym4", "searched", "moved"])
def test_a_scale_that_is_no_number_is_found(
    scheme: str, value: float, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(scheme)
    scales = artifact.quantised(QKV).scales.copy()
    scales[ROW, 0] = value
    artifact.change(QKV, scales=scales)
    assert {(f.row, f.group) for f in only(audit(artifact, original), QKV)} == {(ROW, 0)}


def test_a_multiplier_that_is_off_is_found(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("awq")
    multiplier = artifact.quantised(DOWN).multiplier
    assert multiplier is not None
    artifact.change(DOWN, multiplier=np.where(np.arange(multiplier.size) == 5, multiplier * 1.02, multiplier))
    only(audit(artifact, original), DOWN)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [NORM, HEAD])
def test_one_float_that_is_off_is_found(
    name: str, dtype: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(dtype)
    content = artifact.stored[artifact.place(name)].content
    assert isinstance(content, Plain)
    values = content.values.copy()
    values.reshape(values.shape[0], -1)[ROW, 0] *= values.dtype.type(1.01)
    artifact.change(name, values=values)
    (finding,) = only(audit(artifact, original), name)
    assert finding.what == "values"
    assert finding.figures["values"] == 1
    assert finding.row == (ROW if name == HEAD else None)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_noise_of_a_thousandth_on_floats_is_found(
    dtype: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported(dtype)
    content = artifact.stored[artifact.place(QKV)].content
    assert isinstance(content, Plain)
    noise = 1 + 0.001 * np.random.default_rng(1).normal(size=content.values.shape)
    artifact.change(QKV, values=(content.values * noise).astype(content.values.dtype))
    report = audit(artifact, original)
    assert {finding.what for finding in only(report, QKV)} == {"values"}
    assert len(report.findings) == LIMIT
    assert report.count == content.values.shape[0]


def test_swapped_rows_of_floats_are_told(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("float16")
    content = artifact.stored[artifact.place(EMBEDDING)].content
    assert isinstance(content, Plain)
    values = content.values.copy()
    values[[3, 9]] = values[[9, 3]]
    artifact.change(EMBEDDING, values=values)
    found = only(audit(artifact, original), EMBEDDING)
    assert [(f.what, f.row, f.figures["other"]) for f in found] == [
        ("row of another row", 3, 9),
        ("row of another row", 9, 3),
    ]


def test_what_fp16_cannot_hold_is_no_finding(make_folder: Callable[..., Path]) -> None:
    from safetensors.numpy import load_file, save_file

    folder = make_folder()
    weights = load_file(folder / "model.safetensors")
    weights[HEAD][:2] = [[1e6], [3e-8]]
    save_file(weights, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    with np.errstate(over="ignore"):
        artifact = export(checkpoint, "float16")
    values = artifact.stored[artifact.place(HEAD)].content.product()
    artifact.replace(HEAD, Plain(np.clip(values, -65504, 65504).astype(np.float16), "float16"))
    assert audit(artifact, checkpoint).clean


def test_missing_extra_and_doubled_tensors_are_found(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("sym4")
    head = artifact.stored.pop(artifact.place(HEAD))
    assert [(f.what, f.tensor) for f in audit(artifact, original).findings] == [("missing", HEAD)]
    artifact.stored += [head, msgspec.structs.replace(head, name="lm_head.bias")]
    assert [(f.what, f.tensor) for f in audit(artifact, original).findings] == [("extra", "lm_head.bias")]
    artifact.stored[-1] = head
    assert [(f.what, f.tensor) for f in audit(artifact, original).findings] == [("twice", HEAD)]


def test_a_tensor_may_be_held_in_parts_but_not_with_a_gap(
    original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported("sym4")
    whole = artifact.stored.pop(artifact.place(QKV))
    content = artifact_content(whole)
    for begin, end in ((0, 256), (256, 768)):
        rows = msgspec.structs.replace(content, codes=content.codes[begin:end], scales=content.scales[begin:end])
        artifact.stored.append(Stored(QKV, begin, "part", rows))
    assert audit(artifact, original).clean
    artifact.stored[-1] = msgspec.structs.replace(artifact.stored[-1], row=257)
    kinds = {finding.what for finding in audit(artifact, original).findings}
    assert {"missing", "shape"} <= kinds


def artifact_content(stored: Stored) -> Quantised:
    assert isinstance(stored.content, Quantised)
    return stored.content


def test_a_tied_head_is_held_against_the_embedding(make_folder: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(make_folder(tie_word_embeddings=True))
    artifact = export(checkpoint, "float16")
    assert audit(artifact, checkpoint).clean
    embedding = artifact.stored[artifact.place(EMBEDDING)]
    artifact.stored.append(msgspec.structs.replace(embedding, name=HEAD))
    assert audit(artifact, checkpoint).clean
    assert isinstance(embedding.content, Plain)
    artifact.change(HEAD, values=embedding.content.values[::-1])
    assert {finding.tensor for finding in audit(artifact, checkpoint).findings} == {HEAD}


def test_no_tensor_chooses_a_laxer_measure_for_itself(
    original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    """All scales of one tensor searched for, in an artifact that says nothing or says that none were."""
    searched = exported("searched").quantised(DOWN)
    for scheme in ({}, {"scale_estimation": "False", "gptq": "False"}):
        artifact = exported("sym4")
        artifact.scheme = scheme
        artifact.replace(DOWN, searched)
        report = audit(artifact, original)
        assert {finding.what for finding in only(report, DOWN)} == {"scale"}
        assert report.scheme.startswith("round to nearest")


def test_searched_scales_are_inferred_where_nothing_is_said_and_most_are(
    original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported("searched")
    artifact.scheme = {}
    report = audit(artifact, original)
    assert report.clean
    assert report.scheme.startswith("searched scales")
    scales = artifact.quantised(QKV).scales.copy()
    scales[ROW, 0] *= np.float16(2)
    artifact.change(QKV, scales=scales)
    assert {(f.row, f.group) for f in only(audit(artifact, original), QKV)} == {(ROW, 0)}


def sums_in_another_order(original: Checkpoint, artifact: Artifact, bits: int) -> Artifact:
    """The artifact with all its tensors by a k-quant that takes its sums in float64."""
    for stored in list(artifact.stored):
        if isinstance(stored.content, Quantised):
            groups = grouped(Weights(original)[stored.name].astype(np.float32), 32)
            artifact.replace(stored.name, k_quant(groups, bits, np.float64))
    return artifact


@pytest.mark.parametrize("bits", [4, 8])
def test_a_search_that_took_its_sums_in_another_order_is_inferred(
    bits: int, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = sums_in_another_order(original, exported(f"kquant{bits}"), bits)
    report = audit(artifact, original)
    assert report.clean, [finding.sentence for finding in report.findings]
    assert report.scheme.startswith("k-quant, in another order of sums")
    for off in (0.95, 1.25):
        scales = artifact.quantised(QKV).scales.copy()
        scales[ROW, 0] *= np.float32(off)
        spoilt = Artifact(list(artifact.stored), {})
        spoilt.change(QKV, scales=scales)
        assert {(f.row, f.group) for f in only(audit(spoilt, original), QKV)} == {(ROW, 0)}


@pytest.mark.parametrize("scheme", ["kquant4", "kquant8"])
def test_a_grid_that_the_search_would_not_choose_is_found(
    scheme: str, original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    """Codes that are the nearest on a grid that is moved by a code, and on one that is finer by 0.2 %."""
    artifact = exported(scheme)
    content, weight = artifact.quantised(QKV), Weights(original)[QKV]
    scales, zeros = content.scales.copy(), content.zero_points.copy()
    zeros[ROW, 0] += 1
    scales[ROW + 1, 0] *= np.float32(0.998)
    changed = msgspec.structs.replace(content, scales=scales, zero_points=zeros)
    at = place(changed, weight, slice(0, weight.shape[0]), "float32")
    codes = np.clip(np.rint(at.middle), content.low, content.high).reshape(weight.shape).astype(np.int16)
    artifact.replace(QKV, msgspec.structs.replace(changed, codes=codes))
    report = audit(artifact, original)
    assert [(f.what, f.row, f.group) for f in only(report, QKV)] == [
        ("scale", ROW + 1, 0),
        ("zero point", ROW, 0),
    ]


def test_a_tensor_of_another_scheme_among_searched_ones_is_found(
    original: Checkpoint, exported: Callable[[str], Artifact]
) -> None:
    artifact = exported("kquant4")
    artifact.replace(DOWN, exported("asym4").quantised(DOWN))
    assert {finding.tensor for finding in audit(artifact, original).findings} == {DOWN}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_range_of_rtn_has_no_part_of_zero_in_it(dtype: type) -> None:
    """ONNX Runtime's asymmetric rtn: groups on one side of zero are cut off, and equal weights have the scale 1."""
    weight: NDArray[Any] = np.random.default_rng(1).normal(size=(64, 4, 32)).astype(np.float16).astype(dtype)
    weight[5, 1], weight[6, 2], weight[7, 3] = np.abs(weight[5, 1]) + dtype(1), dtype(0.25), -np.abs(weight[7, 3])
    span = (weight.max(axis=-1) - weight.min(axis=-1)).astype(np.float64)
    scales = np.where(span > 0, span / 15, 1.0)
    zeros = np.clip(np.round(-weight.min(axis=-1) / scales), 0, 15).astype(np.uint8)
    codes = np.clip(np.round(weight / scales[..., None] + zeros[..., None]), 0, 15).astype(np.uint8)
    content = Quantised(codes.reshape(64, 128), scales.astype(dtype), zeros, 4, 0, 15)
    grid = measure(content, weight.reshape(64, 128).astype(np.float64), slice(0, 64), "float32")
    rule, share = nearest_rule(grid)
    assert (rule, share) == ("range of the weights alone / 15", 1.0)
    assert grid.zero_points.all()
    assert grid.beyond.sum() == 0


def test_a_scale_below_the_normal_numbers_of_fp16_has_their_spacing() -> None:
    weight = np.random.default_rng(1).normal(scale=1e-3, size=(64, 32))
    scales = np.abs(weight).max(axis=1, keepdims=True) / 127.5
    codes = np.clip(np.round(weight / scales + 128), 0, 255).astype(np.uint8)
    content = Quantised(codes, scales.astype(np.float16), np.full((1, 1), 128, np.uint8), 8, 0, 255)
    grid = measure(content, weight, slice(0, 64), "float32")
    assert nearest_rule(grid) == ("extreme / 127.5", 1.0)
    assert grid.beyond.sum() == 0


def test_moved_codes_must_be_stated(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("moved")
    artifact.scheme = {}
    assert not audit(artifact, original).clean


def test_weights_that_were_rounded_to_bfloat16_in_between_are_known_to_the_bit() -> None:
    """OpenVINO rounds odd halves up and nothing else; the audit looks for the codes of just that."""
    single = np.random.default_rng(2).normal(size=(64, 128)).astype(np.float32)
    multiplier = np.full(128, 0.37, dtype=np.float32)
    bits = (single * (1 / multiplier).astype(np.float32)).view(np.uint32)
    rounded = ((bits + ((bits & 0x10000) >> 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    scales = np.abs(rounded).max(axis=1, keepdims=True) / np.float32(8)
    codes = np.clip(np.rint(rounded / scales), -8, 7).astype(np.int16)
    zero = np.zeros((1, 1), np.int16)
    content = Quantised(codes, scales.astype(np.float16), zero, 4, -8, 7, multiplier)
    assert measure(content, single.astype(np.float64), slice(0, 64), "bfloat16").beyond.sum() == 0
    assert measure(content, single.astype(np.float64), slice(0, 64), "float32").beyond.sum() > 0


def test_a_wrong_statement_is_found(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("sym4")
    artifact.stated = [
        Statement("rms_norm_eps", np.asarray(1e-6), "a norm", 0),
        Statement("num_attention_heads", np.asarray(2.0), "an attention", 0),
        Statement("colour", np.asarray(2.0), "nobody knows", 0),
    ]
    report = audit(artifact, original)
    (finding,) = report.findings
    assert (finding.what, finding.tensor, finding.row) == ("statement", "rms_norm_eps", 0)
    assert "a norm" in finding.sentence
    assert report.judged == {"rms_norm_eps": 1, "num_attention_heads": 1}
    assert "sliding_window" in report.unstated


def test_a_window_may_be_kept_to_by_the_runtime(make_folder: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(make_folder(sliding_window=24))
    artifact = export(checkpoint, "float32")
    artifact.stated = [Statement("sliding_window", np.asarray(-1.0), "an attention", layer) for layer in (0, 1)]
    assert audit(artifact, checkpoint).count == 2
    artifact.stated.append(Statement("sliding_window", np.asarray(24.0), "a configuration"))
    assert audit(artifact, checkpoint).clean
    artifact.stated[2] = Statement("sliding_window", np.asarray(25.0), "a configuration")
    assert audit(artifact, checkpoint).count == 3


def test_what_one_layer_does_not_state_as_the_others_do_is_found(make_folder: Callable[..., Path]) -> None:
    checkpoint = open_checkpoint(make_folder())
    artifact = export(checkpoint, "float32")
    artifact.stated = [Statement("gate_first", np.asarray(1.0), "an activation", 1)]
    (finding,) = audit(artifact, checkpoint).findings
    assert (finding.what, finding.tensor, finding.row) == ("statement", "gate_first", 0)


def test_an_empty_artifact_is_not_clean(original: Checkpoint) -> None:
    report = audit(Artifact([], {}), original)
    assert not report.clean
    assert report.count == 9


def test_the_report_reads_as_text_and_as_json(original: Checkpoint, exported: Callable[[str], Artifact]) -> None:
    artifact = exported("sym4")
    clean = describe_audit(audit(artifact, original), 80, "cp1252")
    assert "clean: 9 tensors" in clean
    assert "extreme / 8" in clean
    artifact.change(QKV, codes=artifact.quantised(QKV).codes[::-1])
    report = audit(artifact, original)
    text = describe_audit(report, 80, "cp1252")
    assert f"{report.count} finding" in text
    assert json.loads(to_json(report))["count"] == report.count
