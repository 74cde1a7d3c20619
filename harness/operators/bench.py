"""What a backend must offer for its operators to be judged, and the operations of a worker for it.

A backend that runs single operators has `operators(target)`, which gives a *bench*. It needs no session and no
artifact; a backend without it, and an operator that a bench lacks, are UNSUPPORTED, with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.backend import Backend
from harness.errors import Unsupported
from harness.operators.case import Case, parse_case
from harness.operators.catalogue import operator_of
from harness.operators.draw import digest
from harness.operators.numerics import Numerics
from harness.target import Target
from harness.witness import Witness


class Offer(msgspec.Struct, frozen=True):
    """What a bench offers.

    `weights`: for each operator that has a weight, the sizes that say how it is stored (`bits`, and where it is
    quantised `group`, `zero` and `root`): see `harness.operators.products`. `lacks`: by the name of an operator, why it
    cannot be run. `static`: a graph is compiled for each number of rows, so cases of one shape have one.
    """

    numerics: Numerics
    weights: Mapping[str, Mapping[str, int]]
    lacks: Mapping[str, str] = {}
    static: bool = False


class Bench(Protocol):
    """Runs operators on one target's device."""

    @property
    def offer(self) -> Offer:
        """What it can run, and how that computes."""
        ...

    def run(self, case: Case, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.floating]:
        """What the runtime gives for a case, all calls one after another, in the shape that its truth has.

        Raises Unsupported for a shape that the runtime does not take.
        """
        ...


@runtime_checkable
class RunsOperators(Protocol):
    """A backend whose runtime can run single operators."""

    def operators(self, target: Target) -> Bench:
        """In a worker: a bench on the target's device, with the runtime's defaults."""
        ...


class Operators:
    """The operations of a worker on single operators."""

    def __init__(self, opened: Callable[[], Backend], witness: Callable[[], Witness | None]) -> None:
        self._opened = opened
        self._witness = witness
        self._benches: dict[str, Bench] = {}

    def do_operator_offer(self, target: str) -> Any:
        """What can be run of a target. Raises Unsupported where its backend runs no single operators."""
        return msgspec.to_builtins(self._bench(target).offer)

    def do_operators(self, target: str, cases: list[str]) -> list[dict[str, Any]]:
        """For each case its `output` and the `digest` of its inputs, or `unsupported`, the reason."""
        bench = self._bench(target)
        return [self._run(bench, parse_case(text)) for text in cases]

    def _run(self, bench: Bench, case: Case) -> dict[str, Any]:
        print(f"operator {case}", flush=True)  # for the log's tail, should the runtime take the process down
        inputs = operator_of(case).draw(case)
        witness = self._witness()
        try:
            with witness.work() if witness is not None else contextlib.nullcontext():
                output = np.asarray(bench.run(case, inputs))
        except Unsupported as error:
            return {"unsupported": error.problem}
        except Exception as error:
            raise RuntimeError(f"{case}: {type(error).__name__}: {error}") from error
        return {"output": output, "digest": digest(inputs)}

    def _bench(self, target: str) -> Bench:
        if target not in self._benches:
            backend = self._opened()
            if not isinstance(backend, RunsOperators):
                raise Unsupported(f"the backend {backend.name} runs no single operators")
            self._benches[target] = backend.operators(Target.parse(target))
        return self._benches[target]
