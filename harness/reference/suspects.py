"""The reference with a known fault of kernels, and how much of a device's error is that fault's effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness.arithmetic import Arithmetic, CachePrecision
from harness.reference.artifact import ArtifactReference
from harness.reference.kernels import PLAIN, Kernels, u8_rows
from harness.reference.model import Phi3, TokenSequence
from harness.suspects import Lineup

Asked = tuple[Sequence[int], int, NDArray[np.float32], NDArray[np.float64]]
"""Token ids, how many of them are fed at once, the device's last m rows `[m, V]`, and the yardstick `[n]` in logits."""

# Layers up to which each is a suspect of its own: every one costs a forward pass over the long prompts.
_MOST_LAYERS = 12
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

    def faulty_logits(self, sequence: TokenSequence, arithmetic: Arithmetic) -> NDArray[np.float32]:
        with torch.inference_mode():
            found = self._logits([sequence], _Faulty(arithmetic, self._fault), lambda *_: None)[0]
        rows: NDArray[np.float32] = found.numpy()
        return rows

    def _layer(self, layer: int, *given: Any) -> list[Tensor]:
        self._now = layer
        return super()._layer(layer, *given)

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
    if arithmetic.cache is not CachePrecision.U8:
        yield Suspect("a cache in 8 bits", {"coarse_cache": True})
    if not config.get("sliding_window"):
        return
    yield Suspect("a window one position longer", {"window": lambda size: size + 1}, far=True)
    yield Suspect("a window one position shorter", {"window": lambda size: size - 1}, far=True)
    yield Suspect("no window", {"window": _removed}, far=True)
    layers = int(config["num_hidden_layers"])
    if layers <= _MOST_LAYERS:
        for layer in range(layers):
            yield Suspect(f"no window in layer {layer}", {"window": _removed, "layer": layer}, far=True)


class Responses:
    """What every suspect does to the logits of prompts; remembered where it is small, since it hangs on no device."""

    def __init__(self, reference: ArtifactReference) -> None:
        self._reference = reference
        self._config = reference.config
        self._known: dict[Any, NDArray[np.float64]] = {}
        self._kept = 0

    def lineup(self, prompts: Sequence[Asked], arithmetic: Arithmetic) -> Lineup:
        """How much of each suspect's effect is in the error of a device that gave the prompts' rows."""
        repeated = arithmetic.systematic
        plain, errors, weights = [], [], []
        for tokens, prefill, device, yardstick in prompts:
            reference = self._reference.logits([(tokens, prefill)], arithmetic)[0]
            plain.append(reference)
            rows = device.shape[0]
            errors.append(_centred(device.astype(np.float64) - reference[-rows:]))
            weights.append(1.0 / np.square(np.maximum(yardstick[-rows:], 0.1 * float(np.mean(yardstick)))))
        products, powers = {}, {}
        every = list(suspects(self._config, arithmetic))
        for suspect in every:
            top, bottom = [], []
            for (tokens, prefill, _, _), reference, error, weight in zip(prompts, plain, errors, weights, strict=True):
                sequence = TokenSequence(tuple(tokens), prefill)
                effect = self._effect(suspect, sequence, repeated, reference)[-error.shape[0] :]
                top.append(np.einsum("nv,nv->n", effect, error) * weight)
                bottom.append(np.einsum("nv,nv->n", effect, effect) * weight)
            products[suspect.name], powers[suspect.name] = np.concatenate(top), np.concatenate(bottom)
        own = [np.einsum("nv,nv->n", error, error) * weight for error, weight in zip(errors, weights, strict=True)]
        sized = [one.name for one in every if one.sized]
        return Lineup([len(one) for one in errors], products, powers, np.concatenate(own), sized)

    def _effect(
        self,
        suspect: Suspect,
        sequence: TokenSequence,
        arithmetic: Arithmetic,
        plain: NDArray[np.float32],
    ) -> NDArray[np.float64]:
        """Centred change of the logits `[n, V]` from `plain`; nothing where the prompt is too short for the fault."""
        key = (suspect.name, sequence.tokens, sequence.prefill, str(arithmetic))
        if key in self._known:
            return self._known[key]
        if suspect.far and len(sequence.tokens) < int(self._config["sliding_window"]):
            return np.zeros((len(sequence.tokens), int(self._config["vocab_size"])))
        model = _Suspect(self._config, self._reference.model(arithmetic), suspect.fault)
        faulty = model.faulty_logits(sequence, arithmetic)
        effect = _centred(faulty.astype(np.float64) - plain)
        if effect.nbytes + self._kept <= _KEPT_BYTES:
            self._known[key] = effect
            self._kept += effect.nbytes
        return effect


def _centred(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = rows - rows.mean(axis=1, keepdims=True)
    return centred
