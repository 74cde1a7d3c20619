"""Recording a golden: FP32 PyTorch in a worker, prompt by prompt or a layer at a time for all of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray

from harness import metrics
from harness.backend import SessionInfo
from harness.backends.pytorch import REFERENCE_OPTIONS
from harness.checkpoint import Checkpoint
from harness.compact_plan import Plan
from harness.devices import this_machine
from harness.errors import CheckpointError, GoldenError, ResourceError, Stage
from harness.golden import SCHEMA, Case, Manifest, Noise
from harness.golden_compact import plan_of_form
from harness.golden_parts import Part, for_hidden
from harness.golden_writing import conclude, write_golden
from harness.layout import HEAD, Layout
from harness.longrope import crossed, switch_of
from harness.oracle_check import Logits, choosing, must_be_finite
from harness.prompts import Prompt, PromptSuite
from harness.rendering import Tokenise, longest, render, split
from harness.streamed_recording import StreamedReference
from harness.streaming.decoding import Asked
from harness.streaming.operations import OPTIONS as STREAMED_OPTIONS
from harness.streaming.room import least_memory
from harness.tensor_files import TensorFiles
from harness.worker import Worker

REFERENCE_TARGET = "pytorch:cpu:fp32"

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


def check_memory(checkpoint: Checkpoint, tokens: int, available: int | None = None) -> None:
    """Raise ResourceError when an FP32 golden of the checkpoint does not fit into the memory that is free.

    Needed are the weights in FP32, and, for a case of so many tokens, three copies of its logits and its attention
    scores; `available` is in bytes, the machine's free memory by default.
    """
    config = checkpoint.config
    scores = tokens * tokens * int(config["num_attention_heads"]) * 4 * 3
    needed = checkpoint.parameters() * 4 + tokens * checkpoint.vocabulary * 4 * 3 + scores + (1 << 30)
    free = int(psutil.virtual_memory().available) if available is None else available
    if needed > free:
        raise ResourceError(
            f"an FP32 golden of {checkpoint.name} needs about {needed / 2**30:.1f} GiB of memory; "
            f"{free / 2**30:.1f} GiB are free",
            "close other programs, or have the weights read layer by layer: --streamed in the place of --whole",
        )


def start_reference(checkpoint: Checkpoint, worker: Worker, *, trust_remote_code: bool = False) -> SessionInfo:
    """Start a worker and load the checkpoint in it as the golden reference."""
    if not worker.running:
        worker.start()
    opened = worker.call(Stage.LOAD, "open", backend="pytorch")
    if opened["missing"]:
        raise GoldenError(
            f"the golden reference needs {', '.join(opened['missing'])} in {opened['executable']}",
            "python -m pip install -e .[pytorch]",
        )
    info = worker.call(
        Stage.LOAD,
        "load",
        artifact=str(checkpoint.path),
        target=REFERENCE_TARGET,
        options=REFERENCE_OPTIONS,
        trust_remote_code=trust_remote_code,
    )
    return msgspec.convert(info, SessionInfo)


class _Recorded(NamedTuple):
    """What the reference has answered: cases, their logits, rows of fresh passes, hidden states."""

    info: SessionInfo
    cases: list[Case]
    logits: Logits
    fresh: Logits
    states: Logits


class Streaming(NamedTuple):
    """How a golden is streamed that does not fit into memory: see `harness.streamed_recording`.

    `memory`: bytes that recording may take, what is free by default. `streamed`: whether it is, by the memory by
    default. `drafting`: try tokens before they are computed; `drafts`: for some prompts the answer of another build, to
    be tried first. Neither changes what is recorded.
    """

    memory: int | None = None
    streamed: bool | None = None
    drafting: bool = True
    drafts: Mapping[str, Sequence[int]] | None = None


def record_golden(
    checkpoint: Checkpoint,
    suite: PromptSuite,
    out: Path,
    worker: Worker,
    *,
    progress: Progress,
    trust_remote_code: bool = False,
    hidden: bool = True,
    streaming: Streaming | None = None,
    form: str | None = None,
    part: Part | None = None,
) -> Manifest:
    """Record the golden of a suite into the folder `out`, which is replaced as a whole when all is done.

    `hidden`: with the hidden states of a few prompts. `form`: see `harness.golden_compact.plan_of_form`, which also
    says what it raises. A `part` of the prompts has whole rows in any case, and is checked when it is merged: see
    `harness.golden_parts`. Whatever stops it before that (an error, Ctrl-C) leaves `out` as it was. A model that does
    not fit into memory is streamed; if that is stopped, the answers so far are kept beside `out`, and the next
    recording goes on from them.
    """
    streaming = streaming or Streaming()
    plan = plan_of_form(checkpoint.vocabulary, form)
    if part is not None:
        suite = part.of(suite)
    _check_tensors(checkpoint)
    if not _is_streamed(checkpoint, suite, streaming):
        progress("loading the checkpoint", 0, len(suite.prompts))
        try:
            recorded = _whole(checkpoint, suite, worker, progress, trust_remote_code=trust_remote_code, hidden=hidden)
        finally:
            worker.stop()  # the model would stay beside the oracle, and beside the next suite's, which may be streamed
        progress("checking against float64", len(suite.prompts), len(suite.prompts))
        return _conclude(checkpoint, suite, out, recorded, plan, part)
    work = out.with_name(f"{out.name}.work")
    reference = StreamedReference(worker, checkpoint, work, progress, trust_remote_code=trust_remote_code)
    done = False
    try:
        recorded = _streamed(checkpoint, suite, reference, streaming, hidden=hidden)
        reference.release()
        progress("checking against float64", len(suite.prompts), len(suite.prompts))
        manifest = _conclude(checkpoint, suite, out, recorded, plan, part)
        del recorded  # its rows are mapped from files that are deleted now, which Windows refuses
        done = True
        return manifest
    finally:
        reference.leave(done=done)


def _is_streamed(checkpoint: Checkpoint, suite: PromptSuite, how: Streaming) -> bool:
    """Whether it is, as it was asked for or by the memory. Raises ResourceError where that does not suffice."""
    if how.streamed is None:
        return must_stream(checkpoint, suite, how.memory)
    lengths = [longest(prompt, checkpoint) for prompt in suite.prompts]
    if how.streamed:
        _check_least(checkpoint, lengths, how.memory)
    else:
        check_memory(checkpoint, max(lengths), how.memory)
    return how.streamed


def must_stream(checkpoint: Checkpoint, suite: PromptSuite, memory: int | None = None) -> bool:
    """Whether a golden can only be recorded a layer at a time in so many bytes, those that are free by default.

    Raises ResourceError where that does not suffice either.
    """
    lengths = [longest(prompt, checkpoint) for prompt in suite.prompts]
    try:
        check_memory(checkpoint, max(lengths), memory)
    except ResourceError:
        _check_least(checkpoint, lengths, memory)
        return True
    return False


def was_streamed(manifest: Manifest) -> bool:
    """Whether a golden was recorded a layer at a time."""
    return dict(manifest.load_options) == STREAMED_OPTIONS


def _check_least(checkpoint: Checkpoint, lengths: Sequence[int], memory: int | None) -> None:
    free = int(psutil.virtual_memory().available) if memory is None else memory
    needed = least_memory(Layout.of(checkpoint.config), len(lengths), max(lengths), sum(lengths))
    if needed > free:
        raise ResourceError(
            f"a golden of {checkpoint.name} needs {needed / 2**30:.1f} GiB of memory even a layer at a time; "
            f"{free / 2**30:.1f} GiB may be used",
            "close other programs, raise --memory, or record fewer or shorter prompts at once (--prompts FILE)",
        ) from None


def _check_tensors(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError where a tensor is missing, or has another shape than the configuration gives it."""
    files, layout = TensorFiles(checkpoint.weight_files), Layout.of(checkpoint.config)
    for name, shape in layout.shapes().items():
        if name == HEAD and layout.tied and name not in files:
            continue
        if files.shape(name) != shape:
            raise CheckpointError(
                f"{checkpoint.path}: {name} is {list(files.shape(name))}, config.json makes it {list(shape)}",
                "restore the checkpoint's original config.json, or download it again",
            )
        files.dtype(name)


def _whole(
    checkpoint: Checkpoint,
    suite: PromptSuite,
    worker: Worker,
    progress: Progress,
    *,
    trust_remote_code: bool,
    hidden: bool,
) -> _Recorded:
    """Record with the whole model in memory, prompt by prompt."""
    info = start_reference(checkpoint, worker, trust_remote_code=trust_remote_code)
    cases: list[Case] = []
    logits: dict[str, NDArray[np.float32]] = {}
    fresh: dict[str, NDArray[np.float32]] = {}
    for index, prompt in enumerate(suite.prompts):
        progress(prompt.id, index, len(suite.prompts))
        case, rows, other = _record_case(checkpoint, prompt, worker)
        cases.append(case)
        logits[prompt.id] = rows
        if case.switch:
            fresh[prompt.id] = other
    kept = for_hidden(cases) if hidden else []
    states = {case.id: _invoke(worker, "hidden_states", tokens=case.sequence) for case in kept}
    return _Recorded(info, cases, logits, fresh, states)


def _streamed(
    checkpoint: Checkpoint, suite: PromptSuite, reference: StreamedReference, how: Streaming, *, hidden: bool
) -> _Recorded:
    """Record a layer at a time, all prompts together."""
    asked = []
    for prompt in suite.prompts:
        tokens, given = _prompt_tokens(checkpoint, prompt, reference.tokenise)
        new_tokens = prompt.new_tokens if given is None else len(given)
        asked.append(Asked(prompt.id, tuple(tokens), new_tokens, None if given is None else tuple(given)))
    cases: list[Case] = []
    logits: dict[str, NDArray[np.float32]] = {}
    fresh: dict[str, NDArray[np.float32]] = {}
    found = reference.answer(asked, drafting=how.drafting, drafts=how.drafts)
    for prompt, one, (continuation, forced) in zip(suite.prompts, asked, found, strict=True):
        cases.append(_case(checkpoint, prompt, list(one.tokens), continuation, forced.rows, forced.fresh))
        logits[prompt.id] = forced.rows
        if cases[-1].switch:
            fresh[prompt.id] = forced.fresh
    kept = for_hidden(cases) if hidden else []
    states = reference.hidden_states([case.sequence for case in kept])
    return _Recorded(
        reference.info, cases, logits, fresh, {case.id: state for case, state in zip(kept, states, strict=True)}
    )


def _invoke(worker: Worker, method: str, **arguments: Any) -> Any:
    return worker.call(Stage.RUN, "invoke", method=method, arguments=arguments)


def _record_case(
    checkpoint: Checkpoint, prompt: Prompt, worker: Worker
) -> tuple[Case, NDArray[np.float32], NDArray[np.float32]]:
    """The case, its logits and, where it crosses LongRoPE's switch, the rows past that of one pass over all."""
    tokens, given = _prompt_tokens(checkpoint, prompt, partial(_invoke, worker, "render"))
    continuation = _answer(checkpoint, tokens, prompt.new_tokens, worker) if given is None else given
    rows = _invoke(worker, "whole_logits", tokens=[*tokens, *continuation])
    switch = crossed(switch_of(checkpoint.config), len(tokens), len(tokens) + len(continuation))
    fresh = rows[switch:]
    if switch:
        rows = worker.call(Stage.RUN, "teacher_force", prompt=tokens, continuation=continuation)
    for found in (rows, fresh):
        must_be_finite(checkpoint, prompt.id, found)
    return _case(checkpoint, prompt, tokens, continuation, rows, fresh), rows, fresh


def _prompt_tokens(checkpoint: Checkpoint, prompt: Prompt, tokenise: Tokenise) -> tuple[list[int], list[int] | None]:
    """The prompt's tokens and its given continuation's, None where the answer is to be generated."""
    tokens = render(checkpoint, prompt, tokenise)
    return (tokens, None) if prompt.continuation is None else split(checkpoint, prompt, tokens, tokenise)


def _case(
    checkpoint: Checkpoint,
    prompt: Prompt,
    tokens: list[int],
    continuation: list[int],
    rows: NDArray[np.float32],
    fresh: NDArray[np.float32],
) -> Case:
    """The case with its margins; `fresh` counts where it crosses LongRoPE's switch."""
    case = Case(
        id=prompt.id,
        tokens=tuple(tokens),
        continuation=tuple(continuation),
        new_tokens=prompt.new_tokens if prompt.continuation is None else len(continuation),
        ended=continuation[-1] in checkpoint.end_tokens,
        margins=(),
        given=prompt.continuation is not None,
        switch=crossed(switch_of(checkpoint.config), len(tokens), len(tokens) + len(continuation)),
    )
    chosen = metrics.margins(choosing(case, {case.id: rows}, {case.id: fresh}))
    return msgspec.structs.replace(case, margins=tuple(map(float, chosen)))


def _answer(checkpoint: Checkpoint, tokens: list[int], new_tokens: int, worker: Worker) -> list[int]:
    """The greedy answer; in two goes where it passes LongRoPE's switch, the second with the text so far as its prompt.

    So the text is computed anew at the switch, as transformers means to: `generate` of 5.5.4 loses its cache there.
    """

    def generate(prompt: list[int], most: int) -> list[int]:
        ends = list(checkpoint.end_tokens)
        found: list[int] = worker.call(Stage.RUN, "generate", prompt=prompt, max_new_tokens=most, end_tokens=ends)
        return found

    switch = switch_of(checkpoint.config)
    before = new_tokens if switch is None else switch + 1 - len(tokens)
    if not 0 < before < new_tokens:
        return generate(tokens, new_tokens)
    begun = generate(tokens, before)
    if begun[-1] in checkpoint.end_tokens:
        return begun
    return begun + generate([*tokens, *begun], new_tokens - before)


def _conclude(
    checkpoint: Checkpoint, suite: PromptSuite, out: Path, recorded: _Recorded, plan: Plan | None, part: Part | None
) -> Manifest:
    """Check and write what was recorded; a part of it is written as it is, to be checked with the others."""
    manifest = _manifest(checkpoint, suite, recorded.cases, recorded.info)
    if part is not None:
        manifest = msgspec.structs.replace(manifest, part=(part.number, part.count))
        return write_golden(out, manifest, recorded.logits, recorded.states, recorded.fresh)
    return conclude(checkpoint, out, manifest, recorded.logits, recorded.states, recorded.fresh, plan)


def _manifest(checkpoint: Checkpoint, suite: PromptSuite, cases: Sequence[Case], info: SessionInfo) -> Manifest:
    """The manifest of what was not yet checked."""
    return Manifest(
        schema=SCHEMA,
        checkpoint=checkpoint.name,
        fingerprint=checkpoint.fingerprint(),
        suite=suite.name,
        suite_sha256=suite.sha256,
        vocabulary=info.vocabulary,
        window=checkpoint.window,
        end_tokens=checkpoint.end_tokens,
        cases=tuple(cases),
        noise=Noise((), 0.0, 0.0, 0.0),
        files={},
        versions={**info.versions, "numpy": np.__version__},
        load_options=info.load_options,
        machine=this_machine(),
        recorded=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )
