"""LongRoPE's switch: which of its two sets of rotary factors each token of a text meets, and the forms that gives.

Texts of up to the original length are rotated by the short factors, longer ones by the long ones (arXiv 2402.13753,
and transformers' `longrope_frequency_update`: the long ones where the highest position of a pass, plus one, is above
the original length). A prompt longer than that meets the long ones from its first token, everywhere. A text that grows
past it while it is decoded can be computed in two ways, and the logits of the two lie several apart:

- *cached*: keys keep the factors that they were rotated with when they were fed. So compute all runtimes when they
  are fed token by token, which is how logits are compared; and generation that leaves its cache alone.
- *recomputed*: at the first token past the switch the whole text is computed anew, with the long factors: before the
  switch as cached, from there on as one *fresh* pass over all of it. So does transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.reference_rows import ReferenceRows, as_rows


def switch_of(config: Mapping[str, Any]) -> int | None:
    """The original length, in tokens; None where a configuration has no LongRoPE."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rope.get("rope_type") or rope.get("type")) not in ("longrope", "su"):
        return None
    original = rope.get("original_max_position_embeddings") or config.get("original_max_position_embeddings")
    return None if original is None else int(original)


def crossed(switch: int | None, prompt: int, total: int) -> int:
    """The switch where a text of `total` tokens passes it after its prompt, 0 where it does not."""
    return switch if switch is not None and prompt <= switch < total else 0


def fed_lengths(total: int, prefill: int) -> NDArray[np.intp]:
    """`[total]`: how long the text was when each token was fed, the first `prefill` of them at once."""
    return np.maximum(np.arange(1, total + 1), min(prefill, total))


class Pass(NamedTuple):
    """A part of how a text is computed: its first `end` tokens, `prefill` of them at once. Rows from `first` count."""

    end: int
    prefill: int
    first: int


def generation(prefill: int, total: int, switch: int, *, recomputes: bool) -> tuple[Pass, ...]:
    """The passes by which a runtime generates a text of `total` tokens after a prompt of `prefill`.

    `switch` is what `crossed` gives; a runtime that `recomputes` begins anew there.
    """
    if not (switch and recomputes):
        return (Pass(total, prefill, 0),)
    return Pass(switch, prefill, 0), Pass(total, switch + 1, switch)


def nearer_form(cached: NDArray[Any] | ReferenceRows, fresh: NDArray[Any] | ReferenceRows, device: NDArray[Any]) -> str:
    """A sentence on which form a device's rows past the switch are near; those of the goldens end with the same row.

    `cached` is `[n, V]`, `fresh` `[m, V]` of its last rows, `device` at least m rows.
    """
    rows = device[-fresh.shape[0] :]
    kept = float(as_rows(cached)[-rows.shape[0] :].rms_error(rows).mean())
    anew = float(as_rows(fresh)[-rows.shape[0] :].rms_error(rows).mean())
    near = "the cache kept, as is due" if kept <= anew else "the whole text computed anew, which is not due here"
    return (
        f"past LongRoPE's switch the device lies {kept:.3g} logits from the golden with its cache kept and {anew:.3g} "
        f"from the one of a fresh pass: it is nearer to {near}"
    )


def recomputed(cached: NDArray[Any], fresh: NDArray[Any], switch: int) -> NDArray[Any]:
    """Rows `[n, V]` of a text that is computed anew once it is longer than `switch`.

    `cached` is `[n, V]`; `fresh` `[n - switch, V]`, of one pass over all of it: its rows from the switch on.
    """
    return np.concatenate([cached[:switch], fresh])
