"""The reference with a known fault of kernels, and how much of a device's error is that fault's effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.arithmetic import Arithmetic, CachePrecision
from harness.reference.artifact import ArtifactReference
from harness.reference.kernels import PLAIN, Kernels, u8_rows
from harness.reference.model import Forward, Phi3, Steps, TokenSequence, together
from harness.suspects import Lineup
from harness.wanted import MOST_ROWS, Wanted

Asked = tuple[Sequence[int], int, NDArray[np.float32], NDArray[np.float64]]
"""Token ids, how many of them are fed at once, the device's last m rows `[m, V]`, and the yardstick `[n]` in logits."""

# Layers up to which each is a suspect of its own: every one costs a forward pass over the long prompts.
_MOST_LAYERS = 12
# Of logits that are looked at together, in float64.
_ROWS = 256
# Of effects that are remembered: those of two long prompts at a vocabulary of 32,064 would take 1.6 GB a suspect.
_KEPT_BYTES = 1 << 30


class _Faulty(Kernels):
    """Operators with a fault."""

    def __init__(self, arithmetic: Arithmetic, fault: Mapping[str, Any]) -> None:
        super().__init__(arithmetic, PLAIN)
        self._fault = fault

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        return super().attend(query * self._fault.get("scale", 1.0), key, value, visible)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        return super().rms_norm(x, weight, epsilon * self._fault.get("epsilon", 1.0))

    def swiglu(self, gate_up: Tensor) -> Tensor:
        if "activation" not in self._fault:
            return super().swiglu(gate_up)
        gate, up = gate_up.chunk(2, dim=-1)
        changed: Tensor = up * self._fault["activation"](gate)
        return changed

    def cached(self, x: Tensor) -> Tensor:
        kept = super().cached(x)
        return u8_rows(kept) if self._fault.get("coarse_cache") else kept


class _Suspect(Phi3):
    """A forward pass with a fault."""

    def __init__(self, config: Mapping[str, Any], honest: Phi3, fault: Mapping[str, Any]) -> None:
        super().__init__(config, honest.weights, halved=honest.halved)
        self._fault = fault
        self._now = 0

    def forward(self, sequence: TokenSequence, arithmetic: Arithmetic, keep: Callable[[Tensor], None]) -> Forward:
        return Forward(self, sequence, _Faulty(arithmetic, self._fault), keep)

    def _layer(self, layer: int, sequences: Sequence[TokenSequence], states: list[Tensor], *given: Any) -> list[Tensor]:
        self._now = layer
        if layer == self._fault.get("scaled_from"):
            states = [state * self._fault["stream"] for state in states]
        return super()._layer(layer, sequences, states, *given)

    def _visible(self, n: int) -> Tensor:
        window = self._window
        if self._fault.get("layer", self._now) == self._now:
            window = self._fault.get("window", lambda size: size)(window)
        distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
        visible = distance >= 0
        return visible & (distance < window) if window else visible

    def _angles(self, n: int, frequencies: Tensor) -> Tensor:
        exact = super()._angles(n, frequencies)
        changed: Tensor = self._fault.get("angles", lambda angles: angles)(exact)
        return changed


def _rotary_base(factor: float) -> Callable[[Tensor], Tensor]:
    def change(angles: Tensor) -> Tensor:
        steps = torch.arange(angles.shape[-1]) / angles.shape[-1]
        return angles * factor**-steps

    return change


def _removed(_: int) -> None:
    """No window at all."""


class Suspect(NamedTuple):
    """A known fault: name, what is changed, whether it shows past the window only, whether it has a size."""

    name: str
    fault: Mapping[str, Any]
    far: bool = False
    sized: bool = False


def suspects(config: Mapping[str, Any], arithmetic: Arithmetic) -> Iterator[Suspect]:
    """Every known fault that a device of a configuration may have beside its arithmetic."""
    yield Suspect("a scale of attention 1 % larger", {"scale": 1.01}, sized=True)
    yield Suspect("a rotary base 1 % larger", {"angles": _rotary_base(1.01)}, sized=True)
    yield Suspect("rotary frequencies 0.1 % larger", {"angles": lambda angles: angles * 1.001}, sized=True)
    yield Suspect("rotary angles in FP16", {"angles": lambda a: a.to(torch.float16).to(torch.float32)})
    yield Suspect("rotary angles in BF16", {"angles": lambda a: a.to(torch.bfloat16).to(torch.float32)})
    yield Suspect("10 times the epsilon", {"epsilon": 10.0})
    yield Suspect("GELU for SiLU", {"activation": torch.nn.functional.gelu})
    layers = int(config["num_hidden_layers"])
    # What is scaled from a layer on is scaled from the next but for one layer's share: of many a few are near enough.
    for layer in range(layers) if layers <= _MOST_LAYERS else [layers * quarter // 4 for quarter in range(4)]:
        fault = {"stream": 1.01, "scaled_from": layer}
        yield Suspect(f"a residual stream 1 % larger from layer {layer} on", fault, sized=True)
    if arithmetic.cache is not CachePrecision.U8:
        yield Suspect("a cache in 8 bits", {"coarse_cache": True})
    if not config.get("sliding_window"):
        return
    yield Suspect("a window one position longer", {"window": lambda size: size + 1}, far=True)
    yield Suspect("a window one position shorter", {"window": lambda size: size - 1}, far=True)
    yield Suspect("no window", {"window": _removed}, far=True)
    if layers <= _MOST_LAYERS:
        for layer in range(layers):
            yield Suspect(f"no window in layer {layer}", {"window": _removed, "layer": layer}, far=True)


class _Prompt(NamedTuple):
    """A prompt with the reference's rows `[n, V]`, the device's last m `[m, V]`, and the weights `[m]` of these."""

    sequence: TokenSequence
    plain: NDArray[np.float32]
    device: NDArray[np.float32]
    weight: NDArray[np.float64]

    def error(self, rows: slice) -> NDArray[np.float64]:
        """The device's centred error at some of the last m rows."""
        m = self.device.shape[0]
        return _centred(self.device[rows].astype(np.float64) - self.plain[-m:][rows])

    def power(self, rows: slice) -> NDArray[np.float64]:
        """The weighted power of that error, by position."""
        error = self.error(rows)
        found: NDArray[np.float64] = np.einsum("nv,nv->n", error, error) * self.weight[rows]
        return found

    @property
    def parts(self) -> Iterator[slice]:
        """Its last m rows, some at a time."""
        m = self.device.shape[0]
        return (slice(start, min(m, start + _ROWS)) for start in range(0, m, _ROWS))


class Responses:
    """What every suspect does to the logits of prompts; remembered where it is small, since it hangs on no device.

    `memory`: bytes of effects that may be remembered.
    """

    def __init__(self, reference: ArtifactReference, memory: int = _KEPT_BYTES) -> None:
        self._reference = reference
        self._config = reference.config
        self._memory = memory
        self._known: dict[Any, NDArray[np.float64]] = {}
        self._kept = 0

    def lineup(self, prompts: Sequence[Asked], arithmetic: Arithmetic) -> Steps[Lineup]:
        """How much of each suspect's effect is in the error of a device that gave the prompts' rows."""
        asked = yield from self._open(prompts, arithmetic)
        every = list(suspects(self._config, arithmetic))
        products = {suspect.name: [np.zeros(one.weight.size) for one in asked] for suspect in every}
        powers = {suspect.name: [np.zeros(one.weight.size) for one in asked] for suspect in every}
        unknown: list[tuple[Forward, int]] = []
        for suspect in every:
            for one, top, bottom in zip(asked, products[suspect.name], powers[suspect.name], strict=True):
                key = (suspect.name, one.sequence, one.weight.size, str(arithmetic.systematic))
                if key in self._known:
                    _weigh(one, lambda rows, key=key: self._known[key][rows], top, bottom)  # type: ignore[misc]
                elif not suspect.far or len(one.sequence.tokens) >= int(self._config["sliding_window"]):
                    keep = partial(self._take, key, one, top, bottom)
                    model = _Suspect(self._config, self._reference.model(arithmetic), suspect.fault)
                    unknown.append((model.forward(one.sequence, arithmetic.systematic, keep), one.plain.shape[0]))
        for some in _batches(unknown):
            yield from together(some)
        own = [one.power(rows) for one in asked for rows in one.parts]
        return Lineup(
            [one.weight.size for one in asked],
            {name: np.concatenate(rows) for name, rows in products.items()},
            {name: np.concatenate(rows) for name, rows in powers.items()},
            np.concatenate(own),
            [one.name for one in every if one.sized],
        )

    def _open(self, prompts: Sequence[Asked], arithmetic: Arithmetic) -> Steps[list[_Prompt]]:
        """The prompts with the reference's rows."""
        wanted = [Wanted(tuple(tokens), prefill, arithmetic) for tokens, prefill, _, _ in prompts]
        plain = yield from self._reference.answers(wanted)
        return [
            _Prompt(
                TokenSequence(one.tokens, one.prefill),
                found["logits"],
                device,
                1.0 / np.square(np.maximum(yardstick[-len(device) :], 0.1 * float(np.mean(yardstick)))),
            )
            for one, found, (_, _, device, yardstick) in zip(wanted, plain, prompts, strict=True)
        ]

    def _take(
        self, key: Any, one: _Prompt, top: NDArray[np.float64], bottom: NDArray[np.float64], faulty: Tensor
    ) -> None:
        """Weigh the centred change of a prompt's last rows, and remember it."""
        m = one.weight.size
        rows, plain = faulty.numpy()[-m:], one.plain[-m:]

        def effect(some: slice) -> NDArray[np.float64]:
            return _centred(rows[some].astype(np.float64) - plain[some])

        _weigh(one, effect, top, bottom)
        if 2 * rows.nbytes + self._kept <= self._memory:
            self._known[key] = effect(slice(None))
            self._kept += 2 * rows.nbytes


def _weigh(
    one: _Prompt,
    effect: Callable[[slice], NDArray[np.float64]],
    top: NDArray[np.float64],
    bottom: NDArray[np.float64],
) -> None:
    """Write the weighted products of an effect with the device's error, and with itself, by position."""
    for rows in one.parts:
        changed = effect(rows)
        top[rows] = np.einsum("nv,nv->n", changed, one.error(rows)) * one.weight[rows]
        bottom[rows] = np.einsum("nv,nv->n", changed, changed) * one.weight[rows]


def _batches(forwards: Sequence[tuple[Forward, int]]) -> Iterator[list[Forward]]:
    """Some at a time, of no more than so many rows together where that is more than one."""
    some: list[Forward] = []
    rows = 0
    for forward, n in forwards:
        if some and rows + n > MOST_ROWS:
            yield some
            some, rows = [], 0
        some, rows = [*some, forward], rows + n
    if some:
        yield some


def _centred(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = rows - rows.mean(axis=1, keepdims=True)
    return centred
