"""How much memory streaming takes at least, and whether the disk has room for what is mapped."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import ResourceError
from harness.layout import Layout
from harness.phi3_float64 import MOST_SCORES
from harness.wanted import MOST_ROWS, VARIANTS

# What the two processes hold before they hold a model: Python, NumPy, torch, transformers' tokenizer.
_PROCESSES = 600 << 20
# Attention scores that the streaming passes hold at once, in FP32: see `harness.reference.model`.
_MOST_SCORES = 1 << 26


def least_memory(layout: Layout, prompts: int, longest: int, rows: int) -> int:
    """Bytes that a recording of so many prompts takes, of `rows` tokens in all and at most `longest` in one.

    Mapped files are left out: the system takes them back when others need memory.
    """
    hidden, inner, vocabulary = layout.hidden, layout.intermediate, layout.vocabulary
    query, key = layout.heads * layout.head_size, layout.kv_heads * layout.head_size
    layer = hidden * (2 * query + 2 * key + 3 * inner + 2)
    widest = max(4 * inner, 2 * (query + 2 * key), min(vocabulary, layer // hidden))
    drafted = 2 * prompts * 17 * vocabulary
    streaming = 4 * (2 * layer + 2 * rows * hidden + max(longest, 1024) * widest + drafted)
    streaming += 3 * 4 * _scores(layout, longest, _MOST_SCORES)
    # Afterwards two cases are computed in float64, whose weights take 12 bytes while they are read: half a layer at a
    # time, with scores of attention, and the logits, with differences and their magnitudes.
    attention, mlp = 12 * hidden * (query + 2 * key), 8 * 2 * inner * hidden + 12 * inner * hidden
    exact = 2 * 8 * _scores(layout, longest, MOST_SCORES)
    checking = max(attention + 8 * query * hidden + exact, mlp) + 4 * longest * vocabulary * 8
    return _PROCESSES + max(streaming, checking)


def _scores(layout: Layout, longest: int, most: int) -> int:
    """Attention scores that are held at once: at most so many, but those of one key/value head in any case."""
    group = longest * longest * (layout.heads // layout.kv_heads)
    return max(group, min(group * layout.kv_heads, most))


def least_for_reference(layout: Layout, longest: int, *, rounded: bool) -> int:
    """Bytes that an artifact reference takes a layer at a time, for texts of at most so many tokens.

    `rounded`: in arithmetics too that round the weights. The worker that runs the artifact is not counted.
    """
    hidden, inner, vocabulary = layout.hidden, layout.intermediate, layout.vocabulary
    query, key = layout.heads * layout.head_size, layout.kv_heads * layout.head_size
    layer = hidden * (2 * query + 2 * key + 3 * inner + 2)
    stored = 6 * hidden * max(2 * inner, vocabulary)  # a tensor as it is taken out of the artifact
    widest = max(4 * inner, 2 * (query + 2 * key), 4 * vocabulary)
    scores = 3 * 4 * _scores(layout, longest, _MOST_SCORES)
    between = 2 * max(MOST_ROWS, (1 + VARIANTS) * longest) * hidden
    return _PROCESSES + 4 * ((3 if rounded else 2) * layer + between + longest * widest) + stored + scores


def check_disk(folder: Path, needed: int, what: str, other: str = "give --golden another disk") -> None:
    """Raise ResourceError where so many bytes do not fit: a mapped file that finds no room ends its process."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ResourceError(
            f"{what} take {needed / 2**30:.1f} GiB; {folder} has {free / 2**30:.1f} GiB free",
            f"free space, or {other}",
        )
