"""Where a model's activations are greatest, on any prompt, and prompts that drive them high.

Which prompts do is different from one checkpoint to the next, so they are searched for: prompts of kinds that are known
to (the tokens at which attention has its sink, runs of one token, tokens with unusual embeddings, which are the rarely
trained ones, and a sweep through the vocabulary) are ranked by the greatest activations of FP32 PyTorch on the
artifact's weights; then the tokens at which the best of them have their peaks are tried in runs of their own, and
together.

Source for sinks, and for the activations that the first token and separators drive a thousand times above the others:
Sun et al., "Massive Activations in Large Language Models" (arXiv 2402.17762).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from harness.arithmetic import Arithmetic
from harness.layout import EMBEDDING, HEAD
from harness.overflow import ATTENTION, MLP, SCORES, SQUARES, STREAM, SWIGLU, HardPrompt, Peak, Peaks, kind_of
from harness.reference.artifact import ArtifactReference
from harness.reference.kernels import Kernels
from harness.reference.model import Forward, Phi3, Steps, TokenSequence, together
from harness.states import LOGITS

_KINDS = (STREAM, ATTENTION, MLP)
# Tokens of one kind that are each tried in a run of its own.
_RUNS = 3
_SPECIAL = 6
# Prompts that sweep through the vocabulary, with a step.
_SWEEPS = 4


class Recording(Kernels):
    """FP32 kernels that note the greatest magnitude of everything that they compute, by the name of its place."""

    def __init__(self) -> None:
        super().__init__(Arithmetic())
        self.peaks: Peaks = {}
        self._module = ""

    def note(self, place: str, x: Tensor) -> None:
        """Note the peak of `[..., n, width]`, n being positions; of what comes in parts that of all."""
        rows = x.abs().amax(-1)
        rows = rows.reshape(-1, rows.shape[-1]).amax(0)
        position = int(rows.argmax())
        if place not in self.peaks or self.peaks[place].magnitude < float(rows[position]):
            self.peaks[place] = Peak(float(rows[position]), position)

    def enter(self, name: str) -> None:
        """Keep whose product or norm comes next; what the LM head gives are the logits."""
        self._module = LOGITS if name == HEAD else name.removesuffix(".weight")

    def finished(self, sums: Tensor) -> Tensor:
        """A product, noted under the name of its module."""
        found = super().finished(sums)
        self.note(self._module, found)
        return found

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """A norm, noted with its squares."""
        found = super().rms_norm(x, weight, epsilon)
        self.note(f"{self._module}.{SQUARES}", x.pow(2))
        self.note(self._module, found)
        return found

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """What the gate lets through."""
        found = super().swiglu(gate_up)
        self.note(f"{self._module.rpartition('.')[0]}.{SWIGLU}", found)
        return found

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attention; its scores are noted as the product gives them, which the scale comes after."""
        scores = (query @ key.transpose(-1, -2)).masked_fill(~visible, 0.0)
        self.note(f"{self._module.rpartition('.')[0]}.{SCORES}", scores)
        return super().attend(query, key, value, visible)


def peaks_of(reference: ArtifactReference, tokens: Sequence[int]) -> Steps[Peaks]:
    """The peaks of FP32 PyTorch on an artifact's exact weights at every place, for a prompt that is fed at once."""
    found = yield from _seen(reference.model(Arithmetic()), [("", list(tokens))])
    return dict(found[0].peaks)


def search(
    reference: ArtifactReference, special: Sequence[int], ordinary: Sequence[int], length: int
) -> Steps[list[HardPrompt]]:
    """For each kind of place the prompt of `length` tokens that drives it highest, each once; then the ordinary text.

    `special`: ids of tokens that are no text, the most usual first.
    """
    model = reference.model(Arithmetic())
    candidates = list(_candidates(model.weights[EMBEDDING].values, special, ordinary, length))
    found = yield from _seen(model, candidates)
    best = {kind: max(found, key=lambda prompt: highest(prompt, kind).magnitude) for kind in _KINDS}
    found += yield from _seen(model, list(_second(best, length)))
    last = {kind: max(found, key=lambda prompt: highest(prompt, kind).magnitude) for kind in _KINDS}
    chosen = {prompt.name: prompt for prompt in last.values()}
    return [*chosen.values(), next(prompt for prompt in found if prompt.name == "ordinary text")]


def highest(prompt: HardPrompt, kind: str) -> Peak:
    """The greatest peak of a kind of places on a prompt."""
    return max((p for place, p in prompt.peaks.items() if kind_of(place) == kind), key=lambda p: p.magnitude)


def _seen(model: Phi3, prompts: Sequence[tuple[str, list[int]]]) -> Steps[list[HardPrompt]]:
    watching = [Recording() for _ in prompts]
    forwards = [
        Forward(model, TokenSequence(tuple(tokens), len(tokens)), kernels, lambda _: None, kernels.note)
        for kernels, (_, tokens) in zip(watching, prompts, strict=True)
    ]
    yield from together(forwards)
    return [HardPrompt(name, tuple(tokens), one.peaks) for one, (name, tokens) in zip(watching, prompts, strict=True)]


def _candidates(
    embedding: Tensor, special: Sequence[int], ordinary: Sequence[int], length: int
) -> Iterator[tuple[str, list[int]]]:
    yield "ordinary text", _cycled(ordinary, length)
    for token in special[:_SPECIAL]:
        yield f"special token {token} over and over", [token] * length
    if len(special) > 1:
        yield "special tokens in turn", _cycled(special, length)
    norms, components = embedding.norm(dim=1), embedding.abs().amax(dim=1)
    for what, size in (("largest", norms), ("smallest", -norms), ("most uneven", components / norms.clamp_min(1e-20))):
        order = torch.argsort(size, descending=True, stable=True)[:length].tolist()
        yield f"the tokens with the {what} embeddings", _cycled(order, length)
        for token in order[:_RUNS]:
            yield f"token {token} over and over, of the {what} embeddings", [token] * length
    spread = np.linspace(0, embedding.shape[0] - 1, _SWEEPS * length).astype(int).tolist()
    for sweep in range(_SWEEPS):
        yield f"sweep {sweep + 1} of {_SWEEPS} through the vocabulary", spread[sweep::_SWEEPS]


def _second(best: Mapping[str, HardPrompt], length: int) -> Iterator[tuple[str, list[int]]]:
    """Runs of the tokens at which the best prompts have their peaks, and these tokens in turn."""
    tokens = dict.fromkeys(prompt.tokens[highest(prompt, kind).position] for kind, prompt in best.items())
    for token in tokens:
        yield f"token {token} over and over, the hardest of another prompt", [token] * length
    if len(tokens) > 1:
        yield "the hardest tokens of other prompts in turn", _cycled(list(tokens), length)


def _cycled(tokens: Sequence[int], length: int) -> list[int]:
    return list(itertools.islice(itertools.cycle(tokens), length))
