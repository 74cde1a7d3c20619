"""Answers and logits of a checkpoint that does not fit into memory: a worker streams it, and this end drives it.

Answers grow by one pass over the weights for one or more tokens of every prompt. After each pass they are written into
the work folder, from where a recording that was cut goes on. Which tokens they are hangs neither on drafts nor on cuts:
the logits that are kept come from a last pass over prompts and whole answers, and where one of its rows prefers another
token, which rounding may decide, the answer is taken back to there and grown anew.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock
import msgspec
import numpy as np
from numpy.typing import NDArray

from harness import __version__, metrics
from harness.backend import SessionInfo
from harness.checkpoint import Checkpoint
from harness.errors import GoldenError, Stage, UsageError
from harness.golden import writing
from harness.longrope import crossed, recomputed, switch_of
from harness.oracle_check import must_be_finite
from harness.streaming.decoding import Answer, Asked
from harness.streaming.feed import Whole
from harness.streaming.remaining import Remaining, in_words
from harness.worker import Worker

# What rounding may make of the difference between two logits, in units of the logits' centred RMS where that is above
# 1: ten times what FP32 PyTorch may lie from the float64 oracle.
_ROUNDING = 1e-3
_TELL_SECONDS = 5.0
_JOURNAL, _PASSES = "answers.json", "passes"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many new tokens there are, and of how many."""


class Forced(NamedTuple):
    """Logits of a prompt and its answer `[n, V]`, and of a fresh pass past LongRoPE's switch, if it is crossed."""

    rows: NDArray[np.float32]
    fresh: NDArray[np.float32]


class _Journal(msgspec.Struct):
    key: str
    answers: dict[str, list[int]]


class StreamedReference:
    """A checkpoint that a worker streams; `work` is the folder for what must outlive a cut."""

    def __init__(
        self, worker: Worker, checkpoint: Checkpoint, work: Path, progress: Progress, *, trust_remote_code: bool = False
    ) -> None:
        """Raises GoldenError without torch or a folder to write to, UsageError where another process uses that."""
        self._worker, self._checkpoint, self._work, self._progress = worker, checkpoint, work, progress
        self._switch = switch_of(checkpoint.config)
        self._layers = int(checkpoint.config["num_hidden_layers"]) + 1
        self._tokens = (0, 0)
        self.passes = 0
        self._lock = filelock.FileLock(work / "lock")
        with writing(work):
            work.mkdir(parents=True, exist_ok=True)
            try:
                self._lock.acquire(timeout=0)
            except filelock.Timeout:
                raise UsageError(f"another process records into {work}", "wait until it is done, or stop it") from None
        try:
            self.info = self._open(trust_remote_code=trust_remote_code)
        except BaseException:
            self.leave(done=False)
            raise

    def _open(self, *, trust_remote_code: bool) -> SessionInfo:
        worker = self._worker
        if not worker.running:
            worker.start()
        opened = worker.call(Stage.LOAD, "open", backend="pytorch")
        if opened["missing"]:
            missing = ", ".join(opened["missing"])
            raise GoldenError(
                f"the golden reference needs {missing} in {opened['executable']}", "python -m pip install -e .[pytorch]"
            )
        info = worker.call(
            Stage.LOAD,
            "stream_open",
            checkpoint=str(self._checkpoint.path),
            folder=str(self._work / _PASSES),
            trust_remote_code=trust_remote_code,
        )
        return msgspec.convert(info, SessionInfo)

    def tokenise(self, **arguments: Any) -> list[int]:
        """See `harness.rendering.Tokenise`."""
        tokens: list[int] = self._worker.call(Stage.RUN, "stream_render", **arguments)
        return tokens

    def answer(
        self,
        asked: Sequence[Asked],
        *,
        drafting: bool = True,
        drafts: Mapping[str, Sequence[int]] | None = None,
    ) -> list[tuple[list[int], Forced]]:
        """The continuation of each prompt, greedy where none is given, with its logits.

        `drafts`: for some ids tokens that may be the answer; `drafting`: whether to try any tokens at all.
        Raises GoldenError where decoding and the last pass differ by more than rounding.
        """
        key = self._key(asked)
        kept = self._read(key)
        ends = self._checkpoint.end_tokens
        answers = [
            Answer(one, ends, self._switch, draft=(drafts or {}).get(one.id, ()), drafting=drafting) for one in asked
        ]
        for answer in answers:
            answer.begin_with(answer.asked.given or kept.get(answer.asked.id) or ())
        found: list[Forced | None] = [None] * len(asked)
        while missing := [i for i, forced in enumerate(found) if forced is None]:
            self._grow([answers[i] for i in missing], answers, key)
            for i, forced in zip(missing, self._force([answers[i] for i in missing]), strict=True):
                found[i] = forced if self._stands(answers[i], forced) else None
            self._write(key, answers)
        return [(answer.tokens, forced) for answer, forced in zip(answers, found, strict=True) if forced is not None]

    def hidden_states(self, texts: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        """`[L + 1, n, H]` float32 of texts: the embedding, then after each layer, the last after the final norm."""
        whole = [Whole(tuple(text), len(text)) for text in texts]
        return self._whole(whole, Remaining(0), hidden=True)[len(texts) :] if texts else []

    def release(self) -> None:
        """Let go of the model; results stay readable."""
        self._worker.call(Stage.RUN, "stream_close")

    def leave(self, *, done: bool) -> None:
        """Remove the work folder; but for the answers so far where it is not `done`."""
        shutil.rmtree(self._work / _PASSES, ignore_errors=True)
        gone = done or not (self._work / _JOURNAL).is_file()
        if gone and os.name != "nt":  # Windows deletes no file that is open, and the lock is one
            shutil.rmtree(self._work, ignore_errors=True)
        self._lock.release()
        if gone:
            shutil.rmtree(self._work, ignore_errors=True)

    def _grow(self, some: Sequence[Answer], answers: Sequence[Answer], key: str) -> None:
        """Let answers grow until all are finished."""
        growing = [answer for answer in some if not answer.finished]
        if not growing:
            return
        remaining = Remaining(sum(len(one.asked.tokens) + one.asked.new_tokens for one in some))
        capacities = [len(answer.asked.tokens) + answer.asked.new_tokens for answer in growing]
        self._worker.call(Stage.RUN, "stream_caches", capacities=capacities)
        first, begun, steps = True, sum(len(answer.tokens) for answer in growing), 0
        while any(not answer.finished for answer in growing):
            slots = [slot for slot, answer in enumerate(growing) if not answer.finished]
            self._tokens = _count(answers)
            fed = [growing[slot].step(slot) for slot in slots]
            self._worker.call(Stage.RUN, "stream_step", steps=msgspec.to_builtins(fed))
            a_step = max(1.0, (sum(len(answer.tokens) for answer in growing) - begun) / max(1, steps) / len(growing))
            left = max(growing[slot].asked.new_tokens - len(growing[slot].tokens) for slot in slots) - 1
            remaining.begin(sum(len(step.tokens) for step in fed))
            self._advance(remaining, left / a_step, last=False)
            remaining.end(whole=first)
            for slot, best in zip(slots, self._worker.call(Stage.RUN, "stream_best"), strict=True):
                growing[slot].learn(best)
            self._write(key, answers)
            first, steps = False, steps + 1
        self._worker.call(Stage.RUN, "stream_free")

    def _force(self, some: Sequence[Answer]) -> list[Forced]:
        """The logits of prompts and answers, each computed at the full length that the answer may have."""
        texts, switches = [], []
        for answer in some:
            prompt, whole = answer.asked.tokens, (*answer.asked.tokens, *answer.tokens)
            padding = len(prompt) + answer.asked.new_tokens - len(whole)
            switches.append(crossed(self._switch, len(prompt), len(whole)))
            texts.append(Whole(whole, len(prompt), padding))
            if switches[-1]:
                texts.append(Whole(whole, len(whole), padding))
        rows = iter(self._whole(texts, Remaining(0)))
        found = []
        for switch in switches:
            own = next(rows)
            found.append(Forced(own, next(rows)[switch:] if switch else own[:0]))
        for answer, forced in zip(some, found, strict=True):
            for passed in forced:
                must_be_finite(self._checkpoint, answer.asked.id, passed)
        return found

    def _stands(self, answer: Answer, forced: Forced) -> bool:
        """Whether the last pass chooses the answer too; it is taken back to where it does not."""
        if answer.asked.given is not None:
            return True
        start = len(answer.asked.tokens) - 1
        rows = forced.rows
        if forced.fresh.size:
            rows = recomputed(rows, forced.fresh, rows.shape[0] - forced.fresh.shape[0])
        choosing = rows[start : start + len(answer.tokens)]
        best = choosing.argmax(axis=1)
        wrong = np.flatnonzero(best != np.asarray(answer.tokens))
        if not wrong.size:
            return True
        first = int(wrong[0])
        regret = float(metrics.regret(choosing[first : first + 1], np.asarray(answer.tokens[first : first + 1]))[0])
        allowed = _ROUNDING * max(1.0, float(metrics.centred_scale(choosing).max()))
        if not regret <= allowed:
            raise GoldenError(
                f"{self._checkpoint.name}, {answer.asked.id!r}: decoding chose token {first} of the continuation "
                f"{regret:.2e} logits below the best of the pass over all; rounding explains {allowed:.0e}",
                "report it: this project's own passes contradict each other; nothing was written",
            )
        answer.begin_with([*answer.tokens[:first], int(best[first])])
        return False

    def _whole(self, texts: Sequence[Whole], remaining: Remaining, *, hidden: bool = False) -> list[Any]:
        asked = msgspec.to_builtins(list(texts))
        paths = self._worker.call(Stage.RUN, "stream_whole", texts=asked, hidden=hidden)
        remaining.begin(sum(len(text.tokens) for text in texts))
        self._advance(remaining, 0.0, last=True)
        with writing(self._work):
            return [np.load(path, mmap_mode="r") for path in paths]

    def _advance(self, remaining: Remaining, steps: float, *, last: bool) -> None:
        self.passes += 1
        told = -math.inf
        while (layer := self._worker.call(Stage.RUN, "stream_advance")) is not None:
            if time.monotonic() - told < _TELL_SECONDS:
                continue
            told = time.monotonic()
            left = remaining.left((layer + 1) / self._layers, steps, last=last)
            about = f", {in_words(left)} left" if left is not None else ""
            self._progress(f"pass {self.passes}, layer {layer + 1} of {self._layers}{about}", *self._tokens)

    def _key(self, asked: Sequence[Asked]) -> str:
        """What an answer hangs on: another key, and the journal is no use."""
        parts = (__version__, self.info.versions, self._checkpoint.fingerprint().key, list(asked))
        return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()

    def _read(self, key: str) -> dict[str, list[int]]:
        try:
            kept = msgspec.json.decode((self._work / _JOURNAL).read_bytes(), type=_Journal)
        except (OSError, msgspec.DecodeError):
            return {}
        return kept.answers if kept.key == key else {}

    def _write(self, key: str, answers: Sequence[Answer]) -> None:
        """Replace the journal; what is half-written at a cut is not the one that is read."""
        partial = self._work / f"{_JOURNAL}.partial"
        with writing(self._work):
            partial.write_bytes(msgspec.json.encode(_Journal(key, {one.asked.id: one.tokens for one in answers})))
            partial.replace(self._work / _JOURNAL)


def _count(answers: Sequence[Answer]) -> tuple[int, int]:
    """New tokens so far, and how many there can be."""
    wanted = sum(len(one.tokens) if one.finished else one.asked.new_tokens for one in answers)
    return sum(len(one.tokens) for one in answers), wanted
