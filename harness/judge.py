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

from harness import compare
from harness.checkpoint import Checkpoint
from harness.compare import Outcome, Rows, Verdict
from harness.errors import StageError, Unsupported
from harness.policy import ClassLimits, Policy
from harness.run import PromptCase
from harness.sessions import TargetSession
from harness.target import Precision

T = TypeVar("T")


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
        self._checkpoint = checkpoint

    @property
    def limits(self) -> ClassLimits:
        """The limits of the session's compute class."""
        return self.policy.limits_of(self.session.compute_class)

    def attestation(self) -> None:
        """The device that computed is of the kind asked for, and the evidence suffices."""
        self._conclude(self._evidence())

    def logits(self, prompt: PromptCase, found: Rows | Verdict) -> None:
        """Teacher-forced logits of a prompt lie within the limits at every position."""
        if isinstance(found, Rows):
            found = compare.judge_logits(found, self.limits.logits, len(prompt.case.tokens))
        self._conclude(found, prompt)

    def suite_logits(self, prompts: Sequence[PromptCase]) -> None:
        """Mean KL and top-1 agreement over all positions of a suite lie within the limits."""
        found, left_out = self._of_each(prompts, self._errors)
        broken = {key: value for key, value in found.items() if isinstance(value, Verdict)}
        if broken:
            self._conclude(_broken(broken))
        errors = [rows.errors for rows in found.values() if isinstance(rows, Rows)]
        self._conclude(_with_left_out(compare.judge_suite(errors, self.limits.suite), left_out))

    def form(self, prompt: PromptCase, tokens: Sequence[int]) -> None:
        """An answer is not empty, ends where it may and is no echo of its prompt."""
        case = prompt.case
        ends = prompt.golden.manifest.end_tokens
        verdict = compare.judge_form(tokens, case.new_tokens, ends)
        if verdict.outcome is Outcome.PASS and compare.is_echo(case.tokens, tokens, case.continuation):
            verdict = msgspec.structs.replace(
                verdict, outcome=Outcome.FAIL, message="the answer is the prompt over again; the golden's is not"
            )
        self._conclude(verdict, prompt)

    def match(self, prompt: PromptCase, tokens: Sequence[int]) -> None:
        """Greedy tokens equal the golden's, or leave them where the golden hardly prefers its own."""
        verdict = compare.judge_match(prompt.case.continuation, tokens, prompt.choosing_logits(), self.limits.greedy)
        token = verdict.numbers.get("token")
        if token is not None:
            place = int(token)
            verdict = self._name_tokens(verdict, tokens[place], prompt.case.continuation[place], "the golden")
        self._conclude(verdict, prompt)

    def regret(self, prompt: PromptCase, tokens: Sequence[int]) -> None:
        """Every token chosen is, for the reference on the device's own text, nearly as good as its best."""
        if not tokens:
            self._conclude(Verdict(Outcome.FAIL, {}, {}, "no tokens and no error"), prompt)
        vocabulary = prompt.golden.manifest.vocabulary
        if any(not 0 <= token < vocabulary for token in tokens):
            self._conclude(Verdict(Outcome.FAIL, {}, {}, f"token ids outside 0..{vocabulary - 1}"), prompt)
        if list(tokens) == list(prompt.case.continuation[: len(tokens)]):
            reference = prompt.choosing_logits()[: len(tokens)]
        else:
            reference = self.session.run.reference_logits(prompt.case, tokens)
        verdict = compare.judge_regret(reference, tokens, self.limits.greedy)
        if verdict.outcome is Outcome.FAIL and "chosen" in verdict.numbers:
            chosen, preferred = int(verdict.numbers["chosen"]), int(verdict.numbers["preferred"])
            verdict = self._name_tokens(verdict, chosen, preferred, "the reference")
        self._conclude(verdict, prompt)

    def suite_agreement(self, prompts: Sequence[PromptCase]) -> None:
        """The share of prompts answered exactly as the golden answers is within the limit."""
        found, left_out = self._of_each(prompts, self._tokens)
        golden = {prompt.id: prompt.case.continuation for prompt in prompts}
        matches = [tuple(tokens) == golden[prompt_id] for prompt_id, tokens in found.items()]
        self._conclude(_with_left_out(compare.judge_agreement(matches, self.limits.suite), left_out))

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

    def _errors(self, prompt: PromptCase) -> Rows | Verdict:
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

    def _conclude(self, verdict: Verdict, prompt: PromptCase | None = None) -> None:
        """Keep a verdict; raise it unless it is PASS and the device is attested.

        Where it is shown that another device computed, wrong numbers are not the asked one's failure either.
        """
        evidence = self._evidence()
        lines = [evidence.message]
        if verdict.outcome is Outcome.FAIL and evidence.numbers["contradicted"]:
            lines.append("what it computed would fail, too:\n" + verdict.message)
        if evidence.outcome is not Outcome.PASS and (verdict.outcome is Outcome.PASS or len(lines) > 1):
            verdict = msgspec.structs.replace(verdict, outcome=evidence.outcome, message="\n".join(lines))
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
            lines.append(f"  judged as {session.compute_class.value}{self._why_class()}")
        return "\n".join(lines)

    def _why_class(self) -> str:
        session = self.session
        arithmetic = session.info.arithmetic if session.info else None
        reason = ""
        if session.compute_class is not session.target.precision:
            computes = arithmetic.value if arithmetic else "?"
            reason = f": {session.target.precision.value} weights, but the runtime computes in {computes}"
        if session.compute_class in (Precision.INT8, Precision.INT4):
            reason += "; this is the total error, of quantisation and implementation together"
        return reason

    def _name_tokens(self, verdict: Verdict, chosen: int, preferred: int, who: str) -> Verdict:
        texts = token_texts(self._checkpoint.path, [chosen, preferred])
        line = f"chose {texts[0]}, {who} prefers {texts[1]}"
        return msgspec.structs.replace(verdict, message=f"{line}\n{verdict.message}" if verdict.message else line)


def _with_left_out(verdict: Verdict, left_out: int) -> Verdict:
    """The verdict on a suite, with the number of prompts that the session could not take."""
    if not left_out:
        return verdict
    return msgspec.structs.replace(verdict, numbers={**verdict.numbers, "prompts_left_out": float(left_out)})


def _broken(broken: dict[str, Verdict]) -> Verdict:
    lines = [f"prompt {key!r}: {verdict.message}" for key, verdict in broken.items()]
    return Verdict(Outcome.FAIL, {"broken_prompts": float(len(broken))}, {}, "\n".join(lines))


def _for_prompt(error: StageError, prompt: PromptCase) -> StageError:
    return type(error)(error.stage, f"prompt {prompt.id!r}: {error.problem}", error.remedy)


def token_texts(checkpoint: Path, tokens: Sequence[int]) -> list[str]:
    """What tokens stand for, quoted; their ids where the checkpoint has no tokenizer.json."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    except Exception:  # noqa: BLE001 - the library raises bare Exception; a message must not fail for want of a word
        return [f"token {token}" for token in tokens]
    return [repr(tokenizer.decode([token], skip_special_tokens=False)) for token in tokens]
