"""Taking the total error of a target apart: the reference on its artifact's exact weights, in its own arithmetic.

The reference is computed in a worker that has PyTorch, and kept in the user's cache by the artifact's hash. Which
arithmetic is in effect is not believed but found: of those that the runtime permits itself, the one whose reference
lies nearest to what the device gave for a few prompts.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import __version__, metrics
from harness.arithmetic import Arithmetic
from harness.cache import cache_root
from harness.compare import Rows
from harness.errors import Stage, StageError
from harness.kept import Arrays, Kept
from harness.localise import Examined
from harness.overflow import HardPrompt, Peak, Peaks
from harness.products import Products
from harness.reference_rows import ReferenceRows
from harness.suspects import Lineup
from harness.wanted import Wanted, fitting
from harness.worker import Worker
from harness.yardstick import Decomposed, pool

Logits = NDArray[np.float32]

# What takes longer to compute is kept on disk. Yardsticks are small: a number for each position and variant.
_LOGITS_WORTH_SECONDS = 0.5
_YARDSTICKS_WORTH_SECONDS = 0.02
# Ways of computing a product are told apart where one lies so many times further from the device than another.
_PRODUCTS_ALIKE = 2.0


class Undecomposed(Exception):
    """Why the error of a target cannot be taken apart: its artifact's weights cannot be read."""


class Inference(msgspec.Struct, frozen=True):
    """The arithmetic found to be in effect, and by how much: mean centred RMS logit error of every candidate.

    All in logits. `pooled`: the yardstick of the prompts that it was inferred from, see `harness.yardstick.pool`.
    `products`: for every arithmetic that the runtime permits itself, how far from it single products lie that the
    runtime computed alone, relative; empty where none were probed. `permitted`: those that products do not rule out.
    """

    arithmetic: Arithmetic
    distances: dict[str, float]
    pooled: dict[str, float]
    products: dict[str, float] = {}
    permitted: tuple[Arithmetic, ...] = ()


class ArtifactReferences:
    """The references of one artifact, computed by a worker that `hire` gives and `dismiss` takes back.

    `streamed`: the worker holds a layer at a time. A pass over the weights takes long then, so that with whatever is
    asked for what will be asked for is computed, too: see `foresee`. `tell` is told how far a pass is.
    Raises Undecomposed where the artifact's weights cannot be read, StageError(compare) when computing fails.
    """

    def __init__(
        self,
        hire: Callable[[], Worker],
        opening: dict[str, Any],
        key: str,
        dismiss: Callable[[Worker], None] = Worker.stop,
        *,
        streamed: bool = False,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._hire = hire
        self._dismiss = dismiss
        self._opening = {**opening, "streamed": True} if streamed else opening
        self._streamed = streamed
        self._tell = tell
        self._kept = Kept(cache_root() / "references" / key)
        self._worker: Worker | None = None
        self._arithmetic: Arithmetic | None = None
        self._foreseen: dict[tuple[tuple[int, ...], int], bool] = {}
        self._gathered: set[str] = set()

    def foresee(self, texts: Iterable[tuple[Sequence[int], int]], *, exact: bool) -> None:
        """Texts whose logits and yardsticks will be asked for, in the arithmetic found to be in effect.

        Each of token ids and how many of them are fed at once; `exact`: in plain FP32 as well.
        """
        for tokens, prefill in texts:
            key = tuple(tokens), at_once(prefill)
            self._foreseen[key] = exact or self._foreseen.get(key, False)

    def logits(self, tokens: Sequence[int], prefill: int, arithmetic: Arithmetic) -> Logits:
        """`[n, V]` float32: n token ids, the first `prefill` of them fed at once."""
        wanted = Wanted(tuple(tokens), at_once(prefill), arithmetic.systematic)
        return self._answer(wanted)["logits"]

    def yardsticks(self, tokens: Sequence[int], prefill: int, arithmetic: Arithmetic) -> dict[str, NDArray[np.float64]]:
        """Centred RMS logit errors `[n]` of every honest variant of the arithmetic, in logits."""
        return self._answer(Wanted(tuple(tokens), at_once(prefill), arithmetic, yardsticks=True))

    def examine(
        self, states: dict[str, Logits], tokens: Sequence[int], prefill: int, permitted: Sequence[Arithmetic]
    ) -> Examined:
        """Every sublayer judged on the device's own input; `states` are those of `harness.states.GivesStates`."""
        asked = {"tokens": list(tokens), "prefill": prefill, "permitted": list(permitted)}
        return Examined(**self._work("examine", {"states": states, **asked}))

    def lineup(self, prompts: Sequence[tuple[Sequence[int], int, Logits]], arithmetic: Arithmetic) -> Lineup:
        """How much of the effects of known faults is in what a device gave for prompts: tokens, prefill, last rows."""
        asked = []
        for tokens, prefill, device in prompts:
            variants = self.yardsticks(tokens, prefill, arithmetic).values()
            yardstick = np.sqrt(np.mean([np.square(rows) for rows in variants], axis=0))
            asked.append([list(tokens), at_once(prefill), device, yardstick])
        return Lineup(**self._work("lineup", {"prompts": asked, "arithmetic": arithmetic}))

    def hard_prompts(self, special: Sequence[int], ordinary: Sequence[int], length: int) -> list[HardPrompt]:
        """Prompts that drive activations high, then the ordinary one; see `harness.reference.activations.search`."""
        asked = {"special": list(special), "ordinary": list(ordinary), "length": length}

        def compute() -> Arrays:
            return {"json": np.frombuffer(msgspec.json.encode(self._work("hard_prompts", asked)), dtype=np.uint8)}

        found = self._remember("hard_prompts", _name("hard_prompts", asked), compute)["json"]
        return msgspec.json.decode(found.tobytes(), type=list[HardPrompt])

    def peaks(self, tokens: Sequence[int]) -> Peaks:
        """The greatest magnitudes at every place on a prompt; see `harness.reference.activations.peaks_of`."""
        return msgspec.convert(self._work("peaks", {"tokens": list(tokens)}), dict[str, Peak])

    def infer(
        self,
        permitted: Sequence[Arithmetic],
        probes: Sequence[tuple[Sequence[int], int, Logits]],
        products: Products | None = None,
    ) -> Inference:
        """Which of the permitted ways of computing is nearest to what the device gave for the probes.

        What single products rule out is not considered. Where nothing tells int8 activations from none, in half
        precision without products, they are taken to be in effect: the runtime permits itself as much.
        """
        if not self._ask("holds_codes", {}):  # int8 activations meet quantised weights only
            permitted = [arithmetic for arithmetic in permitted if not arithmetic.block] or permitted
        apart = self._product_distances(products, permitted) if products else {}
        near = _PRODUCTS_ALIKE * min(apart.values(), default=0.0)
        left = tuple(a for a in permitted if not apart or apart[str(a)] <= near)
        fed = [(tuple(tokens), at_once(prefill)) for tokens, prefill, _ in probes]
        ahead = [Wanted(*one, arithmetic.systematic) for arithmetic in left for one in fed]
        scores = {arithmetic: self._distance(arithmetic, probes, ahead) for arithmetic in left}
        self._arithmetic = nearest = min(scores, key=lambda a: (scores[a], -a.block))
        yardsticks = [(prefill, self.yardsticks(tokens, prefill, nearest)) for tokens, prefill, _ in probes]
        return Inference(nearest, {str(a): score for a, score in scores.items()}, pool(yardsticks), apart, left)

    def _product_distances(self, products: Products, permitted: Sequence[Arithmetic]) -> dict[str, float]:
        asked = {"products": products, "permitted": list(permitted)}
        found: dict[str, float] = self._ask("product_distances", asked)
        return found

    def _distance(
        self, arithmetic: Arithmetic, probes: Sequence[tuple[Sequence[int], int, Logits]], ahead: Sequence[Wanted]
    ) -> float:
        found = []
        for tokens, prefill, device in probes:
            wanted = Wanted(tuple(tokens), at_once(prefill), arithmetic.systematic)
            reference = self._answer(wanted, ahead)["logits"]
            found.append(metrics.centred_rms_error(reference[-device.shape[0] :], device))
        return float(np.concatenate(found).mean())

    def decompose(
        self,
        golden: ReferenceRows,
        device: Logits,
        total: Rows,
        tokens: Sequence[int],
        prefill: int,
        inference: Inference,
    ) -> Decomposed:
        """The errors of one prompt; `total` has been compared, so the shapes agree."""
        arithmetic = inference.arithmetic
        exact = self.logits(tokens, prefill, Arithmetic())
        reference = self.logits(tokens, prefill, arithmetic)
        first = total.first
        return Decomposed(
            total=total,
            quantisation=Rows(msgspec.structs.replace(golden[first:].compare(exact[first:]), entries=None), first),
            implementation=Rows(metrics.compare_rows(reference[first:], device, entries=True), first),
            yardsticks=self.yardsticks(tokens, prefill, arithmetic),
            prefill=at_once(prefill),
            compute_class=arithmetic.compute_class,
            pooled=inference.pooled,
        )

    def open(self) -> None:
        """Have a worker read the weights, if none has."""
        if self._worker is not None and self._worker.running:
            return
        try:
            self._worker = self._hire()
            if not self._worker.running:
                self._worker.start()
            missing = self._worker.call(Stage.LOAD, "open", backend="pytorch")["missing"]
            reason = f"its reference needs {', '.join(missing)}, in the environment of pytorch" if missing else ""
            reason = reason or self._worker.call(Stage.LOAD, "open_reference", **self._opening)
        except StageError as error:
            self.close()
            raise _no_reference(error) from None
        if reason:
            self.close()
            raise Undecomposed(reason)

    def close(self) -> None:
        """Let the worker go."""
        if self._worker is not None:
            self._dismiss(self._worker)
            self._worker = None

    def _ask(self, operation: str, asked: dict[str, Any]) -> Any:
        try:
            self.open()
            assert self._worker is not None
            return self._worker.call(Stage.RUN, operation, **asked)
        except Undecomposed as reason:  # it could be read before its worker died
            raise _no_reference(
                StageError(Stage.COMPARE, str(reason), "see whether the artifact was changed")
            ) from None
        except StageError as error:
            raise error if error.stage is Stage.COMPARE else _no_reference(error) from None

    def _work(self, what: str, asked: dict[str, Any]) -> Any:
        """Have something done that takes a pass over the weights, or more; the first of its results."""
        self._ask("begin_reference", {"what": what, "asked": asked})
        while (layer := self._ask("advance_reference", {})) is not None:
            if self._streamed:
                self._tell(f"the artifact reference, a layer at a time: {what}, layer {layer + 1}")
        return self._ask("reference_result", {})

    def _answer(self, wanted: Wanted, ahead: Sequence[Wanted] = ()) -> Arrays:
        """What is wanted; where the weights are streamed, with what is known to be wanted next."""
        what = "yardsticks" if wanted.yardsticks else "reference_logits"
        asked = {"tokens": list(wanted.tokens), "prefill": wanted.prefill, "arithmetic": wanted.arithmetic}
        if self._streamed:
            return self._kept.get(_of(wanted)) or self._gather(wanted, [*ahead, *self._expected(wanted)])
        if wanted.yardsticks:
            return self._remember(what, _of(wanted), lambda: dict(self._ask(what, asked)))
        return self._remember(what, _of(wanted), lambda: {"logits": self._ask(what, asked)})

    def _gather(self, wanted: Wanted, others: Sequence[Wanted]) -> Arrays:
        """Compute what is wanted and as many of the others as go into the same pass; all are kept on disk."""
        fresh = [one for one in others if _of(one) not in self._kept and _of(one) not in self._gathered]
        some = fitting(wanted, fresh)
        self._gathered |= {_of(one) for one in some}  # on a full disk none is computed twice but for what is asked
        asked = self._kept.put(_of(wanted), self._work("answers", {"wanted": some}), on_disk=True)
        for one in some[1:]:
            self._kept.put(_of(one), self._ask("reference_result", {}), on_disk=True)
        return asked

    def _expected(self, wanted: Wanted) -> list[Wanted]:
        """What will be asked for by and by, first of the same text; nothing while the arithmetic is not known."""
        if self._arithmetic is None:
            return []
        found = []
        own = wanted.tokens, wanted.prefill
        for text in sorted(self._foreseen, key=lambda text: text != own):
            if self._foreseen[text]:
                found.append(Wanted(*text, Arithmetic()))
            found.append(Wanted(*text, self._arithmetic.systematic))
            found.append(Wanted(*text, self._arithmetic, yardsticks=True))
        return found

    def _remember(self, what: str, name: str, compute: Callable[[], Arrays]) -> Arrays:
        """From memory, from the disk, or computed; kept on disk where computing takes longer than reading would."""
        found = self._kept.get(name)
        if found is None:
            began = time.monotonic()
            computed = compute()
            least = _YARDSTICKS_WORTH_SECONDS if what == "yardsticks" else _LOGITS_WORTH_SECONDS
            found = self._kept.put(name, computed, on_disk=time.monotonic() - began > least)
        return found


def at_once(prefill: int) -> int:
    """How many tokens runtimes compute together: one alone goes through the cache, by the kernels of decoding."""
    return 0 if prefill == 1 else prefill


def reference_key(artifact: Sequence[str], checkpoint_key: str, processor: str) -> str:
    """The folder of an artifact's references: what they are computed from, and by what.

    FP32 results differ in their last bits between processors, so the processor is part of it; so is this code.
    """
    source = hashlib.sha256()
    for folder in ("reference", "streaming"):
        for path in sorted((Path(__file__).parent / folder).glob("*.py")):
            source.update(path.read_bytes())
    parts = [*artifact, checkpoint_key, processor, __version__, source.hexdigest()]
    return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()[:24]


def _no_reference(error: StageError) -> StageError:
    return StageError(Stage.COMPARE, f"the artifact reference cannot be computed: {error.problem}", error.remedy)


def _name(what: str, asked: Any) -> str:
    return hashlib.sha256(what.encode() + msgspec.json.encode(asked)).hexdigest()[:24]


def _of(wanted: Wanted) -> str:
    """The name that an answer is kept under."""
    return _name("wanted", wanted)
