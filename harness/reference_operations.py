"""The operations of a worker on the reference of an artifact: see `harness.decompose`.

What takes a pass over the weights is begun, taken on layer by layer, and then handed over: so a call takes seconds
where the whole takes an hour, and whoever waits can be told how far it is.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import msgspec

from harness.arithmetic import Arithmetic
from harness.backend import load_backend
from harness.errors import ArtifactError
from harness.wanted import Wanted
from harness.weights import ReadsWeights

Work = Generator[int, None, list[Any]]
"""Yields the number of the layer that is done; its results in the end."""


class References:
    """The reference of one artifact, and the work on it that is going on."""

    def __init__(self) -> None:
        self._reference: Any = None
        self._work: Work | None = None
        self._results: list[Any] = []

    def do_open_reference(self, backend: str, artifact: str, config: dict[str, Any], streamed: bool = False) -> str:
        """Read the exact weights of an artifact, to compute references with; returns why they cannot be read, or "".

        `streamed`: a layer at a time, whenever they are computed with.
        """
        from harness.reference.artifact import ArtifactReference
        from harness.streaming.artifact import streamed_reference

        self._reference = None  # the memory of the one before is needed
        self._work, self._results = None, []
        reader = load_backend(backend)
        if not isinstance(reader, ReadsWeights):
            return f"the backend {backend} does not read the weights of its artifacts"
        try:
            weights = reader.dequantized_weights(Path(artifact), config)
            make: Callable[..., Any] = ArtifactReference
            self._reference = streamed_reference(weights, config, Path.cwd()) if streamed else make(weights, config)
        except ArtifactError as error:
            return error.problem
        return ""

    def do_holds_codes(self) -> bool:
        """Whether the artifact that the reference was read from has quantised weights."""
        return bool(self._opened.holds_codes)

    def do_product_distances(self, products: Any, permitted: list[dict[str, Any]]) -> Any:
        """How far products lie from those of every permitted arithmetic; see `harness.reference.products`."""
        from harness.reference.products import distances

        return distances(self._opened, products, msgspec.convert(permitted, list[Arithmetic]))

    def do_reference_logits(self, tokens: list[int], prefill: int, arithmetic: dict[str, Any]) -> Any:
        """Logits of the reference in an arithmetic; see `ArtifactReference.logits`."""
        asked = msgspec.convert(arithmetic, Arithmetic)
        return self._opened.logits([(tokens, prefill)], asked)[0]

    def do_yardsticks(self, tokens: list[int], prefill: int, arithmetic: dict[str, Any]) -> Any:
        """How far honest variants lie from the reference; see `ArtifactReference.yardsticks`."""
        return self._opened.yardsticks(tokens, prefill, msgspec.convert(arithmetic, Arithmetic))

    def do_examine(self, **asked: Any) -> Any:
        """Every sublayer judged on the device's own input, all at once; see `harness.reference.sublayers`."""
        from harness.reference.model import completed

        return completed(self._begin_examine(**asked))[0]

    def do_begin_reference(self, what: str, asked: dict[str, Any]) -> None:
        """Begin work: `answers`, `lineup`, `examine`, `hard_prompts` or `peaks`."""
        begin: Callable[..., Work] = getattr(self, f"_begin_{what}")
        self._results, self._work = [], begin(**asked)

    def do_advance_reference(self) -> int | None:
        """Take it a layer further; the number of the layer, None once all is done."""
        if self._work is None:
            raise RuntimeError("no work on a reference was begun in this worker")
        try:
            return next(self._work)
        except StopIteration as end:
            self._work, self._results = None, end.value
            return None

    def do_reference_result(self) -> Any:
        """The next result, each once."""
        return self._results.pop(0)

    @property
    def _opened(self) -> Any:
        if self._reference is None:
            raise RuntimeError("no reference was opened in this worker")
        return self._reference

    def _begin_answers(self, wanted: list[dict[str, Any]]) -> Work:
        """For each that is wanted: see `ArtifactReference.answers`."""
        found: list[Any] = yield from self._opened.answers(msgspec.convert(wanted, list[Wanted]))
        return found

    def _begin_lineup(self, prompts: list[list[Any]], arithmetic: dict[str, Any]) -> Work:
        """How much of known faults is in a device's error; see `harness.reference.suspects`."""
        from harness.reference.suspects import Responses

        asked = [(tokens, prefill, device, yardstick) for tokens, prefill, device, yardstick in prompts]
        responses = Responses(self._opened, memory=0)
        found = yield from responses.lineup(asked, msgspec.convert(arithmetic, Arithmetic))
        return [msgspec.structs.asdict(found)]

    def _begin_examine(self, states: Any, tokens: list[int], prefill: int, permitted: list[dict[str, Any]]) -> Work:
        """Every sublayer judged on the device's own input; see `harness.reference.sublayers`."""
        from harness.reference.sublayers import as_plain, examine

        arithmetics = msgspec.convert(permitted, list[Arithmetic])
        found = yield from examine(self._opened, states, tokens, prefill, arithmetics)
        return [as_plain(found)]

    def _begin_hard_prompts(self, special: list[int], ordinary: list[int], length: int) -> Work:
        """See `harness.reference.activations.search`."""
        from harness.reference.activations import search

        found = yield from search(self._opened, special, ordinary, length)
        return [found]

    def _begin_peaks(self, tokens: list[int]) -> Work:
        """See `harness.reference.activations.peaks_of`."""
        from harness.reference.activations import peaks_of

        found = yield from peaks_of(self._opened, tokens)
        return [found]
