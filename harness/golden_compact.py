"""The compact file of a golden, made of whole rows: see `harness.compact_plan` for what it keeps of them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from harness.compact_plan import Plan, places_of, plan_for
from harness.compacting import compacted
from harness.errors import UsageError
from harness.golden import compact_key
from harness.golden_manifest import Manifest

Logits = Mapping[str, NDArray[np.float32]]

FORMS = ("full", "compact")


def plan_of_form(vocabulary: int, form: str | None) -> Plan | None:
    """The plan of rows that are to be kept in a form; None for whole rows. Without a form the vocabulary decides.

    Raises UsageError where the vocabulary is too small for compact rows.
    """
    try:
        return plan_for(vocabulary, compact=None if form is None else form == "compact")
    except ValueError as error:
        raise UsageError(str(error), "give --form=full") from None


def compact_tensors(manifest: Manifest, plan: Plan, logits: Logits, fresh: Logits) -> dict[str, NDArray[np.uint8]]:
    """What the compact file holds: `[n, bytes a row]` uint8 by `harness.golden.compact_key`, rows after rows.

    `logits` and `fresh` are those of whole goldens; they are taken case by case, and may be mapped files.
    """
    found = {}
    places = places_of([case.lengths for case in manifest.cases])
    for case, (own, anew) in zip(manifest.cases, places, strict=True):
        rows = compacted(logits[case.id], case.following, own, plan)
        found[compact_key(case.id)] = rows.view(np.uint8).reshape(rows.size, -1)
        if case.switch:
            rows = compacted(fresh[case.id], case.following[case.switch :], anew, plan)
            found[compact_key(case.id, fresh=True)] = rows.view(np.uint8).reshape(rows.size, -1)
    return found
