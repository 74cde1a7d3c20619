from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import PolicyError
from harness.policy import BusyLimits, Limit, read_policy
from harness.target import Precision

_POLICY = """\
schema = 1
[attestation]
cpu = "by-construction"
gpu = "by-construction"
npu = "measured"
[busy]
seconds_min = { limit = 2, origin = "measured" }
share_min = { limit = 0.25, origin = "measured" }
still_max = { limit = 0.025, origin = "measured" }
idle_factor = { limit = 3, origin = "measured" }
engines_max = { limit = 8, origin = "measured" }
[limits.int4]
logits.kl_mean = { limit = 1.5, origin = "measured" }
logits.kl_worst = { limit = 1, origin = "measured" }
logits.relative_mean = { limit = 1, origin = "measured" }
logits.relative_worst = { limit = 1, origin = "measured" }
greedy.divergence_margin = { limit = 1, origin = "measured" }
greedy.regret_worst = { limit = 1, origin = "measured" }
suite.kl_mean = { limit = 1, origin = "measured" }
suite.top1_min = { limit = 1, origin = "measured" }
suite.greedy_match_min = { limit = 1, origin = "measured" }
"""


def test_a_policy_is_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(_POLICY, encoding="utf-8")
    policy = read_policy(path)
    assert policy.limits_of(Precision.INT4).logits.kl_mean == Limit(1.5, "measured")
    assert policy.busy.share_min == Limit(0.25, "measured")


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("schema = 1", "schema = 2", "schema 2"),
        ("schema = 1\n", "", "schema"),
        ('npu = "measured"\n', "", "npu"),
        ('npu = "measured"', 'npu = "certain"', "certain"),
        ('cpu = "by', 'tpu = "by', "tpu"),
        ("[limits.int4]", "[limits.int3]", "int3"),
        ("logits.kl_worst", "logits.kl_wurst", "kl_wurst"),
        ('suite.top1_min = { limit = 1, origin = "measured" }\n', "", "top1_min"),
        ("limit = 1.5", 'limit = "1.5"', "kl_mean"),
        ('{ limit = 1.5, origin = "measured" }', "1.5", "kl_mean"),
        ('limit = 1.5, origin = "measured"', "limit = 1.5", "origin"),
        ('limit = 1.5, origin = "measured"', 'limit = 1.5, origin = ""', "origin"),
        ("limit = 1.5", "limit = nan", "kl_mean"),
        ("limit = 1.5", "limit = inf", "kl_mean"),
        ("[limits.int4]", "[limits.int4", "line 12"),
        ("[busy]", "[bussy]", "bussy"),
        ("share_min", "share_mean", "share_mean"),
        ("limit = 0.25", "limit = nan", "busy.share_min"),
        ("limit = 8", "limit = inf", "busy.engines_max"),
        ('limit = 3, origin = "measured"', 'limit = 3, origin = " "', "busy.idle_factor"),
    ],
)
def test_a_broken_policy_is_refused_by_file_and_field(tmp_path: Path, old: str, new: str, named: str) -> None:
    assert old in _POLICY
    path = tmp_path / "policy.toml"
    path.write_text(_POLICY.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(PolicyError) as caught:
        read_policy(path)
    assert str(path) in caught.value.problem
    assert named in caught.value.problem
    assert caught.value.remedy


@pytest.mark.parametrize("name", BusyLimits.__struct_fields__)
def test_a_policy_without_a_busy_limit_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / "policy.toml"
    kept = [line for line in _POLICY.splitlines() if not line.startswith(name)]
    path.write_text("\n".join(kept), encoding="utf-8")
    with pytest.raises(PolicyError, match=f"`{name}`.*busy"):
        read_policy(path)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("prompt_tokens = 64", "prompt_tokens = 0", "prompt_tokens"),
        ("prompt_tokens = 64", "", "prompt_tokens"),
        ("token_ms", "tokens_ms", "tokens_ms"),
        ("limit = 5", "limit = inf", "openvino:.* at 64 tokens, token_ms"),
        ("token_ms", "# token_ms", "openvino:.* at 64 tokens has no limit"),
    ],
)
def test_a_broken_limit_on_speed_is_refused(tmp_path: Path, old: str, new: str, named: str) -> None:
    text = '[[speed]]\ntargets = "openvino:*"\nprompt_tokens = 64\ntoken_ms = { limit = 5, origin = "measured" }\n'
    path = tmp_path / "policy.toml"
    path.write_text(f"{_POLICY}{text}", encoding="utf-8")
    assert read_policy(path).speed
    path.write_text(f"{_POLICY}{text.replace(old, new)}", encoding="utf-8")
    with pytest.raises(PolicyError, match=named):
        read_policy(path)


def test_a_missing_policy_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match=r"none\.toml") as caught:
        read_policy(tmp_path / "none.toml")
    assert "--policy" in caught.value.remedy


def test_a_policy_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_bytes(_POLICY.encode().replace(b"measured", b"gem\xe4\xdfen"))
    with pytest.raises(PolicyError, match=r"policy\.toml"):
        read_policy(path)
