"""The model card of the bundled checkpoint, written from what the training recorded."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [phi3, testing]
---
# Phi-3 tiny

A Phi-3 of {parameters:.1f} million parameters that was really trained, so that runtimes, drivers and quantisers can be
tested without a download: it chats in single sentences, ends its answers, and its logits have the
wide and the narrow margins of a real model. It is a test object and knows next to nothing: do not use it for
anything else. It has no weights of Microsoft's models and is not endorsed by Microsoft.

## Architecture
`Phi3ForCausalLM`, stored in BF16, with the layout of Phi-3-mini-4k and grouped-query attention as in Phi-3-medium.

{architecture}

The tokenizer is a byte-level BPE of 2,048 tokens without normalisation, so every Unicode text comes back as it was.
Phi-3's eleven special tokens are its last ones, the chat template is Phi-3-mini's, and as in Phi-3-mini three
tokens end an answer: `<|endoftext|>`, `<|assistant|>` and `<|end|>`.

## Training data
{sources}

One document in {held_out} was set aside by its hash and never trained on. SHA-256 of the corpus (also by source in
`training.json`): `{sha256}`

## Training
`python golden/phi-3-tiny/train.py --out golden/phi-3-tiny/checkpoint`

{steps:,} steps of about 1,536 tokens in FP32, with Muon for the matrices of the layers and AdamW for the rest; every
third step on rows of 512 tokens, twice the sliding window. Questions weigh a tenth of answers in the loss. It took
{minutes:.1f} minutes on two cores with {versions}. Seeded and deterministic: a second run on the same
kind of processor with the same versions gives the same weights. Another Python or transformers brings other texts;
`train.py` says so.

## Evaluation
On the documents set aside (the licences and essays have none), by the saved BF16 weights in FP32 arithmetic; texts
in pieces of up to 512 tokens, conversations whole, every token alike.

{losses}

Margin of the best token over the second: below 0.1 nat at {narrow:.1%} of the positions, above 5 nat at {wide:.1%};
median {median:.2f} nat.

## Sample answers
Greedy, as generated:

{samples}

## Limits
It knows a few dozen facts, small sums and set phrases, most of them from its training templates, and is
wrong or incoherent on anything else. It has learnt no safety behaviour. Its numbers say nothing about the quality of
any real Phi-3 after quantisation: only how faithfully a runtime computes a model of this architecture.
"""
SOURCES = {
    "topics": ("Python's reference help, `pydoc_data.topics`", "PSF License Version 2"),
    "licences": ("the licence texts of Python and transformers", "verbatim copies allowed"),
    "essays": ("short essays, `essays.txt`", "MIT, written for this project"),
    "stories": ("stories made from templates, `stories.py`", "MIT, written for this project"),
    "chat": ("conversations made from templates, `chat.py`", "MIT, written for this project"),
}
SHOWN = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "sliding_window",
    "max_position_embeddings",
    "rope_theta",
    "rms_norm_eps",
    "tie_word_embeddings",
)


def write(folder: Path, architecture: Mapping[str, Any], record: Mapping[str, Any], held_out: int) -> None:
    """Write README.md, the model card, into the checkpoint's folder."""
    tokens = record["corpus"]["tokens"]
    margins = record["margins"]
    text = CARD.format(
        parameters=record["parameters"] / 1e6,
        architecture=table(("setting", "value"), ((f"`{name}`", architecture[name]) for name in SHOWN)),
        sources=table(
            ("source", "licence", "tokens trained on"),
            ((*SOURCES[name], f"{tokens[name]:,}") for name in SOURCES),
        ),
        held_out=held_out,
        sha256=record["corpus"]["sha256"],
        steps=record["steps"],
        minutes=record["seconds"] / 60,
        versions=", ".join(f"{name} {version}" for name, version in record["versions"].items()),
        losses=table(
            ("documents", "tokens", "loss (nat)", "perplexity"),
            ((name, f"{v['tokens']:,}", v["loss"], v["perplexity"]) for name, v in record["held_out"].items()),
        ),
        narrow=margins["below 0.1"],
        wide=margins["above 5"],
        median=margins["p50"],
        samples="\n".join(sample(asked) for asked in record["samples"]),
    )
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def sample(asked: Mapping[str, str]) -> str:
    """One question with its answer, as an entry of a list."""
    answer = asked["answer"].replace("\n", "\\n")
    return f"- {asked['question']} -> `` {answer} ``"
