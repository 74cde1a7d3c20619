"""The page as text: what it shows and escapes, how large it grows, and that no part of a record is needed for it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from harness.backend import SessionInfo
from harness.record import CaseRecord, RunRecord, WaiverRecord
from harness.report.html import PARTS, to_html
from harness.report.tokens import token_data, token_targets
from harness.target import Evidence, EvidenceLevel, Unavailable
from report.demo import STORIES, demo_record
from report.demo_cases import Story
from report.parsed import HOSTILE, Page


@pytest.fixture(scope="module")
def record() -> RunRecord:
    return demo_record()


@pytest.fixture(scope="module")
def html(record: RunRecord) -> str:
    return to_html(record)


def test_the_verdict_comes_first_and_says_what_failed_and_why(html: str) -> None:
    text = Page(html).text
    assert text.index("FAIL") < text.index("5 of 12 targets fail") < text.index("What failed, and why") < 1400
    start, end = text.index("What failed, and why"), text.index("Targets by suites", text.index("What failed, and why"))
    why = text[start:end]
    for target, reason in {
        "openvino:npu:int4": "Driver or kernels compute something else than the artifact says.",
        "openvino:npu:int8": "Nothing proves that the device asked for computed this.",
        "ort-genai:dml:fp16": "Logits are missing, of a wrong shape, or not finite.",
        "ort-genai:dml:int4": "Quantisation costs more than the policy allows.",
        "npu-library:npu:int8": "error while loading: the worker ended by signal 6 (SIGABRT)",
    }.items():
        assert reason in why[why.index(target) :]
    assert "First bad: model.layers.3.self_attn, in decode only, position 67" in why
    assert "openvino:cpu:int4" not in why


def test_every_part_is_there_and_leads_somewhere(html: str) -> None:
    page = Page(html)
    assert {name for name, _ in PARTS} <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    links = [attrs["href"] for tag, attrs in page.tags if tag == "a"]
    for link in links:
        assert link is not None
        assert link.startswith("https://") or link[1:] in page.ids
    used = [attrs.get("xlink:href") for tag, attrs in page.tags if tag == "use"]
    assert used
    assert all(name is not None and name[1:] in page.ids for name in used)


def test_the_matrix_counts_cases_in_signs_and_in_words(html: str) -> None:
    start = html.index('<table class="matrix')
    matrix = html[start : html.index("</table>", start)]
    row = next(line for line in matrix.split("<tr>") if "openvino:npu:int4" in line)
    assert "✗ 2/8" in row
    assert "2 fail, 6 pass" in row
    assert "✓ 8" in row
    assert matrix.count('scope="row"') == 12


def test_known_defects_and_skips_are_listed_with_their_terms_and_remedies(html: str) -> None:
    text = Page(html).text
    assert "ort-genai-window-wrong 2 cases of ort-genai:cpu:int4" in text
    assert "Owner conformance team · expires 2027-03-01" in text
    skips = text[text.index("Not run here") :]
    assert "ort-genai:cuda:fp16 , ort-genai:cuda:int4 onnxruntime-genai has no cuda execution provider" in skips
    assert "Remedy: needs an NVIDIA GPU and its build" in skips


def test_evidence_machine_versions_and_hashes_are_there(html: str, record: RunRecord) -> None:
    text = Page(html).text
    for fact in (
        "npu_busy_time_us: busy 2.3 s of 3.1 s of work, whole device",
        "Intel(R) AI Boost, driver npu 32.0.100.4023, firmware 20260912",
        "openvino 2026.4.1",
        "OMP_NUM_THREADS 1",
        f"Policy {record.policy_sha256[:16]}",
        "Windows 11 (10.0.26100), AMD64",
        "pytest -c ./pyproject.toml --record=./records/demo.json",
    ):
        assert fact in text


def test_nothing_is_asked_of_any_network(html: str) -> None:
    page = Page(html)
    assert not [
        tag for tag, _ in page.tags if tag in ("iframe", "object", "embed", "img", "audio", "video", "base", "form")
    ]
    for tag, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
        assert "src" not in attrs
        assert tag != "link" or attrs["href"] == "data:,"
    assert not re.search(r"url\((?!#)|@import", html)
    assert "fetch(" not in html
    assert "XMLHttpRequest" not in html


def test_the_policy_of_the_page_allows_its_own_script_only(html: str) -> None:
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', html)
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)
    assert policy is not None
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert "default-src 'none'" in policy[1]
    assert f"script-src 'sha256-{digest}'" in policy[1]
    assert html.count("<script>") == 1


def _hostile(record: RunRecord) -> RunRecord:
    """The record with hostile text wherever text is free, as its reader would let it through."""
    sessions = [
        msgspec.structs.replace(
            session, arithmetic=HOSTILE, undecomposed=HOSTILE, first_bad=HOSTILE, distances={HOSTILE: 1.0},
            info=SessionInfo(1, None, {HOSTILE: HOSTILE}, {HOSTILE: HOSTILE}, load_options={HOSTILE: HOSTILE}),
            artifact=msgspec.structs.replace(session.artifact, origin=HOSTILE, recipe=HOSTILE, command=[HOSTILE]),
            evidence=Evidence(EvidenceLevel.NONE, (), (HOSTILE,), HOSTILE, unread=HOSTILE),
            localisation=session.localisation
            and msgspec.structs.replace(session.localisation, prompt=HOSTILE, target=HOSTILE),
        )
        for session in record.sessions
    ]  # fmt: skip
    cases = [
        msgspec.structs.replace(case, message=HOSTILE, waiver=case.waiver and HOSTILE, stage=case.stage and HOSTILE)
        for case in record.cases
    ]
    runtimes = [
        msgspec.structs.replace(r, backend=HOSTILE, error=HOSTILE, devices={HOSTILE: Unavailable(HOSTILE, HOSTILE)})
        for r in record.runtimes
    ]
    return msgspec.structs.replace(
        record, sessions=sessions, cases=cases, runtimes=runtimes, harness=HOSTILE, started=HOSTILE, command=[HOSTILE],
        words=dict.fromkeys(record.words, HOSTILE), environment={HOSTILE: HOSTILE}, hosts={HOSTILE: record.machine},
        machine=msgspec.structs.replace(record.machine, processor=HOSTILE, release=HOSTILE, unread=HOSTILE),
        prompts=[msgspec.structs.replace(prompt, about=HOSTILE) for prompt in record.prompts],
        waivers=[WaiverRecord(HOSTILE, HOSTILE, "javascript:alert(1)", HOSTILE, HOSTILE)],
    )  # fmt: skip


def test_text_of_a_record_is_only_ever_text(record: RunRecord, html: str) -> None:
    hostile = to_html(_hostile(record))
    page, honest = Page(hostile), Page(html)
    assert "7 * 7" in page.text
    assert "<img" not in hostile
    assert hostile.count("<script") == html.count("<script")
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in honest.tags}
    assert not [attrs for tag, attrs in page.tags if tag == "a" and (attrs["href"] or "").startswith("javascript")]
    for _, attrs in page.tags:
        assert not [name for name in attrs if name.startswith("on")]
    assert len(page.ids) == len(set(page.ids))


def _unpacked(record: RunRecord) -> dict[str, Any]:
    packed = token_data(record)
    assert packed is not None
    found: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(packed)))
    return found


def test_the_data_of_the_tokens_is_the_records(record: RunRecord) -> None:
    data = _unpacked(record)
    assert data["targets"] == token_targets(record)
    words, prompt = data["words"], data["prompts"][0]
    assert [words[i] for i in prompt["tokens"]] == [record.words[str(token)] for token in record.prompts[0].tokens]
    target, number, first = data["details"][0]
    case = next(
        c for c in record.cases if c.detail and c.detail.kl and c.case == f"test_logits[{record.prompts[number].id}]"
        and c.target == data["targets"][target]
    )  # fmt: skip
    assert case.detail is not None
    assert case.detail.top is not None
    assert first["kl"] == pytest.approx(case.detail.kl, rel=6e-3)
    assert [words[i] for i in first["top"][3]] == [record.words[str(t)] for t in case.detail.top.tokens[3]]
    assert first["p"][3] == [round(1e4 * p) for p in case.detail.top.probabilities[3]]
    expected = case.limits["ratio_worst"] * case.numbers["yardstick_prefill_worst"]
    assert first["beyond"]["prefill"] == pytest.approx(expected)


def test_what_is_not_finite_is_null_in_the_data_and_words_in_the_page(small: RunRecord) -> None:
    record = small
    case = next(c for c in record.cases if c.detail is not None and c.detail.implementation)
    assert case.detail is not None
    wild = [math.nan, math.inf, *case.detail.implementation[2:]]
    detail = msgspec.structs.replace(case.detail, implementation=wild, kl=wild)
    numbers = dict.fromkeys(case.numbers, math.nan)
    broken = msgspec.structs.replace(
        case, detail=detail, numbers=numbers, outcome="FAIL", message="nan among the logits"
    )
    changed = msgspec.structs.replace(record, cases=[broken, *(c for c in record.cases if c is not case)])
    assert _unpacked(changed)["details"][0][2]["kl"][:2] == [None, None]
    text = Page(to_html(changed)).text
    assert "nan among the logits" in text
    assert not re.search(r"\b(nan|inf) (×|nat|logits|%)", text)


PARTIAL: dict[str, Callable[[RunRecord], dict[str, Any]]] = {
    "no details": lambda r: {"cases": [msgspec.structs.replace(case, detail=None) for case in r.cases]},
    "no prompts": lambda _: {"prompts": [], "words": {}},
    "no words": lambda _: {"words": {}},
    "no sessions": lambda _: {"sessions": []},
    "no numbers": lambda r: {
        "cases": [msgspec.structs.replace(c, numbers={}, limits={}, detail=None) for c in r.cases]
    },
    "no checkpoint": lambda _: {"checkpoint": None, "runtimes": [], "environment": {}, "suites": {}},
    "no cases": lambda _: {"cases": [], "sessions": [], "waivers": []},
    "no times": lambda _: {"started": "", "finished": ""},
    "skips only": lambda r: {"cases": [c for c in r.cases if c.outcome == "UNSUPPORTED"], "sessions": []},
    "cut short": lambda r: {"cases": r.cases[:20], "complete": False, "exit_status": -1, "finished": r.started},
    "strange outcome": lambda r: {"cases": [msgspec.structs.replace(r.cases[0], outcome="STRANGE", test="test_new")]},
}


@pytest.fixture(scope="module")
def small() -> RunRecord:
    """A record of few targets, which is faster to draw."""
    return demo_record({target: STORIES[target] for target in ("openvino:npu:int4", "ort-genai:cpu:int4")})


@pytest.mark.parametrize("what", PARTIAL)
def test_what_a_record_lacks_is_said_and_breaks_nothing(small: RunRecord, what: str) -> None:
    changed = msgspec.structs.replace(small, **PARTIAL[what](small))
    page = Page(to_html(changed))
    assert {name for name, _ in PARTS} <= set(page.ids)
    assert "None" not in page.text.replace("Nonetheless", "")
    assert "nan" not in re.findall(r"[a-z]+", page.text.replace("nan among", ""))


def test_a_run_that_was_cut_short_is_marked(small: RunRecord) -> None:
    record = small
    passed = [case for case in record.cases if case.outcome == "PASS"][:30]
    changed = msgspec.structs.replace(record, cases=passed, complete=False, exit_status=2)
    text = Page(to_html(changed)).text
    assert "INCOMPLETE The run was cut short; what it judged passes" in text
    assert "INCOMPLETE: the run was cut short after 30 cases" in text


@pytest.mark.parametrize(
    ("changes", "word", "headline"),
    [
        ({"cases": []}, "NOTHING JUDGED", "No target was judged"),
        ({"exit_status": 1}, "FAIL", "No case fails, but the run ended with status 1"),
        ({}, "PASS", "All 2 targets pass, 1 of them but for known defects"),
    ],
)
def test_a_verdict_is_no_better_than_the_run(changes: dict[str, Any], word: str, headline: str) -> None:
    stories = {"openvino:cpu:int8": Story(), "ort-genai:cpu:int4": STORIES["ort-genai:cpu:int4"]}
    text = Page(to_html(msgspec.structs.replace(demo_record(stories), **changes))).text
    assert f"{word} {headline}" in text


def test_thirty_targets_stay_below_five_megabytes() -> None:
    devices = ("cpu", "gpu", "npu", "gpu.1", "npu.1", "gpu.2")
    precisions = ("fp32", "bf16", "fp16", "int8", "int4")
    faults = ("", "", "window", "", "waived", "")
    stories = {
        f"openvino:{device}:{precision}": Story(fault)
        for device, fault in zip(devices, faults, strict=True)
        for precision in precisions
    }
    record = demo_record(stories, copies=5)
    assert len(stories) == 30
    assert len(record.prompts) > 34
    positions = sum(len(case.detail.kl) for case in record.cases if case.detail is not None)
    assert positions > 30 * 34 * 40
    assert len(to_html(record).encode()) < 5e6


def test_a_link_to_a_target_leads_to_that_one(html: str) -> None:
    def anchor_of(target: str, found: str) -> str:
        match = re.search(rf'href="#(target-\d+)">{re.escape(target)}</a>', found)
        assert match is not None
        return match[1]

    for target in ("openvino:npu:int4", "ort-genai:dml:int4"):
        part = html[html.index(f'id="{anchor_of(target, html)}"') :]
        assert part[: part.index("</summary>")].count(target) == 1


def test_the_same_record_makes_the_same_page(small: RunRecord) -> None:
    assert to_html(small) == to_html(small)


def _numbered(case: CaseRecord) -> bool:
    return bool(case.numbers)


def test_the_demo_has_one_of_everything(record: RunRecord) -> None:
    outcomes = {case.outcome for case in record.cases}
    assert outcomes == {"PASS", "FAIL", "ERROR", "UNATTESTED", "NOT_RUN", "WAIVED", "UNSUPPORTED"}
    assert any(math.isnan(value) for case in filter(_numbered, record.cases) for value in case.numbers.values())
    assert any(session.localisation for session in record.sessions)
    assert all(session.speed and session.repeats and session.timings for session in record.sessions)
