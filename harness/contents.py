"""What a ready-made artifact is by its own files: precision, recipe, and the device that it was made for.

A folder's name says what somebody called it. The precision is the coarsest that the weights of a product are stored in,
as everywhere in this project: an INT4 export keeps some layers in INT8.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import msgspec

from harness.errors import ArtifactError
from harness.target import Precision

_FLOATS = {
    "float32": Precision.FP32,
    "float64": Precision.FP32,
    "bfloat16": Precision.BF16,
    "float16": Precision.FP16,
}
_CODES = {8: Precision.INT8, 4: Precision.INT4}
_COARSER = tuple(Precision)


class Contents(msgspec.Struct, frozen=True):
    """What an artifact's files say it is.

    `devices`: the names of those that it was made for, in the backend's words; none where it runs on any. `recipe`: how
    the weights are stored and, where it says so, by whom and how they were quantised. `missing`: files that it names
    and that are not there.
    """

    precision: Precision
    devices: tuple[str, ...]
    recipe: str
    missing: tuple[str, ...] = ()


@runtime_checkable
class TellsContents(Protocol):
    """A backend that can tell what an artifact of its runtime is, without the runtime."""

    artifact_mark: str
    """The file that every artifact of it has, and no other folder."""

    def contents(self, artifact: Path) -> Contents:
        """Read what an artifact says of itself. Raises ArtifactError where its files cannot be read."""
        ...


class Storage(NamedTuple):
    """How the weight of a product is stored: `bits` of a code and a float's dtype, of which one is 0 or empty.

    `group`: columns that share a scale, 0 for all of a row. `details`: more words, such as a level of accuracy.
    """

    bits: int = 0
    dtype: str = ""
    group: int = 0
    asymmetric: bool = False
    details: str = ""

    @property
    def precision(self) -> Precision:
        """Raises ArtifactError for bits or a dtype that no target is named by."""
        found = _CODES.get(self.bits) if self.bits else _FLOATS.get(self.dtype)
        if found is None:
            raise ArtifactError(f"it has weights of {self}, for which there is no target", "give another artifact")
        return found

    def __str__(self) -> str:
        if not self.bits:
            return self.dtype
        spread = f"in groups of {self.group}" if self.group else "with a scale a row"
        words = [f"{self.bits} bits {spread}", *(["asymmetric"] if self.asymmetric else []), self.details]
        return ", ".join(filter(None, words))


def coarsest(weights: Counter[Storage]) -> Precision:
    """The precision of an artifact whose products' weights are so many elements of each kind.

    Raises ArtifactError where there are none, or one is of a kind that no target has.
    """
    if not weights:
        raise ArtifactError("it has no products with stored weights", "give an exported Phi-3")
    return max((kind.precision for kind in weights), key=_COARSER.index)


def shares(weights: Counter[Storage]) -> str:
    """`4 bits in groups of 128 (60 %), 8 bits with a scale a row (40 %)`, by elements, the most first."""
    total = sum(weights.values())
    kinds = weights.most_common()
    if len(kinds) == 1:
        return str(kinds[0][0])
    return "; ".join(f"{kind} ({100 * count / total:.0f} %)" for kind, count in kinds)
