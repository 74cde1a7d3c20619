"""How fast a target is, by length of prompt: for the record, and against the policy's limits where it has any."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence

import msgspec

from harness.backend import Capabilities
from harness.compare import Outcome, Verdict
from harness.errors import Unsupported, WorkerRaised
from harness.policy import Limit, SpeedLimits
from harness.record import Speed
from harness.run import Run
from harness.sessions import TargetSession

LENGTHS = (16, 64, 256, 512, 1024)
"""Tokens of the prompts that every target is timed on, if checkpoint and session have room for them."""
NEW_TOKENS = 17
"""Tokens that each prompt is continued by: the first, and sixteen more for the time of one."""
# Seconds for all lengths of a target. Slow ones take longer, see `harness.stopwatch`.
_SECONDS = 3.0


class Timing(msgspec.Struct, frozen=True):
    """What was measured, shortest prompt first, and why it was not at other lengths that were asked for."""

    speeds: tuple[Speed, ...]
    unmeasured: dict[int, str]


def time_target(session: TargetSession) -> Timing:
    """Time a started session on prompts of every length that it can take, and keep the result in `session.speed`.

    A length at which the runtime raises is left out: whether it may is for other tests to judge. Raises Unsupported
    where the session can take no length, StageError where the runtime raises at all of them or its process dies.
    """
    lengths, unmeasured = _choose(session)
    session.speed, last = (), None
    for length in lengths:
        try:
            session.speed = (*session.speed, _time(session, length, _SECONDS / len(lengths)))
        except WorkerRaised as error:
            last, unmeasured[length] = error, error.problem
    if not session.speed and last is not None:
        raise last
    if not session.speed:
        raise Unsupported(f"{session.target} takes no prompt of any length that is timed: {unmeasured[LENGTHS[0]]}")
    return Timing(session.speed, unmeasured)


def judge_speed(found: Timing, limits: Sequence[SpeedLimits]) -> Verdict:
    """Hold medians against limits, each of which fails too where its length was not measured. Without limits, pass.

    The message of a pass names the lengths at which the runtime raised.
    """
    numbers, bounds = _numbers(found.speeds), dict[str, float]()
    by_length = {speed.prompt_tokens: speed for speed in found.speeds}
    lines = []
    for limited in limits:
        speed = by_length.get(limited.prompt_tokens)
        if speed is None:
            why = found.unmeasured.get(limited.prompt_tokens, "it was not asked for")
            lines.append(f"not timed at {limited.prompt_tokens} tokens, where the policy has a limit: {why}")
            continue
        for name, times, limit in (
            ("first_token", speed.first_token_ms, limited.first_token_ms),
            ("token", speed.token_ms, limited.token_ms),
        ):
            if limit is not None:
                key = f"{name}_{speed.prompt_tokens}_ms"
                bounds[key] = min(limit.limit, bounds.get(key, limit.limit))
                lines += _too_slow(name, times, limit, speed.prompt_tokens)
    if lines:
        return Verdict(Outcome.FAIL, numbers, bounds, "\n".join(lines))
    notes = [f"not timed at {length} tokens: {why}" for length, why in found.unmeasured.items()]
    return Verdict(Outcome.PASS, numbers, bounds, "\n".join(notes))


def _choose(session: TargetSession) -> tuple[list[int], dict[int, str]]:
    """The lengths to time, those of the policy's limits among them, and why others cannot be."""
    limited = {limits.prompt_tokens for limits in session.run.settings.policy.speed_of(session.target)}
    able = session.info.capabilities if session.info else Capabilities()
    context = session.run.settings.checkpoint.max_tokens
    lengths, refused = [], {}
    for length in sorted({*LENGTHS, *limited}):
        why = able.refuses(length, NEW_TOKENS)
        if length + NEW_TOKENS > context:
            why = f"the context of the checkpoint is {context} tokens"
        if not why:
            lengths.append(length)
        elif length in limited or length == LENGTHS[0]:
            refused[length] = why
    return lengths, refused


def _time(session: TargetSession, length: int, seconds: float) -> Speed:
    times = session.measure(_prompt(session.run, length), NEW_TOKENS, seconds)
    return Speed(length, NEW_TOKENS, times.first_token_ms, times.token_ms, times.others)


def _prompt(run: Run, length: int) -> list[int]:
    """Tokens of the goldens' prompts, the longest first, one after the other and over again where they are too few."""
    cases = [case for suite in run.settings.suites for case in run.golden(suite).manifest.cases]
    tokens = itertools.chain.from_iterable(case.tokens for case in sorted(cases, key=lambda case: -len(case.tokens)))
    return list(itertools.islice(itertools.cycle(tokens), length))


def _numbers(speeds: Sequence[Speed]) -> dict[str, float]:
    numbers = {}
    for speed in speeds:
        numbers[f"first_token_{speed.prompt_tokens}_ms"] = statistics.median(speed.first_token_ms)
        numbers[f"token_{speed.prompt_tokens}_ms"] = statistics.median(speed.token_ms)
    return numbers


def _too_slow(name: str, times: Sequence[float], limit: Limit, length: int) -> list[str]:
    """A sentence where the median is above a limit."""
    middle = statistics.median(times)
    if middle <= limit.limit:
        return []
    what = "time to first token" if name == "first_token" else "time per token"
    spread = f"median of {len(times)}, {min(times):.3g} to {max(times):.3g} ms"
    sentence = f"{what} with a prompt of {length} tokens {middle:.3g} ms ({spread}); allowed: {limit.limit:.3g} ms"
    return [f"{sentence} ({limit.origin})"]
