"""A device of our own: the reference's forward pass with hooks for faults of kernels and caches.

It sums in another order than the reference, and than its honest variants do, so that it has rounding of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from detection.battery.trial import Answers
from harness.arithmetic import Arithmetic
from harness.golden import Case
from harness.products import INPUTS, OUTPUTS, Products, drawn
from harness.reference.kernels import Kernels, Variant
from harness.reference.model import Phi3, Tap, TokenSequence
from harness.reference.weights import Weight

HONEST = Variant("device", split=3)
# Other orders of summation and another kernel of attention, none of which is among the yardstick's variants.
OTHERS = (
    Variant("split 7", split=7),
    Variant("split 2, online", split=2, attention="online"),
    Variant("split 5, fused", split=5, fused=True),
    Variant("split 3, online, fused", split=3, attention="online", fused=True),
    Variant("split 6, jitter", split=6, jitter=6e-8),
    Variant("split 8, online, jitter", split=8, attention="online", jitter=1.2e-7),
)
# Further ones, for how far honest devices lie from each other: the largest of a few is less than that of many.
FURTHER = tuple(
    Variant(f"further {n}", split=n, attention=("eager", "online")[n % 2], fused=n % 4 > 1, jitter=6e-8)
    for n in range(9, 33)
)
EVERY_LAYER = -1


class DeviceKernels(Kernels):
    """The operators, with a fault in those of one layer or of all."""

    def __init__(self, arithmetic: Arithmetic, fault: Fault) -> None:
        super().__init__(arithmetic, HONEST)
        self.fault = fault
        self.layer = 0

    @property
    def faulty(self) -> bool:
        """Whether the layer being computed has the fault."""
        return self.fault.layer in (EVERY_LAYER, self.layer)

    def rms_norm(self, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """RMSNorm."""
        if self.fault.norm and self.faulty:
            return self.fault.norm(self, x, weight, epsilon)
        return super().rms_norm(x, weight, epsilon)

    def swiglu(self, gate_up: Tensor) -> Tensor:
        """The gated activation."""
        if self.fault.swiglu and self.faulty:
            return self.fault.swiglu(self, gate_up)
        return super().swiglu(gate_up)

    def cached(self, x: Tensor) -> Tensor:
        """What the cache gives back."""
        kept = super().cached(x)
        return self.fault.cache(kept.clone()) if self.fault.cache and self.faulty else kept

    def attend(self, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        """Attention."""
        if self.fault.attend and self.faulty:
            return self.fault.attend(self, query, key, value, visible)
        return super().attend(query, key, value, visible)

    def sums(self, x: Tensor, weight: Tensor, *, quantised: bool) -> Tensor:
        """A product with a weight."""
        if self.fault.product and self.faulty:
            x = self.fault.product(x)
        return super().sums(x, weight, quantised=quantised)


class Fault:
    """What is wrong, each part None where it is right; `layer` limits it to one, where it is in a layer."""

    def __init__(self, *, layer: int = EVERY_LAYER, **hooks: Any) -> None:
        self.layer = layer
        self.norm: Callable[[Kernels, Tensor, Tensor, float], Tensor] | None = hooks.pop("norm", None)
        self.swiglu: Callable[[Kernels, Tensor], Tensor] | None = hooks.pop("swiglu", None)
        self.cache: Callable[[Tensor], Tensor] | None = hooks.pop("cache", None)
        self.attend: Callable[[Kernels, Tensor, Tensor, Tensor, Tensor], Tensor] | None = hooks.pop("attend", None)
        self.product: Callable[[Tensor], Tensor] | None = hooks.pop("product", None)
        self.visible: Callable[[Tensor, Tensor], Tensor] | None = hooks.pop("visible", None)
        self.angles: Callable[[Tensor, int], Tensor] | None = hooks.pop("angles", None)
        self.repeat: Callable[[Tensor, int], Tensor] | None = hooks.pop("repeat", None)
        self.order: Callable[[int], tuple[int, ...]] | None = hooks.pop("order", None)
        self.tap: Tap | None = hooks.pop("tap", None)
        self.weights: Callable[[dict[str, Weight]], None] | None = hooks.pop("weights", None)
        self.arithmetic: Callable[[Arithmetic], Arithmetic] | None = hooks.pop("arithmetic", None)
        assert not hooks, hooks


class Device(Phi3):
    """The forward pass with a fault."""

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Weight], fault: Fault) -> None:
        held = dict(weights)
        if fault.weights:
            fault.weights(held)
        super().__init__(config, held)
        self._fault = fault
        self._layer_now = 0
        self._prefill = 0

    def answers(self, cases: Sequence[Case], arithmetic: Arithmetic, permitted: tuple[Arithmetic, ...]) -> Answers:
        """Teacher-forced logits of every prompt."""
        computing = self._fault.arithmetic(arithmetic) if self._fault.arithmetic else arithmetic
        found = []
        for case in cases:
            self._prefill = len(case.tokens)
            fed = [TokenSequence(case.sequence, self._prefill)]
            with torch.inference_mode():
                kernels = DeviceKernels(computing, self._fault)
                found.append(self._logits(fed, kernels, self._fault.tap or (lambda *_: None))[0].numpy())
        return Answers(found, permitted, self._products(computing))

    def _products(self, arithmetic: Arithmetic) -> Products:
        """As `harness.products` has them: of the first and of the last layer."""
        kernels, found = DeviceKernels(arithmetic, self._fault), {}
        for number, layer in enumerate((0, self.layers - 1)):
            kernels.layer = layer
            name = f"model.layers.{layer}.mlp.down_proj.weight"
            weight = self.weights[name]
            inputs = drawn(weight.values.shape[1], number)
            outputs = kernels.product(torch.from_numpy(inputs), weight.values, quantised=weight.quantised)
            found[name] = {INPUTS: inputs, OUTPUTS: outputs.numpy()}
        return found

    def _layer(self, layer: int, sequences: Any, states: Any, rotations: Any, kernels: Any, tap: Any) -> Any:
        for number in self._fault.order(layer) if self._fault.order else (layer,):
            self._layer_now = kernels.layer = number
            states = super()._layer(number, sequences, states, rotations, kernels, tap)
        kernels.layer = self.layers  # the final norm and the LM head belong to none
        return states

    def _visible(self, n: int) -> Tensor:
        visible = super()._visible(n)
        if self._fault.visible and self._fault.layer in (EVERY_LAYER, self._layer_now):
            distance = torch.arange(n)[:, None] - torch.arange(n)[None, :]
            return self._fault.visible(visible, distance)
        return visible

    def _attend(self, kernels: Kernels, query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> Tensor:
        if self._fault.repeat and self._fault.layer in (EVERY_LAYER, self._layer_now):
            repeats = self._heads // self._kv_heads
            wrong = self._fault.repeat(key, repeats), self._fault.repeat(value, repeats)
            return kernels.attend(query, *wrong, visible)
        return super()._attend(kernels, query, key, value, visible)

    def _rotation(self, n: int, prefill: int) -> tuple[Tensor, Tensor]:
        cosine, sine = super()._rotation(n, prefill)
        if self._fault.angles is None:
            return cosine, sine
        # The angles themselves, not what can be told from their cosines.
        from harness import phi3_float64

        frequencies = torch.from_numpy(phi3_float64.frequencies(self._config, n)[0]).to(torch.float32)
        angles = torch.arange(n, dtype=torch.float32)[:, None] * frequencies
        changed = self._fault.angles(angles, self._prefill)
        return changed.cos(), changed.sin()
