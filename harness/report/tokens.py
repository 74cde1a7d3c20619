"""What the page's script needs to colour tokens and to show their likeliest followers, as small as it goes.

Golden's rows are kept once a prompt and not for every target; token ids are replaced by indices into a list of the
texts in use; probabilities are in 1/10000. The JSON is deflated and written in base64: plain, 30 targets would be
beyond what anybody opens.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from harness.record import CaseRecord, Detail, PromptRecord, RunRecord, Tops
from harness.report.apart import prompt_of


def token_data(record: RunRecord) -> str | None:
    """Base64 of deflated JSON, or None where no case of a prompt has details."""
    prompts = {prompt.id: number for number, prompt in enumerate(record.prompts)}
    cases = _with_rows(record)
    if not cases:
        return None
    words = _Words(record.words)
    targets = token_targets(record)
    data = {
        "prompts": [_prompt(prompt, words) for prompt in record.prompts],
        "targets": targets,
        "details": [
            [targets.index(case.target), prompts[prompt_of(case)], _detail(case, words)]
            for case in cases
            if case.detail is not None
        ],
        "words": words.texts,
    }
    return base64.b64encode(zlib.compress(msgspec.json.encode(data), 9)).decode()


def token_targets(record: RunRecord) -> list[str]:
    """The targets that `token_data` holds rows of, in its order."""
    return list(dict.fromkeys(case.target for case in _with_rows(record)))


def _with_rows(record: RunRecord) -> list[CaseRecord]:
    prompts = {prompt.id for prompt in record.prompts}
    return [case for case in record.cases if _has_rows(case.detail) and prompt_of(case) in prompts]


class _Words:
    """Token ids as indices into the texts that are in use."""

    def __init__(self, texts: Mapping[str, str]) -> None:
        self._texts = texts
        self._known: dict[int, int] = {}
        self.texts: list[str] = []

    def of(self, tokens: Iterable[int]) -> list[int]:
        return [self._index(token) for token in tokens]

    def _index(self, token: int) -> int:
        if token not in self._known:
            self._known[token] = len(self.texts)
            self.texts.append(self._texts.get(str(token), f"‹{token}›"))
        return self._known[token]


def _has_rows(detail: Detail | None) -> bool:
    return detail is not None and bool(detail.kl or detail.implementation or detail.top)


def _prompt(prompt: PromptRecord, words: _Words) -> dict[str, Any]:
    return {
        "tokens": words.of(prompt.tokens),
        "prefill": prompt.prefill,
        **_tops(prompt.top, words),
        "margins": _short(prompt.margins),
    }


def _detail(case: CaseRecord, words: _Words) -> dict[str, Any]:
    """`beyond`: the errors from which a position is beyond its limit, for KL, prefill and decode."""
    detail = case.detail
    assert detail is not None
    fields: dict[str, Any] = {"first": detail.first, "outcome": case.outcome}
    for name in ("kl", "quantisation", "implementation", "yardstick"):
        values = getattr(detail, name)
        if values:
            fields[name] = _short(values)
    if detail.top is not None:
        fields |= _tops(detail.top, words)
    beyond = {"kl": case.limits.get("kl_worst", math.inf)}
    for phase in ("prefill", "decode"):
        yardstick = case.numbers.get(f"yardstick_{phase}_worst", math.inf)
        beyond[phase] = case.limits.get("ratio_worst", math.inf) * yardstick
    fields["beyond"] = {name: value for name, value in beyond.items() if math.isfinite(value)}
    return fields


def _tops(top: Tops, words: _Words) -> dict[str, Any]:
    return {
        "top": [words.of(row) for row in top.tokens],
        "p": [[_share(value) for value in row] for row in top.probabilities],
    }


def _share(value: float | None) -> int | None:
    return round(10_000 * value) if value is not None and math.isfinite(value) else None


def _short(values: Sequence[float | None]) -> list[float | None]:
    """Three significant digits; null for what is not finite."""
    return [float(f"{v:.3g}") if v is not None and math.isfinite(v) else None for v in values]
