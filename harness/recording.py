"""Recording a golden: FP32 PyTorch in a worker, checked against the float64 oracle, written atomically."""

from __future__ import annotations

import datetime
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import psutil
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import save_file

from harness import metrics, phi3_float64
from harness.backend import SessionInfo
from harness.backends.pytorch import REFERENCE_OPTIONS
from harness.checkpoint import Checkpoint, sha256_file
from harness.devices import this_machine
from harness.errors import GoldenError, PromptError, ResourceError, Stage, is_full_disk
from harness.golden import FRESH, HIDDEN, LOGITS, MANIFEST, SCHEMA, Case, File, Manifest, Noise
from harness.longrope import crossed, recomputed, switch_of
from harness.prompts import Prompt, PromptSuite
from harness.worker import Worker

REFERENCE_TARGET = "pytorch:cpu:fp32"
# The largest difference between FP32 PyTorch and the float64 oracle that is rounding: in logits, or in
# units of the logits' centred RMS where that is above 1 (large models have logits in the tens).
ORACLE_TOLERANCE = 1e-4
# Models up to this size are checked on every case, larger ones on the two shortest: the float64 pass
# over everything would take longer than the recording.
_CHECK_ALL_PARAMETERS = 20_000_000
_CHECK_LARGE_CASES = 2
_HIDDEN_CASES = 3
_HIDDEN_MAX_TOKENS = 96

Logits = dict[str, NDArray[np.float32]]
"""`[n + m, V]` by the id of a case."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how many are done, and of how many."""


def check_memory(checkpoint: Checkpoint, longest: int, available: int | None = None) -> None:
    """Raise ResourceError when an FP32 golden of the checkpoint does not fit into the memory that is free.

    Needed are the weights in FP32, and, for the longest case, three copies of its logits and its attention
    scores; `available` is in bytes, the machine's free memory by default.
    """
    config = checkpoint.config
    scores = longest * longest * int(config["num_attention_heads"]) * 4 * 3
    needed = checkpoint.parameters() * 4 + longest * checkpoint.vocabulary * 4 * 3 + scores + (1 << 30)
    free = int(psutil.virtual_memory().available) if available is None else available
    if needed > free:
        raise ResourceError(
            f"an FP32 golden of {checkpoint.name} needs about {needed / 2**30:.1f} GiB of memory; "
            f"{free / 2**30:.1f} GiB are free",
            "close other programs, or record on a larger machine and copy the golden's folder (--golden DIR)",
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


def record_golden(
    checkpoint: Checkpoint,
    suite: PromptSuite,
    out: Path,
    worker: Worker,
    *,
    progress: Progress,
    trust_remote_code: bool = False,
    hidden: bool = True,
) -> Manifest:
    """Record the golden of a suite into the folder `out`, which is replaced as a whole when all is done.

    `hidden`: with the hidden states of a few prompts. Whatever stops it before that (an error, Ctrl-C) leaves `out` as it
    was.
    """
    longest = max(_longest(prompt, checkpoint) for prompt in suite.prompts)
    check_memory(checkpoint, longest)
    progress("loading the checkpoint", 0, len(suite.prompts))
    info = start_reference(checkpoint, worker, trust_remote_code=trust_remote_code)
    cases: list[Case] = []
    logits: Logits = {}
    fresh: Logits = {}
    for index, prompt in enumerate(suite.prompts):
        progress(prompt.id, index, len(suite.prompts))
        case, rows, other = _record_case(checkpoint, prompt, worker)
        cases.append(case)
        logits[prompt.id] = rows
        if case.switch:
            fresh[prompt.id] = other
    kept = _for_hidden(cases) if hidden else []
    states = {case.id: _invoke(worker, "hidden_states", tokens=case.sequence) for case in kept}
    progress("checking against float64", len(cases), len(cases))
    noise = measure_noise(checkpoint, cases, logits, fresh)
    _check_choices(checkpoint, cases, {case.id: _choosing(case, logits, fresh) for case in cases}, noise)
    manifest = _manifest(checkpoint, suite, cases, noise, info)
    return write_golden(out, manifest, logits, states, fresh)


def _longest(prompt: Prompt, checkpoint: Checkpoint) -> int:
    if prompt.length is not None:
        return prompt.length.tokens(checkpoint.window) + prompt.new_tokens
    text = prompt.text or "".join(message.content for message in prompt.messages or ())
    text += prompt.continuation or ""
    return len(text.encode()) + prompt.new_tokens  # a byte-level tokenizer gives no more tokens than bytes


def _invoke(worker: Worker, method: str, **arguments: Any) -> Any:
    return worker.call(Stage.RUN, "invoke", method=method, arguments=arguments)


def _record_case(
    checkpoint: Checkpoint, prompt: Prompt, worker: Worker
) -> tuple[Case, NDArray[np.float32], NDArray[np.float32]]:
    """The case, its logits and, where it crosses LongRoPE's switch, the rows past that of one pass over all."""
    tokens = render(checkpoint, prompt, worker)
    given, new_tokens = prompt.continuation is not None, prompt.new_tokens
    if given:
        tokens, continuation = _split(checkpoint, prompt, tokens, worker)
        new_tokens = len(continuation)
    else:
        continuation = _answer(checkpoint, tokens, new_tokens, worker)
    rows = _invoke(worker, "whole_logits", tokens=[*tokens, *continuation])
    switch = crossed(switch_of(checkpoint.config), len(tokens), len(tokens) + len(continuation))
    fresh = rows[switch:]
    if switch:
        rows = worker.call(Stage.RUN, "teacher_force", prompt=tokens, continuation=continuation)
    case = Case(
        id=prompt.id,
        tokens=tuple(tokens),
        continuation=tuple(continuation),
        new_tokens=new_tokens,
        ended=continuation[-1] in checkpoint.end_tokens,
        margins=(),
        given=given,
        switch=switch,
    )
    chosen = metrics.margins(_choosing(case, {case.id: rows}, {case.id: fresh}))
    return msgspec.structs.replace(case, margins=tuple(map(float, chosen))), rows, fresh


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


def _choosing(case: Case, logits: Logits, fresh: Logits) -> NDArray[np.float32]:
    """The rows that choose the continuation, as `generate` computes them."""
    rows = recomputed(logits[case.id], fresh[case.id], case.switch) if case.switch else logits[case.id]
    start = len(case.tokens) - 1
    return rows[start : start + len(case.continuation)]


def _split(checkpoint: Checkpoint, prompt: Prompt, alone: Sequence[int], worker: Worker) -> tuple[list[int], list[int]]:
    """Prompt and given continuation, tokenised as the one text that they are.

    Where a token spans the border it belongs to the continuation. Raises PromptError when nothing is left of one.
    """
    whole = _tokenise(prompt, worker, prompt.continuation or "")
    n = next((i for i, pair in enumerate(zip(whole, alone, strict=False)) if pair[0] != pair[1]), len(alone))
    if not 0 < n < len(whole):
        raise PromptError(
            f"{prompt.id!r} has no token of its own before, or in, its continuation", "lengthen the shorter of the two"
        )
    if len(whole) > checkpoint.max_tokens:
        raise PromptError(
            f"{prompt.id!r} has {len(whole)} tokens; the context is {checkpoint.max_tokens}", "shorten the prompt"
        )
    return whole[:n], whole[n:]


def render(checkpoint: Checkpoint, prompt: Prompt, worker: Worker) -> list[int]:
    """Token ids of a prompt under the checkpoint's tokenizer and chat template, brought to its length.

    Raises PromptError when it renders to nothing, or leaves no room for new tokens.
    """
    tokens = _tokenise(prompt, worker)
    if not tokens:
        raise PromptError(f"{prompt.id!r} renders to no tokens", "give the prompt some text")
    room = checkpoint.max_tokens - prompt.new_tokens
    if prompt.length is not None:
        # Twice the window of Phi-3-mini-4k and the new tokens pass its context by a few tokens.
        wanted = min(prompt.length.tokens(checkpoint.window), room)
        if wanted < 1:
            raise PromptError(
                f"{prompt.id!r} comes to a length of {wanted} tokens", "raise its length or lower its new_tokens"
            )
        tokens = (tokens * (wanted // len(tokens) + 1))[:wanted]
    if len(tokens) > room:
        raise PromptError(
            f"{prompt.id!r} has {len(tokens)} tokens; with {prompt.new_tokens} new ones the context of "
            f"{checkpoint.max_tokens} is passed",
            "shorten the prompt or lower its new_tokens",
        )
    return tokens


def _tokenise(prompt: Prompt, worker: Worker, continuation: str = "") -> list[int]:
    messages = None if prompt.messages is None else [msgspec.to_builtins(message) for message in prompt.messages]
    more = {"continuation": continuation} if continuation else {}
    tokens: list[int] = _invoke(worker, "render", messages=messages, text=prompt.text, **more)
    return tokens


def _for_hidden(cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if len(case.sequence) <= _HIDDEN_MAX_TOKENS][:_HIDDEN_CASES]


def measure_noise(checkpoint: Checkpoint, cases: Sequence[Case], logits: Logits, fresh: Logits | None = None) -> Noise:
    """Compare recorded logits, and the rows of fresh passes where there are some, with the float64 oracle.

    Raises GoldenError when they differ by more than rounding: then one of the two is wrong, and no golden
    must come of it.
    """
    checked = sorted(cases, key=lambda case: len(case.sequence))
    if checkpoint.parameters() > _CHECK_ALL_PARAMETERS:
        checked = checked[:_CHECK_LARGE_CASES]
    passes = [(case, logits[case.id], len(case.tokens)) for case in checked]
    passes += [(case, fresh[case.id], len(case.sequence)) for case in checked if fresh and case.id in fresh]
    oracle = phi3_float64.forward(checkpoint, [case.sequence for case, _, _ in passes], [n for _, _, n in passes])
    worst, scale, rms = 0.0, 1.0, []
    for (case, rows, _), whole in zip(passes, oracle, strict=True):
        exact = whole[-rows.shape[0] :]
        if metrics.first_non_finite(rows) is not None:
            raise GoldenError(
                f"FP32 PyTorch gives NaN or Inf for {case.id!r}",
                "look for a broken torch build or checkpoint; nothing was written",
            )
        worst = max(worst, float(np.abs(rows - exact).max()))
        scale = max(scale, float(metrics.centred_scale(exact).max()))
        rms.append(metrics.centred_rms_error(exact, rows))
    if not worst <= ORACLE_TOLERANCE * scale:
        raise GoldenError(
            f"FP32 PyTorch and the float64 oracle differ by {worst:.2e} logits; "
            f"rounding explains {ORACLE_TOLERANCE * scale:.0e}",
            "look for a broken torch build or a configuration that one of the two misreads; nothing was written",
        )
    joined = np.concatenate(rms)
    return Noise(tuple(case.id for case in checked), float(joined.mean()), float(joined.max()), worst)


def _check_choices(checkpoint: Checkpoint, cases: Sequence[Case], choosing: Logits, noise: Noise) -> None:
    """Greedy decoding went through the KV cache, the logits did not: both must choose the same tokens.

    `choosing` is `[m, V]` a case: the logits at the positions that chose the continuation.
    """
    allowed = 100 * max(noise.max_abs, 1e-6)
    for case in cases:
        if case.given:
            continue
        regret = metrics.regret(choosing[case.id], np.asarray(case.continuation))
        if regret.max() > allowed:
            raise GoldenError(
                f"{checkpoint.name}, {case.id!r}: decoding with a cache chose token {int(regret.argmax())} of the "
                f"continuation {regret.max():.2e} logits below the best of the pass without one; "
                f"rounding explains {allowed:.0e}",
                "look for a defect in this version of transformers; nothing was written",
            )


def _manifest(
    checkpoint: Checkpoint, suite: PromptSuite, cases: Sequence[Case], noise: Noise, info: SessionInfo
) -> Manifest:
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
        noise=noise,
        files={},
        versions={**info.versions, "numpy": np.__version__},
        load_options=info.load_options,
        machine=this_machine(),
        recorded=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    )


def write_golden(
    out: Path, manifest: Manifest, logits: Logits, hidden: Logits, fresh: Logits | None = None
) -> Manifest:
    """Write all files beside `out`, then swap the folders. Raises ResourceError on a full disk."""
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # left by a process of the same number that was killed
    try:
        partial.mkdir(parents=True)
        files = {}
        for name, tensors in ((LOGITS, logits), (HIDDEN, hidden), (FRESH, fresh)):
            if tensors:
                save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, partial / name)
                files[name] = File(sha256_file(partial / name), (partial / name).stat().st_size)
        manifest = msgspec.structs.replace(manifest, files=files).sealed()
        (partial / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
        _swap(partial, out)
    except (OSError, SafetensorError) as error:
        if is_full_disk(error):
            raise ResourceError(f"the disk of {out} is full", "free space, or give --golden another disk") from None
        raise GoldenError(f"{out} cannot be written: {error}", "give --golden a folder you may write to") from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _swap(partial: Path, out: Path) -> None:
    """Put `partial` in the place of `out`. The old one is moved away first: Windows does not rename over."""
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    try:
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)
            out.rename(old)
        partial.rename(out)
    except BaseException:
        if old.exists() and not out.exists():
            old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
