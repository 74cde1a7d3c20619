"""What a conformance test asks: judge these logits, these tokens, this evidence.

Every method gives a verdict; one that is not PASS is raised as `CaseFailed`, which the plugin turns into
a report without a traceback. A case without sufficient evidence of its device never passes: its correct
numbers are UNATTESTED.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import compare
from harness.checkpoint import Checkpoint
from harness.compare import Outcome, Rows, Verdict
from harness.decompose import ArtifactReferences, Inference
from harness.details import detail
from harness.errors import StageError, Unsupported
from harness.findings import AuditReport
from harness.longrope import crossed, generation, nearer_form, switch_of
from harness.policy import ClassLimits, Policy
from harness.record import Detail
from harness.reference_rows import ReferenceRows, WholeRows
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.speed import Timing, judge_speed
from harness.suspects import Suspicion, judge_suspects
from harness.tracing import first_bad
from harness.verdicts import both, broken, joined, with_left_out
from harness.vocabulary import judge_entries
from harness.words import Words
from harness.yardstick import Decomposed, judge_implementation, judge_regret

T = TypeVar("T")

# Findings of an audit that a failure spells out.
_SENTENCES = 6


class CaseFailed(Exception):
    """A case whose outcome is not PASS."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict


class Judge:
    """Judges one case of one session against a policy, and keeps its verdicts."""

    def __init__(self, session: TargetSession, policy: Policy, checkpoint: Checkpoint) -> None:
        self.session = session
        self.policy = policy
        self.verdicts: list[Verdict] = []
        self.detail: Detail | None = None
        """What the device gave position by position, for the record."""
        self._checkpoint = checkpoint

    @property
    def limits(self) -> ClassLimits:
        """The limits of the session's compute class."""
        return self.policy.limits_of(self.session.compute_class)

    def attestation(self) -> None:
        """The device that computed is of the kind asked for, and the evidence suffices."""
        self.conclude(self._evidence())

    def logits(self, prompt: PromptCase, found: Rows | Decomposed | Verdict) -> None:
        """Teacher-forced logits of a prompt lie within the limits at every position.

        Taken apart where that is possible: quantisation error by the policy, implementation error by the yardstick.
        """
        self.detail = detail(found, self.session.answer(prompt))
        if isinstance(found, Decomposed):
            found = self._apart(found, prompt)
        elif isinstance(found, Rows):
            found = compare.judge_logits(found, self.limits.logits, len(prompt.case.tokens))
        if prompt.case.switch and found.outcome is Outcome.FAIL and found.limits:
            said = nearer_form(prompt.rows(), prompt.golden.fresh_rows(prompt.id), self.session.logits(prompt))
            found = msgspec.structs.replace(found, message=f"{found.message}\n{said}")
        self.conclude(found, prompt)

    def weights(self, report: AuditReport) -> None:
        """The artifact stores what its scheme makes of the checkpoint. No device has a part in this."""
        sentences = [finding.sentence for finding in report.findings[:_SENTENCES]]
        if report.count > len(sentences):
            sentences.append(f"{report.count} findings in all: phi3-conformance audit")
        lines = [f"weight audit: {sentence}" for sentence in sentences or ["the artifact holds no tensors"]]
        numbers = {"tensors": float(len(report.tensors)), "findings": float(report.count)}
        outcome, message = (Outcome.PASS, "") if report.clean else (Outcome.FAIL, "\n".join(lines))
        self._keep(Verdict(outcome, numbers, {"findings": 0.0}, message), None)

    def tokenizer(self, verdict: Verdict) -> None:
        """The runtime's tokenizer agrees with the checkpoint's. No device has a part in this."""
        self._keep(verdict, None)

    def speed(self, found: Timing) -> None:
        """No latency is above a limit of the policy, which by default has none."""
        self.conclude(judge_speed(found, self.policy.speed_of(self.session.target)))

    def suspects(self, found: Sequence[Suspicion]) -> None:
        """No known fault of kernels is a part of the implementation error."""
        self.conclude(judge_suspects(found))

    def _apart(self, found: Decomposed, prompt: PromptCase) -> Verdict:
        """Both errors judged; where the implementation is to blame, once a session (it is slow) where it breaks."""
        policy, length = self.policy, len(prompt.case.tokens)
        weights = policy.limits_of(self.session.target.precision).logits
        quantisation = compare.judge_logits(found.quantisation, weights, length)
        implementation = judge_implementation([found], policy.implementation_of(found.compute_class))
        total = compare.judge_logits(found.total, weights, length)
        verdict = joined(total, quantisation, implementation)
        if implementation.outcome is Outcome.PASS or self.session.first_bad is not None:
            return verdict
        self.session.first_bad = first_bad(self.session, prompt)
        return msgspec.structs.replace(verdict, message=f"{verdict.message}\n{self.session.first_bad}")

    def suite_logits(self, prompts: Sequence[PromptCase]) -> None:
        """Mean KL and top-1 agreement over all positions of a suite lie within the limits."""
        found, left_out = self._of_each(prompts, self._errors)
        failed = {key: value for key, value in found.items() if isinstance(value, Verdict)}
        if failed:
            self.conclude(broken(failed))
        totals = [rows.total if isinstance(rows, Decomposed) else rows for rows in found.values()]
        errors = [rows.errors for rows in totals if isinstance(rows, Rows)]
        verdict = compare.judge_suite(errors, self.limits.suite)
        apart = [one for one in found.values() if isinstance(one, Decomposed)]
        if apart:
            limits = self.policy.implementation_of(apart[0].compute_class)
            verdict = both(verdict, judge_implementation(apart, limits, suite=True))
        entries = self.policy.entries
        if entries is not None:
            verdict = both(verdict, judge_entries(errors, entries.total, "total"))
            own = [one.implementation.errors for one in apart]
            verdict = both(verdict, judge_entries(own, entries.implementation, "implementation")) if own else verdict
        self.conclude(with_left_out(verdict, left_out))

    def form(self, prompt: PromptCase, tokens: Sequence[int]) -> None:
        """An answer is not empty, ends where it may and is no echo of its prompt."""
        case = prompt.case
        ends = prompt.golden.manifest.end_tokens
        verdict = compare.judge_form(tokens, case.new_tokens, ends)
        if verdict.outcome is Outcome.PASS and compare.is_echo(case.tokens, tokens, case.continuation, ends):
            verdict = msgspec.structs.replace(
                verdict, outcome=Outcome.FAIL, message="the answer is the prompt over again; the golden's is not"
            )
        self.conclude(verdict, prompt)

    def match(self, prompt: PromptCase, tokens: Sequence[int]) -> None:
        """Greedy tokens equal the golden's, or leave them where the golden hardly prefers its own."""
        if all(0 <= token < prompt.golden.manifest.vocabulary for token in tokens):
            self.detail = Detail(tokens=list(tokens))
        case, recomputes = prompt.case, self.session.recomputes(prompt, prompt.case.continuation)

        def ask() -> NDArray[np.float32]:
            return self.session.run.reference_logits(case, case.continuation, recomputes=recomputes)

        rows = prompt.choosing_rows(cached=not recomputes)
        verdict = compare.judge_match(case.continuation, tokens, rows, self.limits.greedy, ask)
        token = verdict.numbers.get("token")
        if token is not None:
            place = int(token)
            verdict = self._name_tokens(verdict, tokens[place], case.continuation[place], "the golden")
        self.conclude(verdict, prompt)

    def regret(self, prompt: PromptCase, tokens: Sequence[int]) -> None:
        """Every token chosen is, for the reference on the device's own text, nearly as good as its best."""
        if not tokens:
            self.conclude(Verdict(Outcome.FAIL, {}, {}, "no tokens and no error"), prompt)
        vocabulary = prompt.golden.manifest.vocabulary
        if any(not 0 <= token < vocabulary for token in tokens):
            self.conclude(Verdict(Outcome.FAIL, {}, {}, f"token ids outside 0..{vocabulary - 1}"), prompt)
        inference, references = self.session.infer(), self.session.references()
        if inference is not None and references is not None:
            verdict = self._regret_apart(prompt, tokens, inference, references)
        else:
            recomputes = self.session.recomputes(prompt, tokens)
            if list(tokens) == list(prompt.case.continuation[: len(tokens)]):
                reference: ReferenceRows = prompt.choosing_rows(cached=not recomputes)[: len(tokens)]
            else:
                reference = WholeRows(self.session.run.reference_logits(prompt.case, tokens, recomputes=recomputes))
            verdict = compare.judge_regret(reference, tokens, self.limits.greedy)
        if verdict.outcome is Outcome.FAIL and "chosen" in verdict.numbers:
            chosen, preferred = int(verdict.numbers["chosen"]), int(verdict.numbers["preferred"])
            verdict = self._name_tokens(verdict, chosen, preferred, "the reference")
        self.conclude(verdict, prompt)

    def _regret_apart(
        self, prompt: PromptCase, tokens: Sequence[int], inference: Inference, references: ArtifactReferences
    ) -> Verdict:
        """Regret against the artifact reference on the device's own text, in multiples of the yardstick there."""
        arithmetic = inference.arithmetic
        sequence, prefill = [*prompt.case.tokens, *tokens], len(prompt.case.tokens)
        choosing = slice(prefill - 1, len(sequence) - 1)
        switch = crossed(switch_of(self._checkpoint.config), prefill, len(sequence))
        passes = generation(prefill, len(sequence), switch, recomputes=self.session.recomputes(prompt, tokens))
        reference = np.concatenate(
            [references.logits(sequence[: one.end], one.prefill, arithmetic)[one.first :] for one in passes]
        )
        found = [(references.yardsticks(sequence[: one.end], one.prefill, arithmetic), one.first) for one in passes]
        rows = [np.concatenate([part[name][first:] for part, first in found])[choosing] for name in found[0][0]]
        limits = self.policy.implementation_of(arithmetic.compute_class)
        pooled = inference.pooled.get("decode_worst", 0.0)
        return judge_regret(reference[choosing], tokens, rows, pooled, limits.regret)

    def suite_agreement(self, prompts: Sequence[PromptCase]) -> None:
        """The share of prompts answered exactly as the golden answers is within the limit.

        Left out are those that the runtime, by its design, answers otherwise past LongRoPE's switch.
        """
        alike = [prompt for prompt in prompts if self._answers_alike(prompt)]
        found, left_out = self._of_each(alike, self._tokens)
        left_out += len(prompts) - len(alike)
        golden = {prompt.id: prompt.case.continuation for prompt in prompts}
        matches = [tuple(tokens) == golden[prompt_id] for prompt_id, tokens in found.items()]
        self.conclude(with_left_out(compare.judge_agreement(matches, self.limits.suite), left_out))

    def _answers_alike(self, prompt: PromptCase) -> bool:
        return not prompt.case.switch or self.session.recomputes(prompt, prompt.case.continuation)

    def _of_each(self, prompts: Sequence[PromptCase], ask: Callable[[PromptCase], T]) -> tuple[dict[str, T], int]:
        """What each prompt gives, and how many the session is too small for. Raises Unsupported if it is for all."""
        found: dict[str, T] = {}
        refused: Unsupported | None = None
        for prompt in prompts:
            try:
                found[prompt.id] = ask(prompt)
            except Unsupported as error:
                refused = error
        if refused is not None and not found:
            raise refused
        return found, len(prompts) - len(found)

    def _errors(self, prompt: PromptCase) -> Rows | Decomposed | Verdict:
        try:
            return self.session.errors(prompt)
        except StageError as error:
            raise _for_prompt(error, prompt) from None

    def _tokens(self, prompt: PromptCase) -> list[int]:
        try:
            return self.session.generate(prompt)
        except StageError as error:
            raise _for_prompt(error, prompt) from None

    def _evidence(self) -> Verdict:
        session = self.session
        return compare.judge_evidence(session.evidence(), session.kind, self.policy, session.target.index)

    def conclude(self, verdict: Verdict, prompt: PromptCase | None = None) -> None:
        """Keep a verdict; raise it unless it is PASS and the device is attested.

        Where it is shown that another device computed, wrong numbers are not the asked one's failure either.
        """
        evidence = self._evidence()
        lines = [evidence.message]
        if verdict.outcome is Outcome.FAIL and evidence.numbers["contradicted"]:
            lines.append("what it computed would fail, too:\n" + verdict.message)
        if evidence.outcome is not Outcome.PASS and (verdict.outcome is Outcome.PASS or len(lines) > 1):
            verdict = msgspec.structs.replace(verdict, outcome=evidence.outcome, message="\n".join(lines))
        self._keep(verdict, prompt)

    def _keep(self, verdict: Verdict, prompt: PromptCase | None) -> None:
        """Keep a verdict, and raise it unless it is PASS."""
        self.verdicts.append(verdict)
        if verdict.outcome is not Outcome.PASS:
            raise CaseFailed(msgspec.structs.replace(verdict, message=self._explain(verdict, prompt)))

    def _explain(self, verdict: Verdict, prompt: PromptCase | None) -> str:
        session = self.session
        head = str(session.target)
        if prompt is not None:
            n, m = len(prompt.case.tokens), len(prompt.case.continuation)
            head += f"  prompt {prompt.id!r} of {prompt.suite} ({n} tokens, then {m})"
        lines = [head, *(f"  {line}" for line in verdict.message.splitlines())]
        if session.load_options:
            given = ", ".join(f"{name}={value}" for name, value in session.load_options.items())
            lines.append(f"  diagnostic, not the runtime's defaults: loaded with {given}")
        for name, found in (session.info.ignored if session.info else {}).items():
            lines.append(f"  the runtime ignored {name}: it reads back as {found}")
        if verdict.limits and verdict.outcome is Outcome.FAIL:
            lines.append(f"  {self._how_judged()}")
        return "\n".join(lines)

    def _how_judged(self) -> str:
        session = self.session
        if session.inference is not None:
            return f"the device computes as with {session.inference.arithmetic} (inferred)"
        arithmetic = session.info.arithmetic if session.info else None
        reason = ""
        if session.compute_class is not session.target.precision:
            computes = arithmetic.value if arithmetic else "?"
            reason = f": {session.target.precision.value} weights, but the runtime computes in {computes}"
        if session.undecomposed:
            reason += f"; this is the total error, which cannot be taken apart: {session.undecomposed}"
        return f"judged as {session.compute_class.value}{reason}"

    def _name_tokens(self, verdict: Verdict, chosen: int, preferred: int, who: str) -> Verdict:
        texts = token_texts(self._checkpoint.path, [chosen, preferred])
        line = f"chose {texts[0]}, {who} prefers {texts[1]}"
        return msgspec.structs.replace(verdict, message=f"{line}\n{verdict.message}" if verdict.message else line)


def _for_prompt(error: StageError, prompt: PromptCase) -> StageError:
    return type(error)(error.stage, f"prompt {prompt.id!r}: {error.problem}", error.remedy)


def token_texts(checkpoint: Path, tokens: Sequence[int]) -> list[str]:
    """What tokens stand for, quoted; their ids where the checkpoint has no tokenizer.json."""
    known = Words(checkpoint).texts(tokens)
    return [repr(known[token]) if token in known else f"token {token}" for token in tokens]
