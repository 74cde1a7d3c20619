"""A session over any model with the calling convention of transformers: PyTorch, optimum-intel, the NPU library."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness.backend import SessionInfo
from harness.endurance import Cancelled
from harness.errors import Unsupported


class Kept(NamedTuple):
    """A state: the cache, as the model gives it, and how many tokens are in it."""

    past: Any
    fed: int


class CausalLMSession:
    """`forward` with past_key_values for logits, the model's own `generate` for greedy decoding."""

    def __init__(self, model: Any, info: SessionInfo) -> None:
        self._model = model
        self._info = info
        self._past: Any = None
        self._count = 0
        self._text = 0
        self._others: dict[int, Kept] = {}

    @property
    def info(self) -> SessionInfo:
        """What the runtime reports of the loaded model."""
        return self._info

    def reset(self) -> None:
        """Forget all tokens."""
        self._past = None
        self._count = 0

    def rewind(self, length: int) -> None:
        """Keep the first `length` tokens: see `harness.steps.Rewinds`.

        A cache that keeps the last window of keys only, as transformers 5 does, cannot go back once that is full.
        """
        window = self._model.config.get_text_config().sliding_window
        if window is not None and self._count >= window and hasattr(self._past, "layers"):
            raise Unsupported(
                f"the cache keeps the last {window - 1} keys, so it cannot go back from {self._count} tokens",
                "reset and feed the tokens again",
            )
        if isinstance(self._past, tuple):  # the older form, a pair of keys and values [1, heads, n, size] a layer
            self._past = tuple(tuple(part[:, :, :length] for part in layer) for layer in self._past)
        else:
            self._past.crop(length)
        self._count = length

    def fork(self) -> Kept:
        """A copy of the cache: see `harness.steps.Branches`."""
        return Kept(copy.deepcopy(self._past), self._count)

    def resume(self, state: Kept) -> None:
        """Go on from a copy of a kept cache."""
        self._past, self._count = copy.deepcopy(state.past), state.fed

    def switch(self, text: int) -> None:
        """Each text has a cache of its own: see `harness.steps.Interleaves`."""
        self._others[self._text] = Kept(self._past, self._count)
        self._past, self._count = self._others.pop(text, Kept(None, 0))
        self._text = text

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed `[n]` tokens, return `[n, V]` float32 logits."""
        import torch

        self._count += tokens.size
        with torch.inference_mode():
            output = self._model(
                input_ids=self._ids(tokens),
                attention_mask=self._ids(np.ones(self._count, dtype=np.int64)),
                past_key_values=self._past,
                use_cache=True,
            )
        self._past = output.past_key_values
        logits: NDArray[np.float32] = output.logits[0].to(dtype=torch.float32, device="cpu").numpy()
        return logits

    def generate(self, prompt: NDArray[np.int64], max_new_tokens: int, end_tokens: Sequence[int]) -> list[int]:
        """Greedy decoding by the model's own `generate`."""
        import torch
        from transformers import GenerationConfig

        self.reset()
        config = GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=max_new_tokens,
            eos_token_id=list(end_tokens),
            pad_token_id=end_tokens[0],
        )
        ids = self._ids(prompt)
        with torch.inference_mode():
            output = self._model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        return [int(token) for token in output[0, prompt.size :]]

    def ways_to_cancel(self) -> Sequence[str]:
        """See `harness.endurance.Cancels`."""
        return ("stopping-criterion",)

    def cancel(self, way: str, prompt: NDArray[np.int64], max_new_tokens: int, after: int) -> Cancelled:  # noqa: ARG002
        """Generate until a stopping criterion of transformers says so; see `harness.endurance.Cancels`."""
        self.reset()
        return Cancelled(self._generate_while(prompt, max_new_tokens, lambda tokens: tokens < after))

    def _generate_while(self, prompt: NDArray[np.int64], max_new_tokens: int, more: Callable[[int], bool]) -> int:
        """Generate, without end tokens, while `more` says so of the tokens given by then; returns how many were."""
        import torch
        from transformers import GenerationConfig, StoppingCriteria, StoppingCriteriaList

        class Stop(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, ids: Any, scores: Any, **_: Any) -> Any:  # noqa: ARG002
                return torch.full((ids.shape[0],), not more(ids.shape[1] - prompt.size), device=ids.device)

        never = self.info.vocabulary  # with no end token at all, transformers takes the checkpoint's
        config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=max_new_tokens, eos_token_id=never, pad_token_id=0
        )
        ids, stopping = self._ids(prompt), StoppingCriteriaList([Stop()])
        with torch.inference_mode():
            output = self._model.generate(
                ids, attention_mask=torch.ones_like(ids), generation_config=config, stopping_criteria=stopping
            )
        return int(output.shape[1] - prompt.size)

    def batch(
        self, prompts: Sequence[NDArray[np.int64]], continuations: Sequence[NDArray[np.int64]]
    ) -> list[NDArray[np.float32]]:
        """Several prompts in one forward pass, padded on the left: see `harness.steps.Batches`."""
        import torch

        self.reset()
        longest = max(prompt.size for prompt in prompts)
        ids = np.stack([np.pad(prompt, (longest - prompt.size, 0)) for prompt in prompts])
        seen = np.stack([np.arange(longest) >= longest - prompt.size for prompt in prompts]).astype(np.int64)
        past, rows = None, []
        for fed in (ids, *np.stack(continuations)[..., None].swapaxes(0, 1)):
            if past is not None:
                seen = np.concatenate([seen, np.ones((len(prompts), 1), dtype=np.int64)], axis=1)
            places = np.maximum(seen.cumsum(axis=1) - 1, 0)[:, -fed.shape[1] :]
            with torch.inference_mode():
                output = self._model(
                    input_ids=self._tensor(fed),
                    attention_mask=self._tensor(seen),
                    position_ids=self._tensor(places),
                    past_key_values=past,
                    use_cache=True,
                )
            past = output.past_key_values
            rows.append(output.logits.to(dtype=torch.float32, device="cpu").numpy())
        self.reset()
        logits = np.concatenate(rows, axis=1)
        return [logits[i, longest - prompt.size :] for i, prompt in enumerate(prompts)]

    def close(self) -> None:
        """Drop the model."""
        self._model = self._past = None
        self._others.clear()

    def _ids(self, tokens: NDArray[np.int64]) -> Any:
        return self._tensor(tokens[None])

    def _tensor(self, ids: NDArray[np.int64]) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(ids)).to(self._model.device)
