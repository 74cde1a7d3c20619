"""Sign-offs that were never measured: a plan, suites, records of made-up numbers, and the package of it all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from harness import __version__
from harness.artifacts import ArtifactManifest
from harness.audit import to_json
from harness.backend import Recipe, SessionInfo
from harness.checkpoint import Checkpoint, sha256_text
from harness.devices import Machine
from harness.findings import AuditReport
from harness.golden import SCHEMA, Case, Manifest, Noise, verify_files
from harness.golden_writing import write_golden
from harness.options import POLICY, WAIVERS
from harness.policy import Policy, read_policy
from harness.prompts import PromptSuite, read_suite
from harness.record import ArtifactRecord, CaseRecord, CheckpointRecord, RunRecord, SessionRecord, write_record
from harness.signoff import measure as measuring
from harness.signoff import session as running
from harness.signoff.candidates import Candidate, Plan
from harness.signoff.figures import IMPLEMENTATION, ITEM
from harness.signoff.measure import Inputs, Measured
from harness.signoff.session import Request, sign_off
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision

TARGET = "openvino:cpu:int4"
ITEMS = 120
LIMITS = """
[signoff]
kl_mean = { limit = 0.02, origin = "a test" }
perplexity_change = { limit = 0.03, origin = "a test" }
top1_min = { limit = 0.90, origin = "a test" }
greedy_match_min = { limit = 0.5, origin = "a test" }
must_match = ["hello"]
"""


def case(test: str, subject: str = "", outcome: str = "PASS", message: str = "", **numbers: Any) -> CaseRecord:
    """A case of a sign-off."""
    name = f"{test}[{subject}]" if subject else test
    return CaseRecord(f"sign-off::{name}", test, TARGET, name, outcome, None, numbers, {}, message, None, 0.0)


def items(kl: float, count: int = ITEMS, nll: float = 0.001, agreeing: float = 0.97, seed: int = 1) -> list[CaseRecord]:
    """Items of ten positions whose mean KL is about `kl`."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        numbers: dict[str, Any] = {
            "positions": 10.0,
            "kl": float(kl * rng.lognormal(-0.125, 0.5) * 10),
            "kl_worst": kl * 3,
            "kl_worst_token": 2.0,
            "top1": float(rng.binomial(10, agreeing)),
            "golden_nll": 20.0,
            "nll": 20.0 + float(rng.normal(nll, 0.02) * 10),
            "quantisation_kl": kl * 9,
        }
        if index % 3 == 0:
            numbers |= {"prefill_positions": 4.0, "prefill_error": 0.04, "prefill_error_worst": 0.02}
            numbers |= {"prefill_floor": 1e-6, "prefill_yardstick_0": 0.04, "prefill_yardstick_0_worst": 0.02}
        found.append(case(ITEM, f"text-{index:03d}", **numbers))
    return found


class Signed:
    """A sign-off of made-up candidates: change `cases`, then ask for its conclusion or for its package."""

    def __init__(self, checkpoint: Checkpoint, machine: Machine, folder: Path) -> None:
        self.checkpoint, self.machine, self.folder = checkpoint, machine, folder
        self.policy_path = folder / "policy.toml"
        text = POLICY.read_text(encoding="utf-8")
        self.policy_path.write_text(text.partition("[signoff]")[0] + _after_signoff(text) + LIMITS, encoding="utf-8")
        self.suite = self._suite("scored", [{"text": "ab", "continuation": "c"}] * ITEMS)
        self.answered = self._suite("core", [{"text": "ab", "new_tokens": 1}] * 2, ("hello", "bye"))
        self.plan = Plan(1, (Candidate("fine", TARGET), Candidate("coarse", TARGET)))
        self.cases = {"fine": self.good(0.001), "coarse": self.good(0.01, seed=2)}
        self.sizes = {"fine": 2000, "coarse": 1000}
        self.changes: dict[str, Any] = {}
        self.audit = AuditReport("symmetric", {}, (), (), 0, {}, ())

    @property
    def policy(self) -> Policy:
        return read_policy(self.policy_path)

    @staticmethod
    def good(kl: float, **changes: Any) -> list[CaseRecord]:
        """Every case of a candidate that passes."""
        return [
            case("test_session"),
            case("test_weights", tensors=0.0, findings=0.0),
            *items(kl, **changes),
            case(IMPLEMENTATION, pooled_prefill_mean=0.01, pooled_prefill_worst=0.02),
            *(case("test_greedy_form", name) for name in ("hello", "bye")),
            *(case("test_greedy_match", name, match=1.0) for name in ("hello", "bye")),
            *(case("test_greedy_regret", name, regret_worst=0.01) for name in ("hello", "bye")),
            case("test_attestation", level=1.0),
        ]

    def change(self, name: str, test: str, subject: str = "", **changes: Any) -> None:
        """Change cases of a candidate: of one prompt, or of all."""
        wanted = f"{test}[{subject}]" if subject else test
        self.cases[name] = [
            msgspec.structs.replace(c, **changes) if wanted in (c.case, c.test) else c for c in self.cases[name]
        ]

    def drop(self, name: str, test: str, subject: str) -> None:
        """Take a case out of a candidate's record."""
        self.cases[name] = [c for c in self.cases[name] if c.case != f"{test}[{subject}]"]

    def record(self, name: str) -> RunRecord:
        """The record of a candidate."""
        made = SessionRecord(
            target=TARGET,
            kind=DeviceKind.CPU,
            compute_class=Precision.INT4,
            info=SessionInfo(24, Precision.FP32, {}, {"openvino": "2026.4.1"}),
            artifact=ArtifactRecord("exported", "int4-sym", "0" * 64, self.sizes[name], {}, []),
            evidence=Evidence(EvidenceLevel.MEASURED, (DeviceKind.CPU,), ("CPU",), "EXECUTION_DEVICES"),
            arithmetic="fp32 operators",
        )
        fields: dict[str, Any] = {
            "schema": 2,
            "harness": __version__,
            "started": "2026-11-22T12:00:00+00:00",
            "finished": "2026-11-22T12:01:00+00:00",
            "complete": True,
            "exit_status": 0,
            "command": ["phi3-conformance", "signoff"],
            "machine": self.machine,
            "checkpoint": CheckpointRecord(self.checkpoint.name, self.checkpoint.fingerprint(), self.checkpoint.window),
            "suites": {suite.name: suite.sha256 for suite in (self.answered, self.suite)},
            "policy_sha256": sha256_text(self.policy_path),
            "waivers_sha256": sha256_text(WAIVERS),
            "goldens": {
                suite.name: verify_files(self.goldens() / suite.name).manifest.own_sha256
                for suite in (self.answered, self.suite)
            },
            "sessions": [made],
            "cases": self.cases[name],
        }
        return RunRecord(**{**fields, **self.changes})

    def records(self) -> dict[str, RunRecord]:
        return {name: self.record(name) for name in self.cases}

    def package(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> running.SignedOff:
        """The package that a sign-off writes whose candidates come to these cases."""

        def measure(candidate: Candidate, _inputs: Inputs, _backends: object, path: Path, *_: object) -> Measured:
            path.parent.mkdir(parents=True, exist_ok=True)
            record = self.record(candidate.name)
            write_record(path, record)
            size = record.sessions[0].artifact.bytes
            recipe = Recipe("int4-sym", Precision.INT4)
            manifest = ArtifactManifest(self.checkpoint.name, "key", recipe, {}, [], "0" * 64, size)
            return Measured(record, to_json(self.audit), msgspec.json.encode(manifest))

        monkeypatch.setattr(running, "measure", measure)
        monkeypatch.setattr(measuring, "this_machine", lambda: self.machine)
        request = Request(
            plan=self.plan,
            checkpoint=str(self.checkpoint.path),
            prompts=self.suite.path,
            answers=self.answered.path,
            golden=self.goldens(),
            policy=self.policy_path,
            waivers=WAIVERS,
            interpreters={},
            trust_remote_code=False,
            command=("phi3-conformance",),
            created="2026-11-22T12:02:00+00:00",
            harness=__version__,
        )
        return sign_off(request, out, lambda _: None, lambda *_: None)

    def goldens(self) -> Path:
        """A root with the goldens of both suites."""
        root = self.folder / "goldens"
        for suite in (self.suite, self.answered):
            if not (root / suite.name).is_dir():
                write_golden(root / suite.name, *self._golden(suite))
        return root

    def _golden(self, suite: PromptSuite) -> tuple[Manifest, dict[str, Any], dict[str, Any]]:
        cases = tuple(
            Case(p.id, (1, 2), (3,), 1, False, (0.5,), given=p.continuation is not None) for p in suite.prompts
        )
        logits = {c.id: np.ones((3, self.checkpoint.vocabulary), np.float32) for c in cases}
        manifest = Manifest(
            schema=SCHEMA,
            checkpoint=self.checkpoint.name,
            fingerprint=self.checkpoint.fingerprint(),
            suite=suite.name,
            suite_sha256=suite.sha256,
            vocabulary=self.checkpoint.vocabulary,
            window=self.checkpoint.window,
            end_tokens=(2,),
            cases=cases,
            noise=Noise(("a",), 1e-7, 2e-7, 1e-6),
            files={},
            versions={"torch": "2.14.1"},
            load_options={},
            machine=self.machine,
            recorded="2026-11-22T12:00:00+00:00",
        )
        return manifest, logits, {}

    def _suite(self, name: str, prompts: Sequence[dict[str, Any]], ids: Sequence[str] = ()) -> PromptSuite:
        lines = [
            json.dumps({"id": ids[n] if ids else f"text-{n:03d}", "about": "", **prompt})
            for n, prompt in enumerate(prompts)
        ]
        path = self.folder / f"{name}.jsonl"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return read_suite(path)


def _after_signoff(text: str) -> str:
    """The policy's text after its table [signoff]."""
    rest = text.partition("[signoff]")[2]
    return rest[rest.index("\n[") :]
