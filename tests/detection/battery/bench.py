"""The bench: judges an artifact and what a device gave for it by the product's own functions, in this process."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from detection.battery import rules
from detection.battery.trial import Answers, Cause, Logits, Planted, Trial
from harness import compare, metrics
from harness.arithmetic import Arithmetic
from harness.audit import audit
from harness.backend import Session, load_backend, teacher_force
from harness.checkpoint import Checkpoint, open_checkpoint
from harness.compact import CompactRows
from harness.compact_plan import places_of, plan_for
from harness.compacting import compacted
from harness.compare import Outcome, Rows
from harness.decompose import ArtifactReferences, Inference
from harness.errors import ArtifactError, Stage, Unsupported
from harness.golden import TREE, Case, verify_files
from harness.policy import Policy, read_policy
from harness.products import GivesProducts, Products
from harness.reference.artifact import ArtifactReference
from harness.reference.model import completed
from harness.reference.products import distances
from harness.reference.suspects import Responses
from harness.reference_rows import ReferenceRows, WholeRows
from harness.suspects import judge_suspects, weigh
from harness.target import Precision
from harness.vocabulary import judge_entries
from harness.weights import ArtifactWeights, ReadsWeights
from harness.worker import Worker
from harness.yardstick import Decomposed, Part, judge_implementation, parts

GOLDEN = TREE / "golden" / "phi-3-tiny"
CHECKPOINT = GOLDEN / "checkpoint"
# Of middling length, of several scripts; the last one is past the sliding window.
PROMPTS = (
    ("core", "introduce-yourself"), ("core", "english-continued"), ("core", "arabic"), ("core", "rare-characters"),
    ("core", "german"), ("core", "four-turns"), ("long", "window-plus-one"),
)  # fmt: skip
_PROBES = 4


def products_of(session: Session) -> Products:
    """The products that a session computes alone; none where it cannot."""
    try:
        return session.products() if isinstance(session, GivesProducts) else {}
    except Unsupported:
        return {}


class LocalWorker:
    """Answers what `ArtifactReferences` asks of a worker, without a process."""

    def __init__(self, weights: ArtifactWeights, config: dict[str, Any]) -> None:
        self._reference = ArtifactReference(weights, config)
        self._responses = Responses(self._reference)
        self.running = True
        self._given: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}

    def start(self) -> None:
        """Nothing is to be started."""

    def stop(self) -> None:
        """Nothing is to be stopped."""

    def call(self, stage: Stage, operation: str, **asked: Any) -> Any:
        """What the worker's operation of that name gives."""
        if operation == "open":
            return {"missing": []}
        if operation == "open_reference":
            return ""
        if operation == "holds_codes":
            return self._reference.holds_codes
        if operation == "product_distances":
            return distances(self._reference, asked["products"], asked["permitted"])
        if operation == "begin_reference":  # of the work that is done step by step, line-ups are asked for
            self._asked = asked["asked"]
            return None
        if operation == "advance_reference":
            return None
        if operation == "reference_result":
            return msgspec.structs.asdict(completed(self._responses.lineup(**self._asked)))
        key = f"{operation} {asked}"
        if key not in self._given:  # the same is asked for many faults of one device
            tokens, prefill, arithmetic = asked["tokens"], asked["prefill"], asked["arithmetic"]
            if operation == "reference_logits":
                self._given[key] = self._reference.logits([(tokens, prefill)], arithmetic)[0]
            else:
                self._given[key] = self._reference.yardsticks(tokens, prefill, arithmetic)
        return self._given[key]


class Bench:
    """Checkpoint, goldens and policy, and the references of every artifact met so far."""

    def __init__(self, scratch: Path, prompts: Sequence[tuple[str, str]] = PROMPTS, *, compact: bool = False) -> None:
        """`compact`: what is judged against the golden is judged against compact rows of it."""
        self.scratch = scratch
        self.checkpoint: Checkpoint = open_checkpoint(CHECKPOINT)
        self.policy: Policy = read_policy(TREE / "conformance" / "policy.toml")
        goldens = {name: verify_files(GOLDEN / name) for name in {suite for suite, _ in prompts}}
        self.cases: list[Case] = [goldens[suite].case(prompt) for suite, prompt in prompts]
        self.golden: list[Logits] = [goldens[suite].logits(prompt) for suite, prompt in prompts]
        self.rows: list[ReferenceRows] = [WholeRows(logits) for logits in self.golden]
        if compact:
            self.rows = _compact(self.cases, self.golden)
        self.end_tokens = next(iter(goldens.values())).manifest.end_tokens

    @property
    def prefills(self) -> list[int]:
        """How many tokens of each prompt are fed at once."""
        return [len(case.tokens) for case in self.cases]

    def weights(self, backend: str, artifact: Path) -> ArtifactWeights:
        """What an artifact stores."""
        reader = load_backend(backend)
        assert isinstance(reader, ReadsWeights)
        return reader.dequantized_weights(artifact, self.checkpoint.config)

    def audit(self, backend: str, artifact: Path) -> str:
        """The first finding of the weight audit and how many there are; empty where it is clean."""
        try:
            report = audit(self.weights(backend, artifact), self.checkpoint)
        except ArtifactError as error:  # an artifact that is not read is refused by name, which is a finding
            return f"refused: {error.problem}"
        if report.clean:
            return ""
        first = report.findings[0].sentence if report.findings else "nothing was looked at"
        return f"{report.count} findings: {first}"

    def ask(self, session: Session) -> Answers:
        """Teacher-forced logits of every prompt."""
        found = [teacher_force(session, np.asarray(c.tokens), np.asarray(c.continuation)) for c in self.cases]
        return Answers(found, session.info.permitted, products_of(session))

    def references(self, weights: ArtifactWeights) -> ArtifactReferences:
        """The references on an artifact's exact weights; what they keep is kept in the scratch folder."""
        worker = LocalWorker(weights, self.checkpoint.config)
        # An absolute path takes the place of the user's cache, where references of faulty artifacts have no business.
        key = str(Path(tempfile.mkdtemp(dir=self.scratch)))
        return ArtifactReferences(lambda: cast(Worker, worker), {}, key)


class Station:
    """One artifact on one device without a fault: what its faults are held against."""

    def __init__(self, bench: Bench, weights: ArtifactWeights, clean: Answers, precision: Precision) -> None:
        self.bench = bench
        self.clean = clean
        self.precision = precision
        self.references = bench.references(weights)
        self.noise = 1.0
        self.usual_kl = rules.mean_kl(bench.golden, clean.logits)
        self._unit = units(self.apart(clean, self.references)[1])

    def apart(self, answers: Answers, references: ArtifactReferences) -> tuple[Inference, list[Decomposed]]:
        """The errors of every prompt taken apart, and the arithmetic that they were held against."""
        bench = self.bench
        probes = [
            (case.sequence, len(case.tokens), np.nan_to_num(found))
            for case, found in zip(bench.cases[:_PROBES], answers.logits, strict=False)
        ]
        # Weights are rounded anew whenever the rounding changes from one candidate to the next.
        inference = references.infer(sorted(answers.permitted, key=lambda a: a.weights.value), probes, answers.products)
        found = []
        for case, golden, device in zip(bench.cases, bench.rows, answers.logits, strict=True):
            total = compare.compare_logits(golden, device, len(case.tokens), whole_prompt=True)
            if isinstance(total, Rows):
                apart = references.decompose(golden, device, total, case.sequence, len(case.tokens), inference)
                found.append(apart)
        return inference, found

    def judge(
        self, planted: Planted, answers: Answers, *, finding: str = "", weights: ArtifactWeights | None = None
    ) -> Trial:
        """Judge what a device gave; `weights` are the artifact's where it is not the station's own.

        `finding` is the audit's. Where there is one it settles the cause, and the device is heard for the effect only.
        """
        bench = self.bench
        failed: dict[Cause, str] = {Cause.AUDIT: finding} if finding else {}
        protocol = self._protocol(answers)
        if protocol:
            failed[Cause.PROTOCOL] = protocol
            return Trial(
                planted, failed, None, rules.apply(bench.golden, answers.logits, bench.prefills, self.usual_kl)
            )
        ratios = (0.0, 0.0)
        if not finding:  # what the audit finds is put down to the artifact, whatever the device makes of it
            inference, found = self.apart(answers, self.references if weights is None else bench.references(weights))
            errors, ratios = self._errors(found, inference.arithmetic)
            failed |= errors
            if Cause.IMPLEMENTATION not in failed:
                failed |= self._suspects(answers, inference.arithmetic, weights)
        alarms = rules.apply(bench.golden, answers.logits, bench.prefills, self.usual_kl)
        return Trial(planted, failed, self.effect(answers), alarms, self.noise, ratios)

    def _protocol(self, answers: Answers) -> str:
        for case, golden, device in zip(self.bench.cases, self.bench.rows, answers.logits, strict=True):
            total = compare.compare_logits(golden, device, len(case.tokens), whole_prompt=True)
            if not isinstance(total, Rows):
                return total.message
        return ""

    def _errors(
        self, found: Sequence[Decomposed], arithmetic: Arithmetic
    ) -> tuple[dict[Cause, str], tuple[float, float]]:
        """The first prompt that fails in each way, or the suite; and the largest ratios, of means and of worst ones."""
        policy = self.bench.policy
        failed: dict[Cause, str] = {}
        limits = policy.implementation_of(arithmetic.compute_class)
        weights = policy.limits_of(self.precision).logits
        largest = {"mean": 0.0, "worst": 0.0}
        for prompts, suite in [*(([one], False) for one in found), (list(found), True)]:
            verdict = judge_implementation(prompts, limits, suite=suite)
            for key in largest:
                ratios = [n for name, n in verdict.numbers.items() if name.startswith("ratio") and name.endswith(key)]
                largest[key] = max(largest[key], *ratios)
            if verdict.outcome is not Outcome.PASS:
                failed.setdefault(Cause.IMPLEMENTATION, verdict.message.splitlines()[0])
        for case, one in zip(self.bench.cases, found, strict=True):
            verdict = compare.judge_logits(one.quantisation, weights, len(case.tokens))
            if verdict.outcome is not Outcome.PASS:
                failed.setdefault(Cause.QUANTISATION, f"{case.id}: {verdict.message.splitlines()[0]}")
        entries = policy.entries
        assert entries is not None
        for cause, limit, errors in (
            (Cause.IMPLEMENTATION, entries.implementation, [one.implementation.errors for one in found]),
            (Cause.QUANTISATION, entries.total, [one.total.errors for one in found]),
        ):
            verdict = judge_entries(errors, limit, "implementation" if cause is Cause.IMPLEMENTATION else "total")
            if verdict.outcome is not Outcome.PASS:
                failed.setdefault(cause, verdict.message)
        return failed, (largest["mean"], largest["worst"])

    def _suspects(self, answers: Answers, arithmetic: Arithmetic, weights: ArtifactWeights | None) -> dict[Cause, str]:
        """What the suspects say, where the yardstick says nothing."""
        references = self.references if weights is None else self.bench.references(weights)
        prompts = [
            (case.sequence, len(case.tokens), found)
            for case, found in zip(self.bench.cases, answers.logits, strict=True)
        ]
        verdict = judge_suspects(weigh(references.lineup(prompts, arithmetic)))
        return {} if verdict.outcome is Outcome.PASS else {Cause.IMPLEMENTATION: verdict.message}

    def effect(self, answers: Answers) -> float:
        """How far the logits are from those without the fault: the largest part's mean or worst, in yardsticks."""
        largest = 0.0
        for number, (clean, device) in enumerate(zip(self.clean.logits, answers.logits, strict=True)):
            moved = metrics.centred_rms_error(clean, device)
            for name, mean, worst, first, last in self._unit[number]:
                del name
                rows = moved[first:last]
                largest = max(largest, float(rows.mean()) / mean, float(rows.max()) / worst)
        return largest


def _compact(cases: Sequence[Case], golden: Sequence[Logits]) -> list[ReferenceRows]:
    """The goldens' rows by a sixteenth of their bytes."""
    plan = plan_for(golden[0].shape[1], compact=True)
    assert plan is not None
    places = places_of([case.lengths for case in cases])
    return [
        CompactRows(compacted(logits, case.following, own, plan), case.following, own, plan)
        for case, logits, (own, _) in zip(cases, golden, places, strict=True)
    ]


def units(found: Sequence[Decomposed]) -> list[list[tuple[str, float, float, int, int]]]:
    """For each prompt its parts: name, mean and worst yardstick in logits, first and last row."""
    result = []
    for one in found:
        rows = []
        for part in parts([one]):
            first = 0 if part.name == "prefill" else one.prefill
            rows.append((part.name, part.mean_yardstick, part.worst_yardstick, first, first + _size(part)))
        result.append(rows)
    return result


def _size(part: Part) -> int:
    return int(part.errors.size)
