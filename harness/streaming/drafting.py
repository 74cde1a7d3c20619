"""Tokens that may well come next, guessed without a model: what one pass over the weights can then confirm at once.

Source: speculative decoding by prompt lookup (A. Saxena, "Prompt Lookup Decoding", 2023; `prompt_lookup_num_tokens` of
transformers): where the last tokens of a text stood before, the tokens that followed them there are tried.
"""

from __future__ import annotations

from collections.abc import Sequence

MOST = 16
_LONGEST, _SHORTEST = 3, 2


def repeated(tokens: Sequence[int], most: int) -> list[int]:
    """At most `most` tokens that followed where the last two or three stood before; none where they did not.

    The last such place counts. A text that runs in a circle is followed around it.
    """
    held = list(tokens)
    n = len(held)
    for size in range(_LONGEST, _SHORTEST - 1, -1):
        last = held[n - size :]
        for start in range(n - size - 1, -1, -1):
            if held[start : start + size] == last:
                for at in range(start + size, start + size + most):
                    held.append(held[at])
                return held[n:]
    return []


def proposed(prompt: Sequence[int], answer: Sequence[int], draft: Sequence[int], most: int) -> list[int]:
    """At most `most` tokens to try after an answer so far: the rest of a draft that begins with it, else `repeated`."""
    so_far = len(answer)
    if list(draft[:so_far]) == list(answer) and len(draft) > so_far:
        return list(draft[so_far : so_far + most])
    return repeated([*prompt, *answer], most)
