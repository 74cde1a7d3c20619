"""One case of an operator: its shape, the kind of values and the seed they are drawn from, written as one word.

`matmul-int4/bf16/1+2+17/k=3072,n=9216,bits=4,group=128,zero=0/plain/3` is the product by a weight of 4 bits, with
values that BF16 represents exactly, fed in calls of one, two and seventeen rows. The same word names the same bytes on
every machine, so a case is replayed by it: `phi3-conformance operator TARGET CASE`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

import msgspec

from harness.errors import UsageError
from harness.target import Precision

_FORM = re.compile(r"([a-z0-9-]+)/([a-z0-9]+)/([1-9][0-9+]*)/((?:[a-z]+=[0-9]+,?)+)/([a-z]+)/([0-9]+)")
_EXAMPLE = "softmax/fp32/2/n=17/plain/0"


class Values(str, enum.Enum):
    """What the values of a case are like; those that are `independent` have errors that average out."""

    PLAIN = "plain"
    """Bell-shaped around zero, of the size that the operator meets in Phi-3."""
    OUTLIERS = "outliers"
    """As plain, but a few columns 64 times as large, as in the residual stream of real models."""
    WIDE = "wide"
    """Magnitudes over six orders of two, of either sign."""
    LARGE = "large"
    """As large as the operator can take without its result overflowing."""
    TINY = "tiny"
    """Near the least normal number of the precision."""
    SUBNORMAL = "subnormal"
    """Below the least normal number."""
    EQUAL = "equal"
    """All the same."""
    ALTERNATING = "alternating"
    """Of one magnitude and alternating sign, so that sums cancel."""
    ZEROS = "zeros"
    """A row of zeros, then every other value zero."""
    MASKED = "masked"
    """Some are minus infinity, as where a mask was added; in every row one at least is not."""

    @property
    def independent(self) -> bool:
        """Whether every value is drawn by itself, so that roundings are independent of each other."""
        return self in (Values.PLAIN, Values.OUTLIERS, Values.WIDE, Values.LARGE, Values.MASKED)


class Case(msgspec.Struct, frozen=True):
    """One case.

    `operator`: a name of `harness.operators.catalogue`. `grid`: every value is represented exactly in this precision.
    `rows`: the rows are fed in calls of so many; for attention each call goes on from the cache of those before.
    `sizes`: the operator's own sizes, by name. `values` and `seed`: what is drawn.
    """

    operator: str
    grid: Precision
    rows: tuple[int, ...]
    sizes: Mapping[str, int]
    values: Values = Values.PLAIN
    seed: int = 0

    @property
    def count(self) -> int:
        """All rows."""
        return sum(self.rows)

    @property
    def spans(self) -> list[slice]:
        """The rows of each call."""
        ends = [sum(self.rows[: i + 1]) for i in range(len(self.rows))]
        return [slice(end - rows, end) for end, rows in zip(ends, self.rows, strict=True)]

    def __getitem__(self, size: str) -> int:
        return self.sizes[size]

    def __str__(self) -> str:
        rows = "+".join(map(str, self.rows))
        sizes = ",".join(f"{name}={value}" for name, value in self.sizes.items())
        return f"{self.operator}/{self.grid.value}/{rows}/{sizes}/{self.values.value}/{self.seed}"


def parse_case(text: str) -> Case:
    """Read a case as `str` writes it. Raises UsageError where the form is another."""
    found = _FORM.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        operator, grid, rows, sizes, values, seed = found.groups()
        pairs = (size.split("=") for size in sizes.split(","))
        named = {name: int(value) for name, value in pairs}
        parts = tuple(int(part) for part in rows.split("+"))
        return Case(operator, Precision(grid), parts, named, Values(values), int(seed))
    except ValueError:
        raise UsageError(f"{text!r} is no case of an operator", f"write it as a failure does: {_EXAMPLE}") from None
