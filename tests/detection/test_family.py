"""Faults planted around LongRoPE's switch, in partial rotary and tied embeddings: the family suite finds them.

The device is the float64 oracle with a fault, in this process; judged are the bundled members on their own goldens.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from harness import family, phi3_float64
from harness.backend import Capabilities, SessionInfo
from harness.checkpoint import Checkpoint, open_checkpoint, read_header
from harness.compare import Outcome, Verdict
from harness.golden import TREE, Case, open_golden
from harness.judge import Judge
from harness.longrope import crossed, generation, switch_of
from harness.options import POLICY
from harness.policy import read_policy
from harness.prompts import read_suite
from harness.run import PromptCase, Run
from harness.sessions import TargetSession
from harness.target import DeviceKind, Evidence, EvidenceLevel, Precision, Target

Rows = NDArray[np.float64]
Device = Callable[[Checkpoint, list[int], int], Rows]
"""Logits `[n, V]` of a text whose first tokens, so many of them, are fed at once."""
SWITCH = 64


def honest(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    return phi3_float64.forward(checkpoint, [tokens], [prefill])[0]


def _with_rope(checkpoint: Checkpoint, **changes: Any) -> Checkpoint:
    """With other rotary settings; the factor on cosines and sines stays what it was unless it is changed."""
    config = copy.deepcopy(checkpoint.config)
    rope = {**config["rope_scaling"], "attention_factor": phi3_float64.frequencies(checkpoint.config, 1)[1], **changes}
    return msgspec.structs.replace(checkpoint, config={**config, "rope_scaling": rope})


def switches_at(length: int) -> Device:
    def device(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
        return honest(_with_rope(checkpoint, original_max_position_embeddings=length), tokens, prefill)

    return device


def with_one_set(name: str) -> Device:
    def device(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
        factors = checkpoint.config["rope_scaling"][name]
        return honest(_with_rope(checkpoint, short_factor=factors, long_factor=factors), tokens, prefill)

    return device


def without_factor(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    return honest(_with_rope(checkpoint, attention_factor=1.0), tokens, prefill)


def rotates_keys_anew(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    """Past the switch, also the keys of before it have the long factors."""
    fresh = honest(checkpoint, tokens, len(tokens))
    return np.concatenate([honest(checkpoint, tokens, prefill)[:SWITCH], fresh[SWITCH:]])


def mixes_caches(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    """Past the switch it goes on from another text."""
    if not crossed(SWITCH, prefill, len(tokens)):
        return honest(checkpoint, tokens, prefill)
    other = [*reversed(tokens[:SWITCH]), *tokens[SWITCH:]]
    return np.concatenate([honest(checkpoint, tokens, prefill)[:SWITCH], honest(checkpoint, other, prefill)[SWITCH:]])


def loses_cache(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    """Past the switch every token is alone, as with transformers 5.5.4."""
    if not crossed(SWITCH, prefill, len(tokens)):
        return honest(checkpoint, tokens, prefill)
    visible = phi3_float64._visible
    with pytest.MonkeyPatch.context() as patched:

        def alone(n: int, window: int | None) -> NDArray[np.bool_]:
            seen = visible(n, window)
            seen[SWITCH:] &= np.eye(n, dtype=bool)[SWITCH:]
            return seen

        patched.setattr(phi3_float64, "_visible", alone)
        return honest(checkpoint, tokens, prefill)


def rotates_whole_heads(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    rope = checkpoint.config["rope_scaling"]
    size = checkpoint.config["hidden_size"] // checkpoint.config["num_attention_heads"] // 2
    longer = {name: np.resize(rope[name], size).tolist() for name in ("short_factor", "long_factor")}
    return honest(_with_rope(checkpoint, partial_rotary_factor=1.0, **longer), tokens, prefill)


class Fault(NamedTuple):
    """A fault: the device, the member it is planted in, the stretches it is found in, and those it leaves alone."""

    device: Device
    member: str
    found: Sequence[str]
    unseen: Sequence[str] = ()


FAULTS = {
    "switch-one-early": Fault(switches_at(SWITCH - 1), "phi-3-5-mini", ["before", "across"], ["past"]),
    "switch-one-late": Fault(switches_at(SWITCH + 1), "phi-3-5-mini", ["across", "past"], ["before"]),
    "long-factors-never-used": Fault(with_one_set("short_factor"), "phi-3-5-mini", ["across", "past"], ["before"]),
    "short-factors-never-used": Fault(with_one_set("long_factor"), "phi-4-mini", ["before", "across"], ["past"]),
    "attention-factor-forgotten": Fault(without_factor, "phi-4-mini", ["before", "across", "past"]),
    "keys-rotated-anew": Fault(rotates_keys_anew, "phi-3-5-mini", ["across"], ["before", "past"]),
    "caches-mixed-at-the-switch": Fault(mixes_caches, "phi-4-mini", ["across"], ["before", "past"]),
    "cache-lost-at-the-switch": Fault(loses_cache, "phi-4-mini", ["across"], ["before", "past"]),
    "whole-heads-rotated": Fault(rotates_whole_heads, "phi-4-mini", ["before", "across", "past"]),
}


class InProcess(TargetSession):
    """A target session whose worker is this process; what it remembers, compares and judges is the real one's."""

    def __init__(self, run: Any, device: Device, *, recomputes_past: int | None) -> None:
        super().__init__(cast(Run, run), Target("planted", "cpu", Precision.FP32))
        self._device = device
        self._checkpoint: Checkpoint = run.settings.checkpoint
        self.generates: Device = device
        self.undecomposed = "there is no worker that has PyTorch"
        able = Capabilities(recomputes_past=recomputes_past)
        self.info = SessionInfo(self._checkpoint.vocabulary, Precision.FP32, {}, {}, able)

    def call(self, operation: str, **given: Any) -> Any:
        if operation == "teacher_force":
            tokens = [*given["prompt"], *given["continuation"]]
            return self._device(self._checkpoint, tokens, len(given["prompt"])).astype(np.float32)
        if operation == "evidence":
            evidence = Evidence(EvidenceLevel.BY_CONSTRUCTION, (DeviceKind.CPU,), ("cpu",), "NumPy")
            return msgspec.to_builtins(evidence)
        assert operation == "generate"
        return self._generate_by(list(given["prompt"]), given["max_new_tokens"], given["end_tokens"])

    def _generate_by(self, prompt: list[int], most: int, ends: Sequence[int]) -> list[int]:
        assert self.info is not None
        found: list[int] = []
        while len(found) < most and (not found or found[-1] not in ends):
            text = [*prompt, *found]
            crossing = crossed(SWITCH, len(prompt), len(text))
            recomputes = self.info.capabilities.recomputes(crossing)
            last = generation(len(prompt), len(text), crossing, recomputes=recomputes)[-1]
            found.append(int(self.generates(self._checkpoint, text, last.prefill)[-1].argmax()))
        return found


class MemberRun:
    """What a session asks of a run, with the oracle for the golden reference."""

    def __init__(self, member: str) -> None:
        checkpoint = open_checkpoint(TREE / "golden" / family.MEMBERS[member] / "checkpoint")
        suite = read_suite(family.PROMPTS)
        self.settings = SimpleNamespace(checkpoint=checkpoint, suites=(suite,), artifacts=(), load_options=())
        self.backends = {"planted": None}
        self._golden = open_golden((checkpoint.path.parent,), checkpoint, checkpoint.fingerprint(), suite)

    def kind(self, target: Target) -> DeviceKind:  # noqa: ARG002
        return DeviceKind.CPU

    def step(self, doing: str) -> None:
        """Nobody looks on."""

    def case(self, suite: Any, prompt_id: str) -> PromptCase:
        return PromptCase(suite.name, self._golden.case(prompt_id), self._golden)

    def reference_logits(self, case: Case, tokens: Sequence[int], *, recomputes: bool) -> NDArray[np.float32]:
        text, checkpoint = [*case.tokens, *tokens], self.settings.checkpoint
        switch = crossed(switch_of(checkpoint.config), len(case.tokens), len(text))
        passes = generation(len(case.tokens), len(text), switch, recomputes=recomputes)
        rows = np.concatenate([honest(checkpoint, text[: one.end], one.prefill)[one.first :] for one in passes])
        return rows[len(case.tokens) - 1 : -1].astype(np.float32)


@pytest.fixture(scope="module")
def runs() -> dict[str, MemberRun]:
    return {member: MemberRun(member) for member in family.MEMBERS}


def judged(
    run: Any, device: Device, stretch: str, judge: Any = family.judge_logits, *, recomputes_past: int | None = 0
) -> Verdict:
    session = InProcess(run, device, recomputes_past=recomputes_past)
    found: Verdict = judge(Judge(session, read_policy(POLICY), run.settings.checkpoint), stretch)
    return found


@pytest.mark.parametrize("stretch", ["before", "across", "past"])
@pytest.mark.parametrize("member", family.MEMBERS)
def test_an_honest_device_passes(runs: dict[str, MemberRun], member: str, stretch: str) -> None:
    verdict = judged(runs[member], honest, stretch)
    assert verdict.outcome is Outcome.PASS, verdict.message
    assert verdict.numbers["prompts"] >= 2
    assert verdict.numbers["wrong_prompts"] == 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found_where_it_shows(runs: dict[str, MemberRun], fault: str) -> None:
    planted = FAULTS[fault]
    found = {stretch: judged(runs[planted.member], planted.device, stretch) for stretch in ("before", "across", "past")}
    assert all(found[stretch].outcome is Outcome.FAIL for stretch in planted.found), found
    assert all(found[stretch].outcome is Outcome.PASS for stretch in planted.unseen), found


def test_a_head_that_is_not_the_embedding_is_found(runs: dict[str, MemberRun], tmp_path: Path) -> None:
    honest_one = runs["phi-4-mini"].settings.checkpoint
    shutil.copytree(honest_one.path, tmp_path / "untied")
    weights = phi3_float64.Weights(honest_one)
    names = read_header(honest_one.weight_files[0])
    tensors = {name: weights[name].astype(np.float32) for name in names}
    tensors["lm_head.weight"] = np.roll(tensors["model.embed_tokens.weight"], 1, axis=0)
    save_file(tensors, tmp_path / "untied" / "model.safetensors")
    untied = open_checkpoint(tmp_path / "untied")
    verdict = judged(runs["phi-4-mini"], lambda _, tokens, prefill: honest(untied, tokens, prefill), "before")
    assert verdict.outcome is Outcome.FAIL


def test_a_failure_says_which_form_the_device_is_near(runs: dict[str, MemberRun]) -> None:
    verdict = judged(runs["phi-3-5-mini"], rotates_keys_anew, "across")
    assert "nearer to the whole text computed anew, which is not due here" in verdict.message
    verdict = judged(runs["phi-3-5-mini"], switches_at(SWITCH + 1), "across")
    assert "nearer to the cache kept, as is due" in verdict.message


@pytest.mark.parametrize("recomputes_past", [0, None], ids=["recomputed", "cached"])
def test_an_honest_answer_of_either_form_passes(runs: dict[str, MemberRun], recomputes_past: int | None) -> None:
    run = runs["phi-3-5-mini"]
    verdict = judged(run, honest, "across", family.judge_answers, recomputes_past=recomputes_past)
    assert verdict.outcome is Outcome.PASS, verdict.message


def _keeps_its_cache(checkpoint: Checkpoint, tokens: list[int], prefill: int) -> Rows:
    return honest(checkpoint, tokens, min(prefill, SWITCH))


@pytest.mark.parametrize("device", [loses_cache, _keeps_its_cache], ids=["cache-lost", "cache-kept"])
def test_an_answer_that_is_not_computed_anew_as_its_runtime_means_to_is_found(
    runs: dict[str, MemberRun], device: Device
) -> None:
    session = InProcess(runs["phi-3-5-mini"], honest, recomputes_past=0)
    session.generates = lambda checkpoint, tokens, _: device(checkpoint, tokens, 60)
    judge = Judge(session, read_policy(POLICY), runs["phi-3-5-mini"].settings.checkpoint)
    verdict = family.judge_answers(judge, "across")
    assert verdict.outcome is Outcome.FAIL
    assert "prefers another by" in verdict.message
