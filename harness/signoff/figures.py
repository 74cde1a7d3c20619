"""What is kept of each prompt: sums over its positions, from which every figure of a candidate can be computed again.

Scored are the positions that choose the m tokens of the given continuation: in chats the answer, in texts the end. They
have logits on every runtime, also where a prompt has them for its last token only. KL in nat, golden against device;
negative log likelihoods of the given tokens in nat; implementation errors and yardsticks in logits, over all positions.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.compare import Rows
from harness.record import CaseRecord, RunRecord
from harness.reference_rows import ReferenceRows, WholeRows, as_rows
from harness.yardstick import Decomposed, parts

Floats = NDArray[np.float64]
Logits = NDArray[np.floating]

ITEM = "test_sign_off"
IMPLEMENTATION = "test_implementation"
_PARTS = ("prefill", "decode")


def item_numbers(
    golden: Logits | ReferenceRows, device: Logits, found: Rows | Decomposed, prompt_tokens: int, given: Sequence[int]
) -> dict[str, float]:
    """The numbers of one item.

    `golden`: n + m rows, or their logits; `device`: `[n, V]` of the last of them, as compared in `found`; `given`: the
    m tokens that are scored.
    """
    total = found.total if isinstance(found, Decomposed) else found
    scored = slice(prompt_tokens - 1, prompt_tokens - 1 + len(given))
    rows = slice(scored.start - total.first, scored.stop - total.first)
    kl, surely = total.errors.kl[rows], total.errors.kl_surely[rows]
    numbers = {
        "positions": float(len(given)),
        "kl": float(kl.sum()),
        "kl_worst": float(surely.max()),
        "kl_worst_token": float(surely.argmax()),
        "top1": float(total.errors.top1_agrees[rows].sum()),
        "golden_nll": _nll(as_rows(golden)[scored], given),
        "nll": _nll(WholeRows(device[rows]), given),
    }
    if isinstance(found, Decomposed):
        numbers |= _implementation(found)
    return numbers


def scored_kl(golden: Logits | ReferenceRows, other: Logits, prompt_tokens: int, given: int) -> float:
    """The sum of KL over the scored positions of n + m rows and `[n + m, V]` logits, in nat."""
    scored = slice(prompt_tokens - 1, prompt_tokens - 1 + given)
    return float(as_rows(golden)[scored].compare(other[scored]).kl.sum())


def _nll(rows: ReferenceRows, given: Sequence[int]) -> float:
    return float(-rows.log_likelihood(given).sum())


def _implementation(found: Decomposed) -> dict[str, float]:
    """Sums and worst positions of prefill and decode: of the device's errors, and of each honest variant's."""
    numbers: dict[str, float] = {}
    for part in parts([found]):
        numbers[f"{part.name}_positions"] = float(part.errors.size)
        numbers[f"{part.name}_error"] = float(part.errors.sum())
        numbers[f"{part.name}_error_worst"] = float(part.errors.max())
        numbers[f"{part.name}_floor"] = part.floor * part.errors.size
        for index, variant in enumerate(part.yardsticks):
            numbers[f"{part.name}_yardstick_{index}"] = float(variant.sum())
            numbers[f"{part.name}_yardstick_{index}_worst"] = float(variant.max())
    return numbers


class Figures(msgspec.Struct, frozen=True):
    """The items of one candidate that were compared, `[n]` each, in the order of the record; see `item_numbers`.

    `quantisation_kl` is empty where the error was not taken apart.
    """

    ids: tuple[str, ...]
    positions: Floats
    kl: Floats
    kl_worst: Floats
    top1: Floats
    golden_nll: Floats
    nll: Floats
    quantisation_kl: Floats


def figures_of(record: RunRecord) -> Figures:
    """The figures in a candidate's record. Raises ValueError where an item's numbers are incomplete or impossible."""
    cases = item_cases(record)
    names = ("positions", "kl", "kl_worst", "top1", "golden_nll", "nll")
    columns = {name: np.array([_number(case, name) for case in cases]) for name in names}
    apart = [case for case in cases if "quantisation_kl" in case.numbers]
    quantisation = [_number(case, "quantisation_kl") for case in cases] if apart else []
    impossible = (columns["positions"] < 1) | (columns["top1"] > columns["positions"]) | (columns["top1"] < 0)
    if impossible.any():
        raise ValueError(f"item {cases[int(impossible.argmax())].case} has impossible numbers")
    return Figures(tuple(map(subject, cases)), **columns, quantisation_kl=np.array(quantisation))


def item_cases(record: RunRecord) -> list[CaseRecord]:
    """The items that were compared."""
    return [case for case in record.cases if case.test == ITEM and case.outcome == "PASS"]


def subject(case: CaseRecord) -> str:
    """The prompt's id of a case, empty for a case without one."""
    return case.case[len(case.test) + 1 : -1]


def implementation_ratios(record: RunRecord) -> dict[str, float]:
    """Implementation error over yardstick, of all items together: `prefill_mean`, `decode_worst` and so on.

    As `harness.yardstick.judge_implementation` has it for a suite; empty where the error was not taken apart.
    """
    cases = [case for case in item_cases(record) if any(f"{part}_error" in case.numbers for part in _PARTS)]
    pooled = next((case.numbers for case in record.cases if case.test == IMPLEMENTATION), {})
    ratios = {}
    for part in _PARTS:
        rows = [case for case in cases if f"{part}_error" in case.numbers]
        if rows:
            ratios[f"{part}_mean"], ratios[f"{part}_worst"] = _ratios(rows, part, pooled)
    return ratios


def _ratios(rows: Sequence[CaseRecord], part: str, pooled: dict[str, float]) -> tuple[float, float]:
    positions = sum(_number(case, f"{part}_positions") for case in rows)
    floor = sum(_number(case, f"{part}_floor") for case in rows) / positions
    means, worsts = [floor, pooled.get(f"pooled_{part}_mean", 0.0)], [floor, pooled.get(f"pooled_{part}_worst", 0.0)]
    index = 0
    while f"{part}_yardstick_{index}" in rows[0].numbers:
        means.append(sum(_number(case, f"{part}_yardstick_{index}") for case in rows) / positions)
        worsts.append(max(_number(case, f"{part}_yardstick_{index}_worst") for case in rows))
        index += 1
    error = sum(_number(case, f"{part}_error") for case in rows) / positions
    worst = max(_number(case, f"{part}_error_worst") for case in rows)
    return error / max(means), worst / max(worsts)


def _number(case: CaseRecord, name: str) -> float:
    value = case.numbers.get(name, float("nan"))
    if not np.isfinite(value):
        raise ValueError(f"item {case.case} has no finite number {name!r}")
    return value
