"""Several prompts in one generator of ONNX Runtime GenAI, and their logits.

Prompts are padded on the right, as GroupQueryAttention wants it (measured with onnxruntime-genai 0.18.0: padded on
the left, rows are off by logits; on the right they are those of the prompt alone, to the last bit). A generator of a
batch takes no tokens after the first: it is given logits by which it chooses them itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import Unsupported

_NEVER = -1e9
"""The logit of a token that is not to be chosen."""


def teacher_force(
    generator: Any, prompts: Sequence[NDArray[np.int64]], continuations: Sequence[NDArray[np.int64]], pad: int
) -> list[NDArray[np.float32]]:
    """Logits `[n_i + m, V]` float32 of each prompt `[n_i]` and its continuation `[m]`, by a new generator of the batch.

    Raises Unsupported where a prompt ends with the padding token, which the runtime would take for padding.
    """
    longest = max(prompt.size for prompt in prompts)
    if any(prompt.size < longest and prompt[-1] == pad for prompt in prompts):
        raise Unsupported("the runtime takes padding tokens at the end of a prompt for padding")
    padded = [np.pad(prompt, (0, longest - prompt.size), constant_values=pad) for prompt in prompts]
    generator.append_tokens(np.stack(padded).astype(np.int32))
    rows = [_logits(generator)]
    for step in range(continuations[0].size):
        wanted = np.full((len(prompts), 1, rows[0].shape[-1]), _NEVER, dtype=np.float32)
        for row, tokens in zip(wanted, continuations, strict=True):
            row[0, int(tokens[step])] = 0.0
        generator.set_logits(wanted)
        generator.generate_next_token()
        generator.get_logits()  # has the chosen tokens computed
        rows.append(_logits(generator))
    return [
        np.concatenate([rows[0][i, : prompt.size], *(step[i] for step in rows[1:])]) for i, prompt in enumerate(prompts)
    ]


def padding(settings: Mapping[str, Any]) -> int:
    """The token that stands for padding, by an artifact's genai_config.json."""
    found = settings["model"].get("pad_token_id", 0)
    return int(found[0] if isinstance(found, list) else found)


def _logits(generator: Any) -> NDArray[np.float32]:
    return np.array(generator.get_output("logits"), dtype=np.float32)
