"""Several verdicts in one: both errors of a prompt, a suite's, and what could not be compared."""

from __future__ import annotations

import msgspec

from harness.compare import Outcome, Verdict


def both(first: Verdict, second: Verdict) -> Verdict:
    """Both verdicts in one, which passes where both do."""
    failed = Outcome.FAIL in (first.outcome, second.outcome)
    lines = "\n".join(filter(None, (first.message, second.message)))
    numbers, limits = {**first.numbers, **second.numbers}, {**first.limits, **second.limits}
    return Verdict(Outcome.FAIL if failed else Outcome.PASS, numbers, limits, lines)


def joined(total: Verdict, quantisation: Verdict, implementation: Verdict) -> Verdict:
    """One verdict on a prompt whose total error was taken apart; the total itself is recorded and not judged."""
    numbers = {f"quantisation_{name}": value for name, value in quantisation.numbers.items() if name != "positions"}
    limits = {f"quantisation_{name}": value for name, value in quantisation.limits.items()}
    lines = [f"quantisation error: {line}" for line in quantisation.message.splitlines()]
    if lines and not implementation.message:
        lines.append("implementation error: within its limits")
    elif implementation.message and not lines:
        lines.append(f"quantisation error: within its limits, mean KL {numbers['quantisation_kl_mean']:.3g} nat")
    message = "\n".join([*implementation.message.splitlines(), *lines]) if lines else ""
    found = both(
        Verdict(quantisation.outcome, {**total.numbers, **numbers}, limits),
        Verdict(implementation.outcome, implementation.numbers, implementation.limits),
    )
    return msgspec.structs.replace(found, message=message)


def with_left_out(verdict: Verdict, left_out: int) -> Verdict:
    """The verdict on a suite, with the number of prompts that the session could not take."""
    if not left_out:
        return verdict
    return msgspec.structs.replace(verdict, numbers={**verdict.numbers, "prompts_left_out": float(left_out)})


def broken(found: dict[str, Verdict]) -> Verdict:
    """The verdict on a suite of which some prompts have logits that do not compare."""
    lines = [f"prompt {key!r}: {verdict.message}" for key, verdict in found.items()]
    return Verdict(Outcome.FAIL, {"broken_prompts": float(len(found))}, {}, "\n".join(lines))
