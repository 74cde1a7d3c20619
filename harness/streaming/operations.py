"""The operations of a worker on a checkpoint that it streams: see `harness.streamed_recording`."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from harness.backend import SessionInfo, versions_of
from harness.backends.pytorch import REFERENCE_OPTIONS
from harness.checkpoint import open_checkpoint
from harness.layout import HEAD, Layout
from harness.streaming.feed import Step, Whole
from harness.streaming.room import check_disk
from harness.target import Precision
from harness.tensor_files import TensorFiles

OPTIONS = {**REFERENCE_OPTIONS, "weights": "one layer at a time"}


class Streaming:
    """A model that is streamed, and the one pass over its weights that is going on."""

    def __init__(self) -> None:
        self._model: Any = None
        self._weights: Any = None
        self._caches: Any = None
        self._layout: Layout | None = None
        self._folder = Path()
        self._tokenizer: Any = None
        self._checkpoint = Path()
        self._trust = False
        self._pass: Iterator[int] | None = None
        self._best: list[list[int]] = []
        self._serial = itertools.count()

    def do_stream_open(self, checkpoint: str, folder: str, trust_remote_code: bool) -> SessionInfo:
        """Open a checkpoint; `folder` is for caches and results, and emptied. Raises CheckpointError."""
        import torch

        from harness.streaming.model import StreamedPhi3
        from harness.streaming.weights import CheckpointSource, StagedWeights

        torch.use_deterministic_algorithms(True)
        found = open_checkpoint(Path(checkpoint))
        self._checkpoint, self._trust = found.path, trust_remote_code
        self._folder = Path(folder)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        self._layout = Layout.of(found.config)
        tied = self._layout.tied and HEAD not in TensorFiles(found.weight_files)
        self._weights = StagedWeights(CheckpointSource(found), self._layout, tied=tied)
        self._model = StreamedPhi3(found.config, self._weights)
        return SessionInfo(
            vocabulary=found.vocabulary,
            arithmetic=Precision.FP32,
            properties={"threads": str(torch.get_num_threads())},
            versions=versions_of(("torch", "transformers", "tokenizers")),
            load_options=OPTIONS,
        )

    def do_stream_render(
        self, messages: list[dict[str, str]] | None, text: str | None, continuation: str = ""
    ) -> list[int]:
        """Token ids, see `harness.backends.pytorch.PyTorchSession.render`."""
        from harness.backends.hf_tokenizer import HfTokenizer

        if self._tokenizer is None:
            self._tokenizer = HfTokenizer(self._checkpoint, trust_remote_code=self._trust)
        found: list[int] = self._tokenizer.tokens(messages, text, continuation)
        return found

    def do_stream_caches(self, capacities: list[int]) -> None:
        """Make room for texts of so many tokens, for the steps that follow. Raises ResourceError on a full disk."""
        from harness.streaming.caches import Caches

        self._caches = Caches(self._folder / "caches", self._opened, capacities)

    def do_stream_step(self, steps: list[dict[str, Any]]) -> None:
        """Begin a pass that feeds steps; see `StreamedPhi3.step`."""
        self._best = []
        self._pass = self._model.step(msgspec.convert(steps, list[Step]), self._caches, self._best)

    def do_stream_whole(self, texts: list[dict[str, Any]], hidden: bool) -> list[str]:
        """Begin a pass over whole texts; its results come into files `.npy`, whose paths are returned.

        `[n, V]` float32 a text, and after these `[L + 1, n, H]` a text where `hidden`. Raises ResourceError on a full
        disk.
        """
        import torch

        asked = msgspec.convert(texts, list[Whole])
        layout = self._opened
        shapes: list[tuple[int, ...]] = [(len(text.tokens), layout.vocabulary) for text in asked]
        if hidden:
            shapes += [(layout.layers + 1, len(text.tokens), layout.hidden) for text in asked]
        check_disk(self._folder, 4 * sum(map(math.prod, shapes)), f"the results of {len(asked)} prompts")
        paths = [self._folder / f"{next(self._serial)}.npy" for _ in shapes]  # those before may still be mapped
        out = [
            torch.from_numpy(np.lib.format.open_memmap(path, "w+", np.float32, shape))
            for path, shape in zip(paths, shapes, strict=True)
        ]
        self._pass = self._model.whole(asked, out[: len(asked)], out[len(asked) :])
        return [str(path) for path in paths]

    def do_stream_advance(self) -> int | None:
        """Go one layer further; the number of the layer, the LM head being the last, None once the pass is done."""
        import torch

        if self._pass is None:
            raise RuntimeError("no pass was begun in this worker")
        with torch.inference_mode():
            done = next(self._pass, None)
        if done is None:
            self._pass = None
        return done

    def do_stream_best(self) -> list[list[int]]:
        """The likeliest tokens that the last pass of steps found, by step."""
        return self._best

    def do_stream_free(self) -> None:
        """Let go of caches: no steps follow."""
        if self._caches is not None:
            self._caches.close()
            self._caches = None

    def do_stream_close(self) -> None:
        """Let go of weights and caches; results stay where they are."""
        self.do_stream_free()
        if self._weights is not None:
            self._weights.close()
        self._pass = self._model = self._weights = None

    @property
    def _opened(self) -> Layout:
        if self._layout is None:
            raise RuntimeError("no checkpoint was opened in this worker to be streamed")
        return self._layout
