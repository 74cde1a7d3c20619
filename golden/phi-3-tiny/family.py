"""Train a bundled member of the Phi-3 family: a real model's configuration at reduced size.

    python golden/phi-3-tiny/family.py phi-4-mini-tiny --out golden/phi-4-mini-tiny/checkpoint

The texts are those of Phi-3 tiny, the tokenizers smaller. LongRoPE switches from its short to its long factors
at 64 tokens, and the training rows are short and long of that, so that a member speaks on both sides of the switch.
Seeded and deterministic, as `train.py` is; a few minutes on one core.
"""

import argparse
import copy
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import corpus
import member_card
from batches import Batches, Shape
from evaluate import evaluate
from tokenizer import PHI_3, PHI_4_MINI, Form, train_tokenizer, write_json
from train import ARCHITECTURE, RECORD, SEED, config, save, train, versions

STEPS = 400
POSITIONS, SWITCH = 512, 64
THREADS = 1  # matrices so small gain nothing from more
SCHEDULE = (Shape(16, 64, 0.9), Shape(16, 64, 0.8), Shape(5, 192, 0.75), Shape(2, 512, 0.5))


def rising(count: int, last: float, power: float) -> list[float]:
    """`count` rotary factors from 1 to `last`, rising slowly at first where `power` is above 1."""
    steps = np.linspace(0.0, 1.0, count) ** power
    return [round(float(factor), 4) for factor in last**steps]


def longrope(short: Sequence[float], long: Sequence[float]) -> dict[str, Any]:
    """The `rope_scaling` of config.json, in the words of the real checkpoints."""
    return {"long_factor": list(long), "short_factor": list(short), "type": "longrope"}


class Member(NamedTuple):
    """A checkpoint to be trained: what of config.json is its own, how it writes chats, and what it is like."""

    architecture: Mapping[str, Any]
    form: Form
    like: str


_SHARED = {
    "max_position_embeddings": POSITIONS,
    "original_max_position_embeddings": SWITCH,
    "sliding_window": 2 * POSITIONS,  # never in effect, as the real models' 262144 is not
}
MEMBERS = {
    "phi-3.5-mini-tiny": Member(
        {
            **_SHARED,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_attention_heads": 4,
            "num_key_value_heads": 4,
            "rope_scaling": longrope(rising(16, 2.8, 0.6), rising(16, 16.0, 1.5)),
            "vocab_size": 480,
        },
        PHI_3._replace(vocabulary=480, positions=POSITIONS),
        "Phi-3.5-mini's and Phi-3-mini-128k's, plain multi-head attention, LongRoPE with two rising sets of factors",
    ),
    "phi-4-mini-tiny": Member(
        {
            **_SHARED,
            "hidden_size": 192,
            "intermediate_size": 256,
            # ONNX Runtime rotates multiples of 16 components: three quarters of 64, as the real model's of 128.
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "partial_rotary_factor": 0.75,
            "rope_scaling": longrope([1.0] * 24, rising(24, 8.0, 1.0)),
            "tie_word_embeddings": True,
            "vocab_size": 768,
        },
        PHI_4_MINI._replace(vocabulary=768, positions=POSITIONS),
        "Phi-4-mini's, three query heads to a key and value head, a quarter of each head not rotated, tied embeddings",
    ),
}


def main() -> None:
    """Build the corpus, train tokenizer and model of one member, save and measure them."""
    parser = argparse.ArgumentParser(description="Train a bundled member of the Phi-3 family.")
    parser.add_argument("member", choices=sorted(MEMBERS))
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    options = parser.parse_args()
    started = time.monotonic()
    member = MEMBERS[options.member]
    texts = corpus.build()
    tokenizer = train_tokenizer(texts.train, member.form)
    settings = config(tokenizer, {**ARCHITECTURE, **member.architecture})
    batches = Batches(texts.train, tokenizer, SEED, member.form, SCHEDULE)
    # transformers writes into the rotary settings that it is given
    model, tokens = train(copy.deepcopy(settings), batches, options.steps, THREADS)
    save(model, settings, tokenizer, options.out, member.form)
    record: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "corpus": {"sha256": texts.sha256, "sources": dict(texts.hashes), "tokens": tokens},
        "steps": options.steps,
        "seconds": round(time.monotonic() - started),
        "versions": versions(),
        "ends": member.form.ends,
        **evaluate(options.out, texts.held_out, member.form),
    }
    write_json(options.out / RECORD, record)
    member_card.write(options.out, options.member, member.like, settings, record)
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
