from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.backend import Capabilities
from harness.compare import Outcome
from harness.errors import Stage, Unsupported, WorkerDied, WorkerRaised
from harness.golden import TREE
from harness.policy import Limit, SpeedLimits, read_policy
from harness.record import Speed
from harness.speed import NEW_TOKENS, Timing, judge_speed, time_target
from harness.stopwatch import Times
from harness.target import Target


class Session:
    """As much of a target's session as is timed; `raises` gives an error for a length."""

    def __init__(
        self,
        context: int = 4096,
        able: Capabilities | None = None,
        limits: tuple[SpeedLimits, ...] = (),
        raises: dict[int, Exception] | None = None,
    ) -> None:
        self.target = Target.parse("openvino:npu:int4")
        self.speed: tuple[Speed, ...] = ()
        self.info = SimpleNamespace(capabilities=able or Capabilities())
        cases = (SimpleNamespace(tokens=(1, 2, 3)), SimpleNamespace(tokens=(4, 5, 6, 7)))
        settings = SimpleNamespace(
            policy=SimpleNamespace(speed_of=lambda _: limits),
            checkpoint=SimpleNamespace(max_tokens=context),
            suites=("core",),
        )
        golden = SimpleNamespace(manifest=SimpleNamespace(cases=cases))
        self.run = SimpleNamespace(settings=settings, golden=lambda _: golden)
        self.asked: dict[int, tuple[list[int], float]] = {}
        self._raises = raises or {}

    def measure(self, prompt: list[int], new_tokens: int, seconds: float) -> Times:
        assert new_tokens == NEW_TOKENS
        self.asked[len(prompt)] = (prompt, seconds)
        if len(prompt) in self._raises:
            raise self._raises[len(prompt)]
        return Times((float(len(prompt)), len(prompt) + 2.0, len(prompt) + 1.0), (5.0, 6.0, 7.0), 2, 0.1)


def timed(session: Any) -> Timing:
    return time_target(session)


def limited(length: int, first: float | None = None, token: float | None = None) -> SpeedLimits:
    def limit(value: float | None) -> Limit | None:
        return None if value is None else Limit(value, "a product's decision")

    return SpeedLimits("*", length, limit(first), limit(token))


def test_every_length_is_timed_on_the_goldens_tokens_and_kept() -> None:
    session = Session()
    found = timed(session)
    assert list(session.asked) == [16, 64, 256, 512, 1024]
    assert session.asked[16][0] == [4, 5, 6, 7, 1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5]
    assert sum(seconds for _, seconds in session.asked.values()) == pytest.approx(3.0)
    assert session.speed == found.speeds
    assert found.speeds[1] == Speed(64, NEW_TOKENS, (64.0, 66.0, 65.0), (5.0, 6.0, 7.0), 0.1)
    assert found.unmeasured == {}


@pytest.mark.parametrize(
    ("session", "lengths"),
    [
        (Session(context=1024), [16, 64, 256, 512]),
        (Session(context=512 + NEW_TOKENS), [16, 64, 256, 512]),
        (Session(able=Capabilities(max_prompt=64)), [16, 64]),
        (Session(able=Capabilities(max_tokens=256 + NEW_TOKENS - 1)), [16, 64]),
    ],
)
def test_lengths_that_do_not_fit_are_left_out(session: Session, lengths: list[int]) -> None:
    assert [speed.prompt_tokens for speed in timed(session).speeds] == lengths


def test_lengths_of_the_policy_are_timed_too_or_said_not_to_be() -> None:
    session = Session(able=Capabilities(max_prompt=300), limits=(limited(100, 1.0), limited(1024, 1.0)))
    found = timed(session)
    assert list(session.asked) == [16, 64, 100, 256]
    assert "made for 300" in found.unmeasured[1024]


def test_a_length_at_which_the_runtime_raises_is_left_out() -> None:
    session = Session(raises={512: WorkerRaised(Stage.RUN, "GroupQueryAttention")})
    found = timed(session)
    assert [speed.prompt_tokens for speed in found.speeds] == [16, 64, 256, 1024]
    verdict = judge_speed(found, [])
    assert verdict.outcome is Outcome.PASS
    assert verdict.message == "not timed at 512 tokens: GroupQueryAttention"


def test_a_runtime_that_raises_at_every_length_is_an_error() -> None:
    raises: dict[int, Exception] = {n: WorkerRaised(Stage.RUN, f"no {n}") for n in (16, 64)}
    with pytest.raises(WorkerRaised, match="no 64"):
        timed(Session(context=100, raises=raises))


def test_a_death_is_an_error_and_what_was_timed_before_is_kept() -> None:
    session = Session(raises={256: WorkerDied(Stage.RUN, "it died")})
    with pytest.raises(WorkerDied):
        timed(session)
    assert [speed.prompt_tokens for speed in session.speed] == [16, 64]


def test_a_session_with_room_for_no_length_is_unsupported() -> None:
    with pytest.raises(Unsupported, match="made for 8"):
        timed(Session(able=Capabilities(max_prompt=8)))


def test_without_limits_the_medians_are_recorded_and_nothing_fails() -> None:
    verdict = judge_speed(timed(Session(context=100)), [])
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers == {
        "first_token_16_ms": 17.0,
        "token_16_ms": 6.0,
        "first_token_64_ms": 65.0,
        "token_64_ms": 6.0,
    }
    assert verdict.limits == {}
    assert verdict.message == ""


def test_a_median_at_its_limit_passes_and_one_above_fails_with_its_figures() -> None:
    found = timed(Session(context=100))
    assert judge_speed(found, [limited(64, 65.0, 6.0)]).outcome is Outcome.PASS
    verdict = judge_speed(found, [limited(64, 64.9, 6.0), limited(16, token=5.5), limited(16, token=7.0)])
    assert verdict.outcome is Outcome.FAIL
    assert verdict.limits == {"first_token_64_ms": 64.9, "token_64_ms": 6.0, "token_16_ms": 5.5}
    first, second = verdict.message.splitlines()
    assert first == (
        "time to first token with a prompt of 64 tokens 65 ms (median of 3, 64 to 66 ms); allowed: 64.9 ms "
        "(a product's decision)"
    )
    assert second.startswith("time per token with a prompt of 16 tokens 6 ms")


def test_a_limit_where_nothing_was_timed_fails() -> None:
    session = Session(able=Capabilities(max_prompt=64), limits=(limited(1024, 1e9),))
    verdict = judge_speed(timed(session), [limited(1024, 1e9)])
    assert verdict.outcome is Outcome.FAIL
    assert "not timed at 1024 tokens" in verdict.message
    assert "made for 64" in verdict.message


def test_limits_hold_for_the_targets_that_match(tmp_path: Path) -> None:
    text = (TREE / "conformance" / "policy.toml").read_text(encoding="utf-8")
    start = text.index("# [[speed]]")
    example = "\n".join(line.removeprefix("# ") for line in text[start:].splitlines()[:5])
    path = tmp_path / "policy.toml"
    path.write_text(f"{text}\n{example}\n", encoding="utf-8")
    policy = read_policy(path)
    (limits,) = policy.speed_of(Target.parse("openvino:npu:int4"))
    assert limits.prompt_tokens == 1024
    assert limits.first_token_ms == Limit(2000.0, "a product's decision")
    assert policy.speed_of(Target.parse("openvino:cpu:int4")) == []
    assert read_policy(TREE / "conformance" / "policy.toml").speed == ()
