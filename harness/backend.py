"""What an adapter for a runtime must offer, and how adapters are found.

A *backend* is an adapter for one runtime. The controller makes one to ask which targets it declares
and which recipes it exports by; importing the adapter's module must therefore not import the runtime.
The same class is made again inside a worker process, where `discover`, `export` and `load` import and
use the runtime. `load` returns a *session*: an artifact loaded on a device with load options.

Third parties register a backend by an entry point in the group `phi3_conformance.backends`, whose name
is the backend's name and whose value is a class (or function) that makes it without arguments.
"""

from __future__ import annotations

import importlib.metadata
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from harness.arithmetic import Arithmetic
from harness.errors import UsageError
from harness.target import DeviceKind, Evidence, Precision, Target, Unavailable

GROUP = "phi3_conformance.backends"


class Recipe(msgspec.Struct, frozen=True):
    """A named way of exporting a checkpoint: the official exporter's options, and what they amount to.

    `options` are the exporter's own, in its own words; `exporter` names the distributions whose versions
    are part of the artifact's key. `precision` is the precision of the weights that come out.
    """

    name: str
    precision: Precision
    options: tuple[str, ...] = ()
    exporter: tuple[str, ...] = ()


class DeviceReport(msgspec.Struct, frozen=True, tag="device"):
    """A device that a runtime found: its name in the runtime's words, and properties as read."""

    name: str
    properties: dict[str, str] = {}


class Capabilities(msgspec.Struct, frozen=True):
    """What a session can do.

    `whole_prompt_logits`: `append` returns a row for every token, not for the last one only.
    `max_prompt` and `max_tokens`: the most tokens that a prompt, and prompt and answer together, may have;
    None where only the checkpoint limits. `longer` says how to load a session that takes more. `max_append`: the most
    tokens that `append` takes at once after the prompt. `own_end_tokens`: those that the artifact names, which
    `generate` stops at whatever it is told; None where it heeds what it is told.
    `keeps_weights`: what was loaded is quantised while loading, and the session's `keep_weights(folder)` writes what
    it then holds, to be read by the backend's `dequantized_weights`.
    `compiles_lengths`: the runtime compiles for each new length of a prompt, which takes it longer than computing.
    `repeats_exactly`: the same tokens fed in the same way give the same bits, by the runtime's documentation or as
    measured; where it is false they have to agree to within rounding only.
    `recomputes_past`: of how many tokens a text must be longer for `generate` to compute it anew with LongRoPE's long
    factors: 0 for the checkpoint's own switch, None where generation leaves its cache alone (see `harness.longrope`).
    """

    whole_prompt_logits: bool = True
    max_prompt: int | None = None
    max_tokens: int | None = None
    longer: str = ""
    max_append: int | None = None
    own_end_tokens: tuple[int, ...] | None = None
    keeps_weights: bool = False
    compiles_lengths: bool = False
    repeats_exactly: bool = False
    recomputes_past: int | None = None

    def recomputes(self, switch: int) -> bool:
        """Whether `generate` computes a text anew that passes LongRoPE's `switch`."""
        return self.recomputes_past in (0, switch)

    def refuses(self, prompt: int, answer: int) -> str:
        """Why `prompt` tokens with `answer` more cannot be fed; empty where they can."""
        if self.max_prompt is not None and prompt > self.max_prompt:
            return f"the prompt has {prompt} tokens; the session was made for {self.max_prompt}"
        if self.max_tokens is not None and prompt + answer > self.max_tokens:
            return f"prompt and answer have {prompt + answer} tokens; the session was made for {self.max_tokens}"
        return ""


class SessionInfo(msgspec.Struct, frozen=True):
    """What a session says of itself once loaded.

    `arithmetic` is the precision that the runtime reports to compute in, read back and not assumed, None
    where it reports none. `properties` are values read back from the runtime; `versions` those of the
    distributions that compute. `load_options` is empty for the runtime's defaults, on which verdicts stand.
    """

    vocabulary: int
    arithmetic: Precision | None
    properties: dict[str, str]
    versions: dict[str, str]
    capabilities: Capabilities = Capabilities()
    load_options: dict[str, str] = {}
    permitted: tuple[Arithmetic, ...] = ()
    """Every way in which the runtime may be computing by its documentation and by what was read back; the one in effect
    is inferred. Empty where nothing is known: then it may be any of the reported precision."""

    @property
    def ignored(self) -> dict[str, str]:
        """Load options that the runtime took and did not heed: their names, with the value read back instead."""
        back = self.properties
        return {name: back[name] for name, value in self.load_options.items() if not _heeded(value, back.get(name))}


def _heeded(asked: str, back: str | None) -> bool:
    """Whether a value read back is the one asked for; a length may be rounded up, and nothing read back is no proof."""
    if back is None or asked == back:
        return True
    if asked.isdigit() and back.isdigit():
        return int(asked) <= int(back)
    return {"YES": "True", "NO": "False", "1": "True", "0": "False"}.get(asked.upper()) == back


class Session(Protocol):
    """An artifact loaded on a device. Lives in a worker; nothing of it crosses a process border."""

    @property
    def info(self) -> SessionInfo:
        """What the runtime reports of the loaded model."""
        ...

    def reset(self) -> None:
        """Forget all tokens, so that the next `append` begins a new prompt."""
        ...

    def append(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Feed `[n]` more tokens and return their logits, `[n, V]` float32.

        Where `capabilities.whole_prompt_logits` is false: `[1, V]`, the logits after the last token.
        """
        ...

    def generate(self, prompt: NDArray[np.int64], max_new_tokens: int, end_tokens: Sequence[int]) -> list[int]:
        """Greedy decoding by the runtime's own loop: the new tokens, the end token included if one came."""
        ...

    def evidence(self) -> Evidence:
        """Where the calls so far were computed, as far as that can be known."""
        ...

    def close(self) -> None:
        """Release the model and the device."""
        ...


@runtime_checkable
class Backend(Protocol):
    """An adapter for one runtime; see the module's docstring."""

    name: str
    distributions: tuple[str, ...]
    """Distributions that must be installed in the worker's interpreter; `a|b` where either will do."""
    install: str
    """The command that installs them."""
    devices: Mapping[str, DeviceKind]
    """Every device name the backend understands, without index, with its kind."""

    def targets(self) -> Sequence[Target]:
        """Every target that the backend stands for, whether or not this machine can run it."""
        ...

    def recipe(self, target: Target, name: str | None) -> Recipe | None:
        """The export recipe for a target: the named one or the default; None where nothing is exported.

        Raises UsageError for an unknown name, listing the known ones.
        """
        ...

    def discover(self, devices: Sequence[str]) -> dict[str, DeviceReport | Unavailable]:
        """In a worker: for each device name asked for, what is there or why nothing is."""
        ...

    def export(self, checkpoint: Path, recipe: Recipe, out: Path, *, trust_remote_code: bool) -> list[str]:
        """In a worker: export into the folder `out`, not there yet, and return the command line that did it."""
        ...

    def load(self, artifact: Path, target: Target, *, options: Mapping[str, str], trust_remote_code: bool) -> Session:
        """In a worker: load an artifact on the target's device.

        Empty `options` are the runtime's defaults, on which verdicts stand; others are diagnostic.
        Raises UsageError for an option that the backend does not know.
        """
        ...


@runtime_checkable
class TakesThreads(Protocol):
    """A backend that can be told how many threads of the processor a session computes on."""

    def threads_option(self, target: Target) -> str:
        """The load option whose value is that number. Raises Unsupported where the target has none."""
        ...


@runtime_checkable
class HasSlowTargets(Protocol):
    """A backend some of whose targets are so slow that `-m "not slow"` leaves them out."""

    def is_slow(self, target: Target) -> bool:
        """Whether a target is one of them."""
        ...


def teacher_force(session: Session, prompt: NDArray[np.int64], continuation: NDArray[np.int64]) -> NDArray[np.float32]:
    """Logits of a session that is fed a prompt at once and then the continuation token by token.

    This is what generation does, so prefill and cache are both in the result: `[n + m, V]` for n prompt
    and m continuation tokens, or `[1 + m, V]` from a session without whole-prompt logits. The number of
    rows is whatever the runtime gave: a short output must reach the comparison, which reports it.
    """
    session.reset()
    rows = [session.append(prompt)]
    rows.extend(session.append(continuation[i : i + 1]) for i in range(continuation.size))
    return np.concatenate(rows, axis=0)


def check_options(
    backend: str, options: Mapping[str, str], known: Mapping[str, Sequence[str] | re.Pattern[str]]
) -> None:
    """Raise UsageError unless every load option is known to the backend and has a permitted value."""
    for name, value in options.items():
        if name not in known:
            raise UsageError(f"{backend} has no load option {name!r}", f"known: {', '.join(known) or 'none'}")
        allowed = known[name]
        if isinstance(allowed, re.Pattern):
            if not allowed.fullmatch(value):
                raise UsageError(f"{backend}: {name}={value} is not possible", f"write a value like {allowed.pattern}")
        elif value not in allowed:
            raise UsageError(f"{backend}: {name}={value} is not possible", f"use one of {', '.join(allowed)}")


def pick_recipe(backend: str, recipes: Sequence[Recipe], precision: Precision, name: str | None) -> Recipe:
    """The named recipe, or the first of its precision.

    Raises UsageError when there is none, listing those that there are for the precision.
    """
    fitting = [recipe for recipe in recipes if recipe.precision is precision]
    for recipe in fitting:
        if name in (None, recipe.name):
            return recipe
    known = ", ".join(recipe.name for recipe in fitting) or "none"
    raise UsageError(f"{backend} has no recipe {name!r} of precision {precision.value}", f"known: {known}")


def load_backends() -> dict[str, Backend]:
    """Every registered backend by name, made but not started; imports no runtime.

    Raises UsageError naming the distribution whose entry point cannot be loaded.
    """
    found: dict[str, Backend] = {}
    for entry in sorted(importlib.metadata.entry_points(group=GROUP), key=lambda e: e.name):
        found[entry.name] = _make(entry)
    if not found:
        raise UsageError("no backend is registered", "install this project: python -m pip install -e .")
    return found


def load_backend(name: str) -> Backend:
    """One registered backend. Raises UsageError when there is none of that name."""
    entries = importlib.metadata.entry_points(group=GROUP, name=name)
    for entry in entries:
        return _make(entry)
    known = ", ".join(sorted({e.name for e in importlib.metadata.entry_points(group=GROUP)}))
    raise UsageError(f"no backend {name!r} is registered in this interpreter", f"known here: {known or 'none'}")


def _make(entry: importlib.metadata.EntryPoint) -> Backend:
    source = entry.dist.name if entry.dist is not None else entry.value
    try:
        factory: Callable[[], Backend] = entry.load()
        backend = factory()
    except Exception as error:
        raise UsageError(
            f"the backend {entry.name!r} of {source} cannot be loaded: {type(error).__name__}: {error}",
            f"mend or uninstall {source}",
        ) from error
    if not isinstance(backend, Backend) or backend.name != entry.name:
        raise UsageError(
            f"the entry point {entry.name!r} of {source} gives no backend of that name",
            "return an object with the members of harness.backend.Backend",
        )
    return backend


def missing_distributions(backend: Backend) -> list[str]:
    """The distributions a backend needs that this interpreter does not have."""
    return [needed for needed in backend.distributions if not versions_of(needed.split("|"))]


def versions_of(names: Sequence[str]) -> dict[str, str]:
    """Installed versions of the distributions named; those not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
