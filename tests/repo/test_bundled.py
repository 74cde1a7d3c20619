"""What the project ships is what its manifests, schemas and docs say it is."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from harness import family, phi3_float64
from harness.checkpoint import find_checkpoint
from harness.golden import TREE, golden_roots, open_golden
from harness.longrope import switch_of
from harness.options import DEFAULT_CHECKPOINT, POLICY, PROMPTS, WAIVERS
from harness.oracle_check import ORACLE_TOLERANCE
from harness.policy import read_policy
from harness.prompts import PromptSuite, read_suite
from harness.target import Precision
from harness.waivers import read_waivers

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MIB = 1 << 20


def suites() -> list[PromptSuite]:
    return [read_suite(path) for path in sorted(PROMPTS.glob("*.jsonl"))]


def test_the_bundled_checkpoint_is_small_and_shaped_as_the_runtimes_need() -> None:
    checkpoint = find_checkpoint(str(DEFAULT_CHECKPOINT))
    assert sum(path.stat().st_size for path in DEFAULT_CHECKPOINT.rglob("*")) <= 12_000_000
    config = checkpoint.config
    assert config["num_hidden_layers"] >= 6
    assert config["hidden_size"] % 128 == 0
    assert config["intermediate_size"] % 128 == 0
    assert 1 < config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["sliding_window"] == checkpoint.window == 256
    assert 2 * config["intermediate_size"] != config["vocab_size"]
    assert len(checkpoint.end_tokens) > 1


@pytest.mark.parametrize("suite", suites(), ids=lambda suite: suite.name)
def test_the_bundled_golden_is_whole_and_agrees_with_the_oracle(suite: PromptSuite) -> None:
    checkpoint = find_checkpoint(str(DEFAULT_CHECKPOINT))
    fingerprint = checkpoint.fingerprint()
    golden = open_golden(golden_roots(checkpoint, fingerprint)[:1], checkpoint, fingerprint, suite)
    assert golden.manifest.noise.max_abs <= ORACLE_TOLERANCE
    assert golden.manifest.noise.cases
    case = golden.manifest.cases[0]
    exact = phi3_float64.forward(checkpoint, [case.sequence])[0]
    assert np.abs(golden.logits(case.id) - exact).max() <= ORACLE_TOLERANCE


def test_the_bundled_goldens_are_at_most_32_mb() -> None:
    folders = [TREE / "golden" / "phi-3-tiny" / suite.name for suite in suites()]
    assert sum(path.stat().st_size for folder in folders for path in folder.iterdir()) <= 32 * MIB


@pytest.mark.parametrize("member", family.MEMBERS.values())
def test_a_bundled_member_is_a_real_models_configuration_at_reduced_size(member: str) -> None:
    folder = TREE / "golden" / member
    config = find_checkpoint(str(folder / "checkpoint")).config
    heads, widths = config["num_attention_heads"], (config["hidden_size"], config["intermediate_size"])
    rotated = config["hidden_size"] // heads * config.get("partial_rotary_factor", 1.0)
    assert config["num_hidden_layers"] >= 6
    assert switch_of(config) == 64
    assert set(config["rope_scaling"]) == {"type", "short_factor", "long_factor"}  # older transformers take no more
    assert len(config["rope_scaling"]["long_factor"]) == len(config["rope_scaling"]["short_factor"]) == rotated / 2
    assert config["sliding_window"] > config["max_position_embeddings"]
    assert rotated % 16 == 0  # ONNX Runtime rotates no other widths
    assert config["vocab_size"] not in (*widths, 2 * config["intermediate_size"])
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) <= 5_000_000


def test_the_members_are_what_the_bundled_checkpoint_is_not() -> None:
    mini_128k, mini_4 = (
        find_checkpoint(str(TREE / "golden" / name / "checkpoint")) for name in family.MEMBERS.values()
    )
    assert mini_128k.config["num_attention_heads"] == mini_128k.config["num_key_value_heads"]
    assert mini_4.config["num_attention_heads"] == 3 * mini_4.config["num_key_value_heads"]
    assert mini_4.config["tie_word_embeddings"]
    assert len(mini_4.end_tokens) == 2


@pytest.mark.parametrize("member", family.MEMBERS.values())
def test_a_members_golden_holds_both_forms_and_agrees_with_the_oracle(member: str) -> None:
    checkpoint = find_checkpoint(str(TREE / "golden" / member / "checkpoint"))
    suite, fingerprint = read_suite(family.PROMPTS), checkpoint.fingerprint()
    golden = open_golden(golden_roots(checkpoint, fingerprint)[:1], checkpoint, fingerprint, suite)
    crossing = [case for case in golden.manifest.cases if case.switch]
    assert len(crossing) >= 3
    for case in crossing:
        tokens = [case.sequence] * 2
        cached, fresh = phi3_float64.forward(checkpoint, tokens, [len(case.tokens), len(case.sequence)])
        assert np.abs(golden.logits(case.id) - cached).max() <= ORACLE_TOLERANCE
        assert np.abs(golden.fresh_logits(case.id) - fresh[case.switch :]).max() <= ORACLE_TOLERANCE
        assert np.abs(cached[case.switch :] - fresh[case.switch :]).max() > 1.0
        assert (golden.choosing_logits(case.id).argmax(axis=1) == case.continuation).all()


def test_core_has_at_least_24_prompts_and_long_crosses_the_window() -> None:
    by_name = {suite.name: suite for suite in suites()}
    assert len(by_name["core"].prompts) >= 24
    lengths = {prompt.length.tokens(256) for prompt in by_name["long"].prompts if prompt.length is not None}
    assert {255, 256, 257, 512} <= lengths


def test_hidden_states_are_kept_for_a_few_prompts() -> None:
    checkpoint = find_checkpoint(str(DEFAULT_CHECKPOINT))
    fingerprint = checkpoint.fingerprint()
    golden = open_golden(golden_roots(checkpoint, fingerprint)[:1], checkpoint, fingerprint, suites()[0])
    kept = [case for case in golden.manifest.cases if golden.hidden_states(case.id) is not None]
    assert kept
    states = golden.hidden_states(kept[0].id)
    assert states is not None
    assert states.shape == (checkpoint.config["num_hidden_layers"] + 1, len(kept[0].sequence), 256)


def test_the_policy_has_limits_with_an_origin_for_every_precision() -> None:
    policy = read_policy(POLICY)
    assert set(policy.limits) == set(Precision)
    raw = tomllib.loads(POLICY.read_text(encoding="utf-8"))
    origins = [
        limit["origin"] for table in raw["limits"].values() for group in table.values() for limit in group.values()
    ]
    assert all(len(origin) > 10 for origin in origins)


def test_waivers_are_valid_and_not_expired() -> None:
    assert read_waivers(WAIVERS)


def test_the_readmes_commands_are_those_of_tox() -> None:
    readme = (TREE / "README.md").read_text(encoding="utf-8")
    environments = set(re.findall(r"^\[testenv:([\w-]+)\]", (TREE / "tox.ini").read_text(encoding="utf-8"), re.M))
    named = set(re.findall(r"tox -e ([\w-]+)", readme))
    assert {"conformance", "tests"} <= named <= environments
    assert "python -m pip install tox && python -m tox -e conformance" in readme
    assert "python -m tox -e tests" in (TREE / ".ci" / "run").read_text(encoding="utf-8")
