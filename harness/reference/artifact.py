"""The reference of one artifact: its exact weights in FP32, and how far honest ways of computing lie from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from harness import metrics, phi3_float64
from harness.arithmetic import Arithmetic, Weights
from harness.errors import ArtifactError
from harness.layout import Layout, Place
from harness.reference.kernels import VARIANTS
from harness.reference.model import Phi3, Tap, TokenSequence, Weight
from harness.weights import ArtifactWeights, Quantised

# Threads cost more than they give where products are small: 0.5 s against 16 s for 2,500 tokens of the bundled
# checkpoint on two busy cores.
_SMALL_HIDDEN = 1024
_ROUNDED = {Weights.F16: torch.float16, Weights.BF16: torch.bfloat16}


class ArtifactReference:
    """FP32 PyTorch on the weights of an artifact. Raises ArtifactError where rows of a tensor are missing."""

    def __init__(self, weights: ArtifactWeights, config: Mapping[str, Any]) -> None:
        self.config = config
        self._exact = assemble(weights, config)
        self._rounding = Weights.EXACT
        self._halved = phi3_float64.halved_rotary(weights.statements(), config)
        self._model = Phi3(config, self._exact, halved=self._halved)
        if int(config["hidden_size"]) < _SMALL_HIDDEN:
            torch.set_num_threads(1)

    @property
    def holds_codes(self) -> bool:
        """Whether any weight is quantised."""
        return any(weight.quantised for weight in self._exact.values())

    def logits(
        self, sequences: Sequence[tuple[Sequence[int], int]], arithmetic: Arithmetic, tap: Tap | None = None
    ) -> list[NDArray[np.float32]]:
        """Logits `[n, V]` float32 of sequences, each of token ids and how many of them are fed at once.

        Only what is systematic in the arithmetic is repeated: see `Arithmetic.systematic`.
        """
        fed = [TokenSequence(tuple(tokens), prefill) for tokens, prefill in sequences]
        model = self._rounded(arithmetic.weights)
        return [found.numpy() for found in model.logits(fed, arithmetic.systematic, tap=tap)]

    def yardsticks(self, tokens: Sequence[int], prefill: int, arithmetic: Arithmetic) -> dict[str, NDArray[np.float64]]:
        """For each honest variant of the arithmetic: centred RMS logit error `[n]` against the reference, in logits.

        0 where a variant overflows, as it may in FP16: there it measures nothing, and excuses nothing.
        """
        reference = self.logits([(tokens, prefill)], arithmetic)[0]
        fed = [TokenSequence(tuple(tokens), prefill)]
        model = self._rounded(arithmetic.weights)
        return {
            variant.name: _finite_errors(reference, model.logits(fed, arithmetic, variant)[0].numpy())
            for variant in VARIANTS
        }

    def model(self, arithmetic: Arithmetic) -> Phi3:
        """The model on the weights as an arithmetic rounds them; valid until another rounding is asked for."""
        return self._rounded(arithmetic.weights)

    def _rounded(self, rounding: Weights) -> Phi3:
        """The model with its weights rounded; one rounding is kept at a time."""
        if rounding is not self._rounding:
            dtype = _ROUNDED.get(rounding)
            held = self._exact
            if dtype is not None:
                held = {n: w._replace(values=w.values.to(dtype).to(torch.float32)) for n, w in self._exact.items()}
            self._model, self._rounding = Phi3(self.config, held, halved=self._halved), rounding
        return self._model


def _finite_errors(reference: NDArray[np.float32], variant: NDArray[np.float32]) -> NDArray[np.float64]:
    """Centred RMS errors `[n]`, 0 in rows of the variant that are not finite."""
    finite = np.isfinite(variant).all(axis=1)
    errors = np.zeros(finite.size)
    if finite.any():
        errors[finite] = metrics.centred_rms_error(reference[finite], variant[finite])
    return errors


def assemble(weights: ArtifactWeights, config: Mapping[str, Any]) -> dict[str, Weight]:
    """The checkpoint's tensors in FP32 from what an artifact stores. Raises ArtifactError where rows are missing."""
    layout = Layout.of(config)
    shapes = layout.shapes()
    found: dict[str, Weight] = {}
    places: list[Place] = []
    for stored in weights.tensors():
        if stored.name not in shapes:
            raise ArtifactError(f"{stored.source} is no tensor of the checkpoint: {stored.name}", "export it again")
        shape = shapes[stored.name]
        content, multiplier = stored.content, None
        if content.multiplier is not None and stored.rows == shape[0]:
            multiplier = torch.from_numpy(content.multiplier.astype(np.float32))
            content = msgspec.structs.replace(content, multiplier=None)
        if stored.name not in found:
            found[stored.name] = Weight(torch.zeros(shape), isinstance(content, Quantised), multiplier)
        places.append(Place(stored.name, stored.row, (stored.rows, *shape[1:])))
        exact = torch.from_numpy(content.product()).to(torch.float32)
        found[stored.name].values[stored.row : stored.row + stored.rows] = exact
    layout.check_complete(places)
    return found
