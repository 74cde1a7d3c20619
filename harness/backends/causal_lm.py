"""A session over any model with the calling convention of transformers: PyTorch, optimum-intel, the NPU library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.backend import SessionInfo


class CausalLMSession:
    """`forward` with past_key_values for logits, the model's own `generate` for greedy decoding."""

    def __init__(self, model: Any, info: SessionInfo) -> None:
        self._model = model
        self._info = info
        self._past: Any = None
        self._count = 0

    @property
    def info(self) -> SessionInfo:
        """What the runtime reports of the loaded model."""
        return self._info

    def reset(self) -> None:
        """Forget all tokens."""
        self._past = None
        self._count = 0

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

    def close(self) -> None:
        """Drop the model."""
        self._model = self._past = None

    def _ids(self, tokens: NDArray[np.int64]) -> Any:
        import torch

        return torch.from_numpy(np.ascontiguousarray(tokens))[None].to(self._model.device)
