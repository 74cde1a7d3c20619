"""The rest of the Phi-3 family: LongRoPE on both sides of its switch, partial rotary embedding, tied embeddings."""

import pytest

from harness import family
from harness.judge import Judge

pytestmark = [
    pytest.mark.slow_but(target="pytorch:cpu:fp32", member="phi-4-mini"),
    pytest.mark.parametrize("member", family.MEMBERS, indirect=True),
    pytest.mark.parametrize("stretch", ["before", "across", "past"]),
]


def test_family_logits(stretch: str, member_judge: Judge) -> None:
    """Logits are the golden's: keys cached before the switch keep the short factors, later ones have the long."""
    member_judge.conclude(family.judge_logits(member_judge, stretch))


def test_family_answers(stretch: str, member_judge: Judge) -> None:
    """Answers are as good as the golden's, in the form that the runtime generates in past the switch."""
    member_judge.conclude(family.judge_answers(member_judge, stretch))
