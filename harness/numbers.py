"""Large activations: nothing is NaN or Inf or clamped on the prompts that drive them highest, and the logits are right.

The prompts are searched for on the artifact's own weights (`harness.reference.activations`). Where a device fails, the
place that overflowed is named: by the device's own values where it shows them, else by those of the FP32 reference,
which tells where FP16 cannot hold what ought to be.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec

from harness import overflow
from harness.checkpoint import Checkpoint
from harness.compare import Outcome, Verdict
from harness.consistency import Comparisons
from harness.decompose import ArtifactReferences, Undecomposed
from harness.errors import HarnessError
from harness.exact_weights import open_references
from harness.overflow import FP16_MAX, HardPrompt, Peaks
from harness.sessions import TargetSession
from harness.states import States, places
from harness.stepping import Oracle, Stepper, text_of

_LENGTH = 48
# The last tokens of a prompt are fed one by one.
_STEPS = 3


class Hardest(NamedTuple):
    """The prompts that drive a target's activations highest, and the ordinary one that they are compared with.

    Without a reference on the artifact's weights there are no peaks, no `ordinary`, and the prompts are not ranked.
    """

    prompts: tuple[HardPrompt, ...]
    ordinary: HardPrompt | None

    @property
    def numbers(self) -> dict[str, float]:
        """The greatest result of the FP32 reference, how many times as much FP16 holds, and that of ordinary text."""
        if self.ordinary is None:
            return {}
        largest = max(overflow.greatest(prompt.peaks)[1].magnitude for prompt in self.prompts)
        ordinary = overflow.greatest(self.ordinary.peaks)[1].magnitude
        return {"largest": largest, "ordinary_largest": ordinary, "headroom": FP16_MAX / largest}

    @property
    def note(self) -> str:
        """Where the greatest result is, and on what prompt."""
        if self.ordinary is None:
            return "the prompts are not ranked: the artifact has no reference"
        prompt = max(self.prompts, key=lambda one: overflow.greatest(one.peaks)[1].magnitude)
        place, peak = overflow.greatest(prompt.peaks)
        return f"greatest: {peak.magnitude:.3g} at {place}, position {peak.position} of {prompt.name} (FP32 reference)"


def logits(session: TargetSession) -> Verdict:
    """On each of the hardest prompts the logits are finite and what they ought to be."""
    hardest = find_hardest(session)
    return _judged(session, hardest, hardest.prompts, _STEPS)


def full_context(session: TargetSession) -> Verdict:
    """So they are on the tokens of the hardest prompts over and over, as many as there is room for."""
    stepper = Stepper(session)
    most = min(stepper.context, stepper.able.max_prompt or stepper.context)
    stepper.need_room(most)
    hardest = find_hardest(session)
    tokens = [token for prompt in hardest.prompts for token in prompt.tokens]
    tokens = (tokens * (most // len(tokens) + 1))[:most]
    return _judged(session, hardest, [HardPrompt(f"{most} tokens of the hardest prompts", tuple(tokens), {})], 0)


def inner(session: TargetSession) -> Verdict:
    """On the hardest prompts, one after the other, every value that the session shows is finite and none is clamped."""
    hardest = find_hardest(session)
    tokens = [token for prompt in hardest.prompts for token in prompt.tokens]
    tokens = tokens[: session.run.settings.checkpoint.window]
    states = _states(session, tokens)
    return judge_inner(states, _order(states), _peaks(session, tokens), hardest.numbers)


def judge_inner(states: States, order: Sequence[str], peaks: Peaks, numbers: dict[str, float]) -> Verdict:
    """Hold a device's values `[n, H]` by place, in an order of places: all finite, and none at FP16's end.

    `peaks` are the FP32 reference's on the same tokens, empty where there is none.
    """
    limits = {"broken": 0.0, "saturated": 0.0}
    if not order or not all(states[place].size for place in order):
        return Verdict(Outcome.FAIL, numbers, limits, "zero values were looked at")
    place, peak = overflow.greatest(overflow.device_peaks(states, order))
    broken, clamped = overflow.first_broken(states, order), overflow.first_saturated(states, order)
    numbers = {
        **numbers,
        "places": float(len(order)),
        "device_largest": peak.magnitude,
        "device_headroom": FP16_MAX / max(peak.magnitude, 1e-30),
        "broken": float(broken is not None),
        "saturated": float(clamped is not None),
    }
    if broken is None and clamped is None:
        message = f"greatest: {peak.magnitude:.3g} at {place}, position {peak.position} (device)"
        return Verdict(Outcome.PASS, numbers, limits, message)
    lines = []
    if broken is not None:
        lines.append(f"{broken}: of the places that the session shows the first that is not finite")
    if clamped is not None:
        lines.append(f"{clamped}: the greatest number of FP16, so it was clamped; the first such place")
    if peaks:
        lines.append(overflow.cause(peaks, (broken or clamped).place))  # type: ignore[union-attr]
    return Verdict(Outcome.FAIL, numbers, limits, "\n".join(lines))


def find_hardest(session: TargetSession) -> Hardest:
    """The prompts that drive a target's activations highest: short enough for any window."""
    checkpoint = session.run.settings.checkpoint
    length = min(_LENGTH, checkpoint.window - _STEPS)
    special, ordinary = special_tokens(checkpoint), text_of(session, length)
    with _opened(session) as references:
        if references is None:
            return Hardest(tuple(_unranked(special, length)), None)
        *prompts, plain = references.hard_prompts(special, ordinary, length)
    return Hardest(tuple(prompts), plain)


def _peaks(session: TargetSession, tokens: Sequence[int]) -> Peaks:
    """The FP32 reference's peaks on a text, none without a reference."""
    with _opened(session) as references:
        return references.peaks(tokens) if references is not None else {}


def special_tokens(checkpoint: Checkpoint) -> list[int]:
    """Ids that stand for no text: those that begin, end and pad, the unknown one, then what the tokenizer adds."""
    config = checkpoint.config
    named = [config.get(f"{name}_token_id") for name in ("bos", "pad", "unk")]
    found = [token for token in named if isinstance(token, int)]
    found += [*checkpoint.end_tokens, 0, *_added(checkpoint)]
    return [token for token in dict.fromkeys(found) if 0 <= token < checkpoint.vocabulary]


def _added(checkpoint: Checkpoint) -> list[int]:
    path = checkpoint.path / "tokenizer.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8")).get("added_tokens", [])
        return [int(entry["id"]) for entry in entries]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []  # an older tokenizer.model; the checkpoint was looked at before, and this is no check of it


def _unranked(special: Sequence[int], length: int) -> Iterator[HardPrompt]:
    """What may drive activations high in any checkpoint, where its weights cannot be looked at."""
    yield HardPrompt(f"special token {special[0]} over and over", (special[0],) * length, {})
    yield HardPrompt("special tokens in turn", tuple((list(special) * length)[:length]), {})


@contextmanager
def _opened(session: TargetSession) -> Iterator[ArtifactReferences | None]:
    """The references on a session's artifact, also where its answers were too bad to infer an arithmetic from."""
    found = session.references()
    if found is not None:
        yield found
        return
    try:
        assert session.artifact is not None
        own = open_references(session.run, session.target, session.artifact, session.info, session.call)
    except Undecomposed:
        yield None
        return
    try:
        yield own
    finally:
        own.close()


def _judged(session: TargetSession, hardest: Hardest, prompts: Sequence[HardPrompt], steps: int) -> Verdict:
    """Feed prompts, the last `steps` tokens one by one, and hold the rows against the oracle's."""
    oracle, stepper = Oracle(session), Stepper(session)
    # Rounding is not on these prompts what it is on ordinary ones: their own yardstick counts where it is more.
    # Past the window nothing is new, so that a full context has that of its beginning.
    most = session.run.settings.checkpoint.window + 2 * _LENGTH
    found = Comparisons(max((oracle.allowance(prompt.tokens[:most]) for prompt in prompts), key=lambda one: one.unit))
    explanations = []
    for prompt in prompts:
        tokens, prefill = prompt.tokens, len(prompt.tokens) - steps
        with stepper.left_clean():
            rows = stepper.feed([tokens[:prefill], *([token] for token in tokens[prefill:])])
        expected, count = oracle.rows(tokens, prefill), rows.shape[0]
        spread = expected.spread[-count:]
        if not found.see(prompt.name, expected.rows[-count:], rows, len(tokens) - count, spread):
            explanations.append(_explained(session, prompt))
    verdict = found.verdict(hardest.note)
    message = "\n".join([verdict.message, *dict.fromkeys(explanations)])
    return msgspec.structs.replace(verdict, numbers={**verdict.numbers, **hardest.numbers}, message=message)


def _explained(session: TargetSession, prompt: HardPrompt) -> str:
    """Where it goes wrong: what the device shows, else what the reference knows. Raises nothing of ours."""
    peaks: Peaks = prompt.peaks
    try:
        peaks = peaks or _peaks(session, prompt.tokens)
        states = _states(session, prompt.tokens)
        shown = judge_inner(states, _order(states), peaks, {})
        if shown.outcome is not Outcome.PASS:
            return shown.message
    except HarnessError as error:
        note = f"the session shows no place: {error.problem.splitlines()[0]}"
        return f"{note}\n{overflow.cause(peaks)}" if peaks else note
    return overflow.cause(peaks) if peaks else "every value that the session shows is finite"


def _states(session: TargetSession, tokens: Sequence[int]) -> States:
    found: States = session.call("residual_states", tokens=list(tokens), prefill=len(tokens) - _STEPS)
    return found


def _order(states: States) -> list[str]:
    """The places of a device in the order of computing."""
    layers = sum(place.endswith(".mlp") for place in states)
    return [place for place in places(layers) if place in states]
