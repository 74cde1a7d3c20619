"""How far the products that a runtime computed alone lie from those of every permitted arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from harness.arithmetic import Arithmetic
from harness.products import INPUTS, OUTPUTS, Products
from harness.reference.artifact import ArtifactReference
from harness.reference.kernels import Kernels

# Relative; what lies nearer than this is equal but for the order of summation.
_LEAST = 1e-7


def distances(reference: ArtifactReference, products: Products, permitted: Sequence[Arithmetic]) -> dict[str, float]:
    """By arithmetic, as a string: RMS error over the output's RMS, the geometric mean over the products."""
    found = {}
    for arithmetic in sorted(permitted, key=lambda one: one.weights.value):
        weights = reference.model(arithmetic).weights
        kernels = Kernels(arithmetic)
        errors = []
        for name, product in products.items():
            weight = weights[name]
            inputs = torch.from_numpy(np.ascontiguousarray(product[INPUTS]))
            expected = kernels.product(inputs, weight.values, quantised=weight.quantised).numpy()
            apart = float(np.sqrt(np.mean(np.square(expected.astype(np.float64) - product[OUTPUTS]))))
            errors.append(max(_LEAST, apart / float(np.sqrt(np.mean(np.square(expected, dtype=np.float64))))))
        found[str(arithmetic)] = float(np.exp(np.mean(np.log(errors))))
    return found
