"""What the time of a controller goes to: sessions, references, processes, arrays, comparing."""

from __future__ import annotations

import functools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from harness import compact, golden, metrics, reference_rows, worker
from harness.errors import Stage

REST = "harness: all else"
_LEAST_SHARE = 0.002
_COMPARING, _ARRAYS, _READING = "comparing logits", "arrays to and from workers", "reading goldens"


class Clock:
    """Seconds by name, `group: what`; what is timed within something else is counted apart from it."""

    def __init__(self) -> None:
        self.forget()
        self._inner: list[float] = [0.0]

    def forget(self) -> None:
        """Begin anew."""
        self._seconds: dict[str, float] = defaultdict(float)
        self._calls: Counter[str] = Counter()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Time what is called within."""
        watched: list[tuple[object, str, str | Callable[..., str]]] = [
            (worker.Worker, "call", _asked),
            (worker.Worker, "start", "processes: starting"),
            (worker.Worker, "stop", "processes: ending"),
            *((worker, name, f"harness: {_ARRAYS}") for name in ("pack", "unpack")),
            *(
                (owner, "compare", f"harness: {_COMPARING}")
                for owner in (reference_rows.WholeRows, compact.CompactRows)
            ),
            *((metrics, name, f"harness: {_COMPARING}") for name in ("compare_rows", "centred_rms_error", "regret")),
            *((metrics, name, f"harness: {_COMPARING}") for name in ("first_non_finite", "centred_scale")),
            *((golden.Golden, name, f"harness: {_READING}") for name in ("rows", "fresh_rows", "choosing_rows")),
        ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in watched]
        for owner, name, said in watched:
            self._time(owner, name, said)
        try:
            yield
        finally:
            for owner, name, function in before:
                setattr(owner, name, function)

    def tell(self, total: float) -> None:
        """Print where `total` seconds went."""
        seconds = {**self._seconds, REST: total - sum(self._seconds.values())}
        groups: dict[str, float] = defaultdict(float)
        for said, part in seconds.items():
            groups[said.partition(": ")[0]] += part
        for group, of_group in _most(groups):
            print(f"{of_group / total:7.1%} {of_group:8.1f} s  {group}")
            for said, part in _most(seconds):
                if said.startswith(f"{group}: ") and part >= _LEAST_SHARE * total:
                    calls = f" ({self._calls[said]})" if self._calls[said] else ""
                    print(f"        {part:8.1f} s    {said.partition(': ')[2]}{calls}")

    def _time(self, owner: object, attribute: str, name: str | Callable[..., str]) -> None:
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*arguments, **named)
            finally:
                took = time.perf_counter() - began
                said = name if isinstance(name, str) else name(*arguments)
                self._seconds[said] += took - self._inner.pop()
                self._calls[said] += 1
                self._inner[-1] += took

        setattr(owner, attribute, timed)


def _most(seconds: Mapping[str, float]) -> list[tuple[str, float]]:
    return sorted(seconds.items(), key=lambda item: -item[1])


def _asked(one: worker.Worker, stage: Stage, operation: str, *_: object) -> str:
    """What a worker is asked for, and who it is: the target's own, or one that computes references."""
    if stage is Stage.PREPARE:
        return "artifacts: exporting and looking at them"
    if operation in ("load", "open", "discover"):
        return "sessions: loading and compiling" if operation == "load" else "processes: importing runtimes"
    if "reference" in one.label or "reference" in operation or operation.startswith("stream_"):
        return f"references: {operation}"
    return f"sessions: {operation}"
