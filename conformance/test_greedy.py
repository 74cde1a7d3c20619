"""Greedy decoding by the runtime's own loop, as its users get it."""

from harness.judge import Judge
from harness.run import PromptCase
from harness.sessions import TargetSession


def test_greedy_form(session: TargetSession, prompt: PromptCase, judge: Judge) -> None:
    """An answer is not empty, stops at an end token or at the limit and nowhere else, and is no echo."""
    judge.form(prompt, session.generate(prompt))


def test_greedy_match(session: TargetSession, prompt: PromptCase, judge: Judge) -> None:
    """The answer is the golden's, or leaves it first where the golden itself is nearly undecided."""
    judge.match(prompt, session.generate(prompt))


def test_greedy_regret(session: TargetSession, prompt: PromptCase, judge: Judge) -> None:
    """Every token the device chose is, for the reference on the device's own text, as good as its best."""
    judge.regret(prompt, session.generate(prompt))


def test_greedy_of_suite(suite: list[PromptCase], judge: Judge) -> None:
    """Enough of a suite's prompts are answered exactly as the golden answers them."""
    judge.suite_agreement(suite)
