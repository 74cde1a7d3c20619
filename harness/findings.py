"""What an audit of an artifact finds, and the figures that it gives for each tensor."""

from __future__ import annotations

import msgspec


class Finding(msgspec.Struct, frozen=True):
    """One thing about an artifact that is not as the checkpoint, or the artifact's own scheme, would have it.

    `tensor` is the checkpoint's name, or what is stated for a finding about a statement. `row` counts in the
    checkpoint's tensor; `group` is a group of columns. `what` is one of

        codes, scale, zero point, sign, rounding, nibbles     of a quantised tensor
        row of another row, group of another group            a quantised tensor's, stored in the wrong place
        values                                                of a float tensor
        missing, extra, twice, shape                          of a tensor as a whole
        statement                                             stated beside the weights

    `figures` are raw numbers; `sentence` says it to a person.
    """

    tensor: str
    what: str
    sentence: str
    row: int | None = None
    group: int | None = None
    figures: dict[str, float] = {}


class TensorFigures(msgspec.Struct, frozen=True):
    """One stored tensor: rows `row` to `row + rows - 1` of a tensor of the checkpoint.

    `stored` is the dtype or the bits of a code, `group` the columns that share a scale (0 for floats), `grid` the rule
    that its scales follow and `follow` the share of groups that do. `moved`: share of codes that are not the nearest
    to the weight, more than the rounding of the stored scale explains; `worst`: the largest distance of a code from
    its weight, in steps, where the storage did not cut it off. `flagged`: groups, or values of a float tensor, that
    are not as they should be; 0 says that nothing was found.
    """

    tensor: str
    row: int
    rows: int
    source: str
    stored: str
    group: int
    grid: str
    follow: float
    moved: float
    worst: float
    flagged: int


class AuditReport(msgspec.Struct, frozen=True):
    """What an audit found.

    `scheme`: how the artifact was quantised, in the audit's words; `stated`: in the exporter's. `findings` is cut
    short at `LIMIT` for each tensor; `count` counts all. `judged`: how often each statement was held against the
    checkpoint; `unstated`: what the artifact does not state, or states in a form that is not recognised.
    """

    scheme: str
    stated: dict[str, str]
    tensors: tuple[TensorFigures, ...]
    findings: tuple[Finding, ...]
    count: int
    judged: dict[str, int]
    unstated: tuple[str, ...]

    @property
    def clean(self) -> bool:
        """Whether nothing was found, and there was something to look at."""
        return self.count == 0 and bool(self.tensors)


LIMIT = 12
"""The most findings that are kept for one stored tensor."""
