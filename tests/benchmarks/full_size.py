"""Goldens of models that do not fit into memory: what streaming them takes of memory and time.

    python tests/benchmarks/full_size.py small [--prompts 12] [--new-tokens 32]
    python tests/benchmarks/full_size.py mini [--prompts 40] [--new-tokens 64] [--memory 6GB] [--checkpoint FOLDER]

Both make a checkpoint of random weights, seeded, in BF16 and in shards as the published ones are.

`small`, of 400 million parameters: the streamed golden against plain transformers in FP32, which generates and computes
the same: tokens, the largest difference of logits, time and memory.
`mini`, of Phi-3-mini's true shape, 7.6 GB on disk: passes over the weights, time, tokens and memory.

Memory is RssAnon, what the processes hold that no file backs, summed over them and read ten times a second; pages of
mapped files, which the system takes back when others need memory, are apart. Python with torch and transformers holds
some 0.4 GB before it holds a model, so that the memory of two runs is compared less that. Linux only. Needs an
interpreter with torch and transformers, the one running or `.tox/runtime`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil

from harness.backend import load_backend
from harness.checkpoint import find_checkpoint
from harness.devices import find_interpreter
from harness.golden import TREE, verify_files
from harness.options import parse_size
from harness.prompts import PromptSuite, read_suite
from harness.recording import Streaming, record_golden
from harness.worker import Worker

sys.path.insert(0, str(TREE / "tests"))  # run as a script, this has its own folder there
from published_shapes import make

# The same by transformers: what a golden of a model that fits into memory is made of.
BARE = """
import json, sys, numpy as np, torch
from transformers import AutoModelForCausalLM, GenerationConfig
torch.use_deterministic_algorithms(True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
cases, ends, found = json.loads(sys.stdin.read()), json.loads(sys.argv[3]), {}
with torch.inference_mode():
    for name, tokens, new_tokens in cases:
        ids = torch.tensor([tokens])
        greedy = GenerationConfig(do_sample=False, max_new_tokens=new_tokens, eos_token_id=ends, pad_token_id=32000)
        sequence = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        found[name + ".tokens"] = sequence[0].numpy()
        found[name + ".logits"] = model(input_ids=sequence, use_cache=False).logits[0].numpy()
np.savez(sys.argv[2], **found)
"""

IDLE = """
import re, torch
from pathlib import Path
from transformers import AutoTokenizer, Phi3ForCausalLM
torch.randn(256, 256) @ torch.randn(256, 256)
print(int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024)
"""

# Of Phi-3-mini-4k's configuration, but for these.
SMALL = {"hidden_size": 1280, "intermediate_size": 3456, "num_hidden_layers": 16, "num_attention_heads": 20}
SMALL |= {"num_key_value_heads": 20}


class Cost(NamedTuple):
    """Wall time in seconds and the highest RssAnon in bytes."""

    seconds: float
    memory: int

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.memory / 1e9:.2f} GB"


class Meter(threading.Thread):
    """Reads RssAnon of this process and all below it, summed, ten times a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._began = time.monotonic()
        self._over = threading.Event()
        self._memory = 0

    def run(self) -> None:
        """Until it is read."""
        while not self._over.wait(0.1):
            self._memory = max(self._memory, _anonymous())

    def read(self) -> Cost:
        """The cost since it was started."""
        self._over.set()
        self.join()
        return Cost(time.monotonic() - self._began, self._memory)


def _anonymous() -> int:
    total, own = 0, psutil.Process()
    for process in [own, *own.children(recursive=True)]:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
        except (OSError, ValueError):
            continue
        found = re.search(r"RssAnon:\s+(\d+) kB", status)
        total += int(found[1]) * 1024 if found else 0
    return total


def main() -> None:
    """Make a checkpoint and prompts, record, and print what it took."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("mini", "small"))
    parser.add_argument("--prompts", type=int, default=None)
    parser.add_argument("--new-tokens", type=int, default=None)
    parser.add_argument("--memory", default=None)
    parser.add_argument("--no-drafting", action="store_true")
    parser.add_argument("--checkpoint", type=Path, default=None, help="where it is kept, or made and kept")
    options = parser.parse_args()
    mini = options.model == "mini"
    interpreter = find_interpreter(load_backend("pytorch"), {}, TREE)
    with tempfile.TemporaryDirectory(dir=Path.home()) as name:  # /tmp may be memory
        folder = Path(name)
        checkpoint = options.checkpoint or folder / "random"
        if not checkpoint.is_dir():
            make_checkpoint(checkpoint, options.model)
        suite = write_suite(folder, options.prompts or (40 if mini else 12), options.new_tokens or (64 if mini else 32))
        memory = parse_size(options.memory or ("6GB" if mini else "1.9GB"))
        streaming = Streaming(memory, drafting=not options.no_drafting)
        # Every logit of the smaller one is held against transformers'.
        streamed = stream(checkpoint, suite, folder, interpreter, streaming, None if mini else "full")
        right = streamed.memory <= 6e9 if mini else compare(checkpoint, folder, suite, interpreter, streamed)
    sys.exit(0 if right else 1)


def make_checkpoint(checkpoint: Path, model: str) -> None:
    """Write the checkpoint."""
    total = make(checkpoint, "phi-3-mini-4k", changes=SMALL if model == "small" else {})
    print(f"random Phi-3 of {total / 1e6:.0f} million parameters in BF16", flush=True)


def write_suite(folder: Path, count: int, new_tokens: int) -> PromptSuite:
    """`count` prompts of about 60 tokens, which are letters."""
    text = "The quick brown fox jumps over the lazy dog while it rains, and the hare looks on. "
    lines = [
        {"id": f"p{i}", "text": (text * 2)[7 * i % len(text) :][: 54 + i % 13], "new_tokens": new_tokens, "about": "-"}
        for i in range(count)
    ]
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_suite(path)


def stream(
    checkpoint: Path,
    suite: PromptSuite,
    folder: Path,
    interpreter: Path | None,
    streaming: Streaming,
    form: str | None,
) -> Cost:
    """Record the golden and print passes, tokens, time and memory."""
    passes: list[int] = []

    def progress(what: str, done: int, total: int) -> None:
        found = re.match(r"pass (\d+), ", what)
        passes.append(int(found[1]) if found else 0)
        print(f"  {done}/{total}: {what}", file=sys.stderr, flush=True)

    found = find_checkpoint(str(checkpoint))
    found.fingerprint()  # hashed once and remembered, whoever loads it
    meter = Meter()
    meter.start()
    worker = Worker("recorder", folder / "scratch", interpreter=interpreter)
    try:
        out = folder / "golden" / suite.name
        manifest = record_golden(
            found, suite, out, worker, progress=progress, hidden=False, streaming=streaming, form=form
        )
    finally:
        worker.stop()
    cost = meter.read()
    tokens = sum(len(case.continuation) for case in manifest.cases)
    near = sum(len(case.near_ties) for case in manifest.cases)
    steps = max(len(case.continuation) for case in manifest.cases)
    print(f"streamed golden of {len(manifest.cases)} prompts, {tokens} new tokens, {near} near ties: {cost}")
    print(f"  {max(passes)} passes over the weights; without drafts it would be {steps + 1}")
    print(f"  largest difference from float64, two cases: {manifest.noise.max_abs:.1e} logits", flush=True)
    return cost


def compare(checkpoint: Path, folder: Path, suite: PromptSuite, interpreter: Path | None, streamed: Cost) -> bool:
    """Hold the golden against transformers with the whole model in FP32; whether all is as it must be."""
    golden = verify_files(folder / "golden" / suite.name)
    cases = [[case.id, list(case.tokens), case.new_tokens] for case in golden.manifest.cases]
    meter = Meter()
    meter.start()
    arguments = [str(interpreter or sys.executable), "-c", BARE, str(checkpoint), str(folder / "bare.npz")]
    arguments.append(json.dumps(list(find_checkpoint(str(checkpoint)).end_tokens)))
    subprocess.run(arguments, input=json.dumps(cases), check=True, capture_output=True, text=True)
    bare = meter.read()
    idle = int(subprocess.run([arguments[0], "-c", IDLE], check=True, capture_output=True, text=True).stdout)
    found: Any = np.load(folder / "bare.npz")
    same, worst = True, 0.0
    for case in golden.manifest.cases:
        same &= found[f"{case.id}.tokens"].tolist() == list(case.sequence)
        if found[f"{case.id}.tokens"].tolist() == list(case.sequence):
            worst = max(worst, float(np.abs(found[f"{case.id}.logits"] - golden.logits(case.id)).max()))
    time_ratio, memory_ratio = streamed.seconds / bare.seconds, (streamed.memory - idle) / (bare.memory - idle)
    print(f"plain transformers in FP32: {bare}; torch and transformers alone: {idle / 1e9:.2f} GB")
    print(f"  {'the same tokens' if same else 'OTHER TOKENS'}; logits within {worst:.1e} (at most 1e-4)")
    print(f"  streamed over plain: time {time_ratio:.2f} (at most 1.2), memory {memory_ratio:.2f} (at most 0.25)")
    return same and worst <= 1e-4 and time_ratio <= 1.2 and memory_ratio <= 0.25


if __name__ == "__main__":
    main()
