"""The reference of one artifact: its exact weights in FP32, and how far honest ways of computing lie from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from harness import metrics, phi3_float64
from harness.arithmetic import Arithmetic, Weights
from harness.errors import ArtifactError
from harness.layout import Layout, Place
from harness.reference.kernels import PLAIN, VARIANTS, Kernels, Variant
from harness.reference.model import Forward, Phi3, Steps, Tap, TokenSequence, completed, together
from harness.reference.weights import Resident, Store, Weight
from harness.wanted import Wanted
from harness.weights import ArtifactWeights, Quantised

# Threads cost more than they give where products are small: 0.5 s against 16 s for 2,500 tokens of the bundled
# checkpoint on two busy cores.
_SMALL_HIDDEN = 1024
# Of logits that are compared at once, in float64.
_ROWS = 256
_ROUNDED = {Weights.F16: torch.float16, Weights.BF16: torch.bfloat16}


Found = dict[str, NDArray[Any]]
"""`logits` `[n, V]` float32; or by variant the errors `[n]` float64 of `ArtifactReference.yardsticks`."""

Keep = Callable[[Tensor], NDArray[np.float32]]
"""Where logits are kept until they are asked for."""


class ArtifactReference:
    """FP32 PyTorch on the weights of an artifact. Raises ArtifactError where rows of a tensor are missing.

    `held`: the weights where they are not to be read into memory now. `keep`: what is done with logits.
    """

    def __init__(
        self, weights: ArtifactWeights, config: Mapping[str, Any], held: Store | None = None, keep: Keep | None = None
    ) -> None:
        self.config = config
        self._held: Store = Resident(assemble(weights, config)) if held is None else held
        self._keep: Keep = keep or (lambda rows: rows.numpy())
        self._halved = phi3_float64.halved_rotary(weights.statements(), config)
        self._exact = Phi3(config, self._held, halved=self._halved)
        self._rounded = Weights.EXACT, self._exact
        if int(config["hidden_size"]) < _SMALL_HIDDEN:
            torch.set_num_threads(1)

    @property
    def holds_codes(self) -> bool:
        """Whether any weight is quantised."""
        return self._held.quantised

    def logits(
        self, sequences: Sequence[tuple[Sequence[int], int]], arithmetic: Arithmetic, tap: Tap | None = None
    ) -> list[NDArray[np.float32]]:
        """Logits `[n, V]` float32 of sequences, each of token ids and how many of them are fed at once.

        Only what is systematic in the arithmetic is repeated: see `Arithmetic.systematic`.
        """
        fed = [TokenSequence(tuple(tokens), prefill) for tokens, prefill in sequences]
        found = self.model(arithmetic).logits(fed, arithmetic.systematic, tap=tap)
        return [rows.numpy() for rows in found]

    def yardsticks(self, tokens: Sequence[int], prefill: int, arithmetic: Arithmetic) -> dict[str, NDArray[np.float64]]:
        """For each honest variant of the arithmetic: centred RMS logit error `[n]` against the reference, in logits.

        0 where a variant overflows, as it may in FP16: there it measures nothing, and excuses nothing.
        """
        return completed(self.answers([Wanted(tuple(tokens), prefill, arithmetic, yardsticks=True)]))[0]

    def answers(self, wanted: Sequence[Wanted]) -> Steps[list[Found]]:
        """Everything that is wanted, in one pass over the weights."""
        found: list[Found] = [{} for _ in wanted]
        forwards = []
        plain: dict[tuple[TokenSequence, Arithmetic], list[NDArray[np.float32]]] = {}
        for one, answer in zip(wanted, found, strict=True):
            sequence, arithmetic = TokenSequence(one.tokens, one.prefill), one.arithmetic
            repeated = arithmetic.systematic
            if (sequence, repeated) not in plain:
                plain[sequence, repeated] = []
                forwards.append(self.forward(sequence, repeated, partial(self._put, plain[sequence, repeated])))
            rows = plain[sequence, repeated]
            for variant in VARIANTS if one.yardsticks else ():
                keep = partial(_note, answer, variant.name, rows)
                forwards.append(self.forward(sequence, arithmetic, keep, variant))
        yield from together(forwards)
        for one, answer in zip(wanted, found, strict=True):
            if not one.yardsticks:
                answer["logits"] = plain[TokenSequence(one.tokens, one.prefill), one.arithmetic.systematic][0]
        return found

    def forward(
        self,
        sequence: TokenSequence,
        arithmetic: Arithmetic,
        keep: Callable[[Tensor], object],
        variant: Variant = PLAIN,
        tap: Callable[[str, Tensor], Tensor | None] | None = None,
    ) -> Forward:
        """A sequence to be computed in an arithmetic by a variant: see `harness.reference.model.together`."""
        return Forward(self.model(arithmetic), sequence, Kernels(arithmetic, variant), keep, tap)

    def _put(self, kept: list[NDArray[np.float32]], rows: Tensor) -> None:
        kept.append(self._keep(rows))

    def model(self, arithmetic: Arithmetic) -> Phi3:
        """The model on the weights as an arithmetic rounds them; one rounding is kept at a time, and the exact ones."""
        dtype = _ROUNDED.get(arithmetic.weights)
        if dtype is None:
            return self._exact
        if arithmetic.weights is not self._rounded[0]:
            self._rounded = Weights.EXACT, self._exact  # lets the one before go
            held = self._held.rounded(dtype)
            self._rounded = arithmetic.weights, Phi3(self.config, held, halved=self._halved)
        return self._rounded[1]


def _note(answer: Found, name: str, reference: Sequence[NDArray[np.float32]], variant: Tensor) -> None:
    """Put a variant's errors into an answer; the reference's rows have come before."""
    answer[name] = _finite_errors(reference[0], variant.numpy())


def _finite_errors(reference: NDArray[np.float32], variant: NDArray[np.float32]) -> NDArray[np.float64]:
    """Centred RMS errors `[n]`, 0 in rows of the variant that are not finite."""
    errors = np.zeros(variant.shape[0])
    for start in range(0, errors.size, _ROWS):
        some = slice(start, start + _ROWS)
        finite = np.isfinite(variant[some]).all(axis=1)
        if finite.any():
            errors[some][finite] = metrics.centred_rms_error(reference[some][finite], variant[some][finite])
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
