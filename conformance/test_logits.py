"""Teacher-forced logits against the FP32 golden: prefill over the prompt, then one token at a time."""

from harness.judge import Judge
from harness.run import PromptCase
from harness.sessions import TargetSession


def test_logits(session: TargetSession, prompt: PromptCase, judge: Judge) -> None:
    """At every position of a prompt and of the golden's answer, logits are finite and near the golden's."""
    judge.logits(prompt, session.errors(prompt))


def test_logits_of_suite(suite: list[PromptCase], judge: Judge) -> None:
    """Over all prompts of a suite, mean KL is small and the best token is nearly always the golden's."""
    judge.suite_logits(suite)
