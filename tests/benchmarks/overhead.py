"""How much longer the harness takes than the bare runtime for the same work.

    python tests/benchmarks/overhead.py [--repeats 3] [--prompts 12]

Makes a random-weight Phi-3 of about 100 million parameters with Phi-3-mini's vocabulary of 32064, then prints

- the wall time of recording a golden (its float64 check, hashing and writing included) over that of bare
  transformers doing the same generation and forward passes, both from the start of a new process,
- the wall time of teacher-forced logits plus greedy decoding through the harness (worker, arrays, metrics,
  verdicts) over that of the same calls on the bare model, both after loading, for a compact golden and for a full one;
  the error is not taken apart, since references are passes of another model, and
- where the time goes when it is.

Needs an interpreter with torch and transformers, the one running or `.tox/runtime`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.backend import load_backend, load_backends
from harness.checkpoint import find_checkpoint
from harness.devices import find_interpreter
from harness.golden import TREE
from harness.judge import CaseFailed, Judge
from harness.options import POLICY
from harness.policy import read_policy
from harness.prompts import PromptSuite, read_suite
from harness.recording import record_golden
from harness.run import PromptCase, Run, Settings
from harness.sessions import TargetSession
from harness.target import Target
from harness.worker import Worker

sys.path.insert(0, str(TREE / "tests"))  # run as a script, this has its own folder there
from benchmarks.clock import Clock

MAKE = """
import sys, torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast
torch.manual_seed(0)
config = Phi3Config(vocab_size=32064, hidden_size=640, intermediate_size=1728, num_hidden_layers=12,
    num_attention_heads=10, num_key_value_heads=10, max_position_embeddings=4096, sliding_window=2047,
    bos_token_id=1, eos_token_id=[32000], pad_token_id=32000)
model = Phi3ForCausalLM(config).to(torch.bfloat16)
print(sum(p.numel() for p in model.parameters()))
model.save_pretrained(sys.argv[1])
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(sys.argv[1])
"""

# What the harness asks of a target, on the bare model: prefill, decoding step by step, then generate.
BARE_TARGET = """
import json, sys, time, torch
from transformers import AutoModelForCausalLM, GenerationConfig
torch.manual_seed(0)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
cases = json.loads(sys.stdin.read())
greedy = GenerationConfig(do_sample=False, max_new_tokens=cases[0][2], eos_token_id=[32000], pad_token_id=32000)
def work(tokens, continuation):
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([tokens]), use_cache=True)
        rows = [output.logits[0]]
        for token in continuation:
            output = model(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values, use_cache=True)
            rows.append(output.logits[0])
        ids = torch.tensor([tokens])
        model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
work(cases[0][0], cases[0][1][:2])
start = time.perf_counter()
for tokens, continuation, _ in cases:
    work(tokens, continuation)
print(time.perf_counter() - start)
"""

BARE_GOLDEN = """
import json, sys, torch
from transformers import AutoModelForCausalLM, GenerationConfig
torch.use_deterministic_algorithms(True)
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="eager").eval()
cases = json.loads(sys.stdin.read())
greedy = GenerationConfig(do_sample=False, max_new_tokens=cases[0][2], eos_token_id=[32000], pad_token_id=32000)
with torch.inference_mode():
    for tokens, _, _ in cases:
        ids = torch.tensor([tokens])
        sequence = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
        model(input_ids=sequence, use_cache=False).logits.numpy()
"""


def main() -> None:
    """Make the checkpoint and the prompts, take both ratios, print them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=12)
    options = parser.parse_args()
    interpreter = find_interpreter(load_backend("pytorch"), {}, TREE)
    python = str(interpreter or sys.executable)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = subprocess.run([python, "-c", MAKE, str(folder / "random")], check=True, capture_output=True, text=True)
        print(f"random Phi-3 of {int(made.stdout) / 1e6:.0f} million parameters, vocabulary 32064")
        suite = write_suite(folder, options.prompts)
        golden, cases = golden_ratio(folder, suite, interpreter, python, options.repeats)
        target = target_ratios(folder, suite, cases, python, options.repeats)
        apart(folder, suite)
    print(f"golden recording over bare transformers: {golden:.3f} (at most 1.2)")
    for form, ratio in target.items():
        print(f"logits and greedy through the harness over the bare runtime, {form} golden: {ratio:.3f} (at most 1.05)")
    sys.exit(0 if golden <= 1.2 and max(target.values()) <= 1.05 else 1)


def write_suite(folder: Path, count: int) -> PromptSuite:
    """`count` prompts of 48 tokens, 32 new tokens each."""
    text = "The quick brown fox jumps over the lazy dog while it rains."
    lines = [{"id": f"p{i}", "text": text[i % 8 :][:48], "new_tokens": 32, "about": "benchmark"} for i in range(count)]
    path = folder / "bench.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_suite(path)


def golden_ratio(
    folder: Path, suite: PromptSuite, interpreter: Path | None, python: str, repeats: int
) -> tuple[float, list[list[object]]]:
    """Median over repeats of recording over bare transformers; also the cases, for the other ratio."""
    checkpoint = find_checkpoint(str(folder / "random"))
    ratios, cases = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        worker = Worker("recorder", folder / "scratch", interpreter=interpreter)
        manifest = record_golden(checkpoint, suite, folder / "compact" / suite.name, worker, progress=lambda *_: None)
        worker.stop()
        ours = time.perf_counter() - start
        cases = [[list(case.tokens), list(case.continuation), case.new_tokens] for case in manifest.cases]
        bare = run_bare(BARE_GOLDEN, python, folder, cases)[0]
        print(f"  golden: harness {ours:.2f} s, bare {bare:.2f} s")
        ratios.append(ours / bare)
    worker = Worker("recorder", folder / "scratch", interpreter=interpreter)
    record_golden(checkpoint, suite, folder / "full" / suite.name, worker, progress=lambda *_: None, form="full")
    worker.stop()
    return statistics.median(ratios), cases


def target_ratios(
    folder: Path, suite: PromptSuite, cases: list[list[object]], python: str, repeats: int
) -> dict[str, float]:
    """Median over repeats of logits plus greedy through the harness over the bare model, by the golden's form."""
    ratios: dict[str, list[float]] = {"compact": [], "full": []}
    for _ in range(repeats):
        bare = float(run_bare(BARE_TARGET, python, folder, cases)[1])
        for form, found in ratios.items():
            with opened(folder / form, folder, suite) as (session, prompts):
                session.undecomposed = "the benchmark compares with nothing but the golden"
                ours = judged(session, prompts)
            print(f"  target: harness {ours:.2f} s, bare {bare:.2f} s, {form} golden")
            found.append(ours / bare)
    return {form: statistics.median(found) for form, found in ratios.items()}


def apart(folder: Path, suite: PromptSuite) -> None:
    """Print where the time goes when the error is taken apart."""
    clock = Clock()
    with clock.watching(), opened(folder / "compact", folder, suite) as (session, prompts):
        clock.forget()
        ours = judged(session, prompts)
        print(f"with the error taken apart, {ours:.2f} s:")
        clock.tell(ours)


@contextmanager
def opened(golden: Path, folder: Path, suite: PromptSuite) -> Iterator[tuple[TargetSession, list[PromptCase]]]:
    """A loaded session, warm, and the prompts with their golden."""
    checkpoint, policy = find_checkpoint(str(folder / "random")), read_policy(POLICY)
    run = Run(
        Settings(checkpoint, checkpoint.fingerprint(), (suite,), (golden,), policy), load_backends(), lambda _: None
    )
    session = TargetSession(run, Target.parse("pytorch:cpu:fp32"))
    session.start()
    prompts = [run.case(suite, prompt.id) for prompt in suite.prompts]
    session.call("teacher_force", prompt=list(prompts[0].case.tokens), continuation=[1, 2])
    try:
        yield session, prompts
    finally:
        session.close()
        run.close()


def judged(session: TargetSession, prompts: list[PromptCase]) -> float:
    """Seconds for logits and answers of all prompts, judged."""
    settings = session.run.settings
    start = time.perf_counter()
    for prompt in prompts:
        judge = Judge(session, settings.policy, settings.checkpoint)
        try:
            judge.logits(prompt, session.errors(prompt))
            tokens = session.generate(prompt)
            judge.form(prompt, tokens)
            judge.match(prompt, tokens)
            judge.regret(prompt, tokens)
        except CaseFailed as failed:  # random weights leave near-ties that rounding may decide
            print(f"  {failed}")
    return time.perf_counter() - start


def run_bare(code: str, python: str, folder: Path, cases: list[list[object]]) -> tuple[float, str]:
    """Run a script on the cases; wall time of the whole process in seconds, and what it printed."""
    start = time.perf_counter()
    found = subprocess.run(
        [python, "-c", code, str(folder / "random")],
        input=json.dumps(cases),
        check=True,
        capture_output=True,
        text=True,
    )
    return time.perf_counter() - start, found.stdout.strip()


if __name__ == "__main__":
    main()
