"""The model card of a bundled member of the Phi-3 family, written from what its training recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from card import SHOWN, sample, table

CARD = """\
---
license: mit
library_name: transformers
pipeline_tag: text-generation
tags: [phi3, testing]
---
# {name}

A Phi-3 of {parameters:.2f} million parameters that was really trained, with the configuration of a real model at
reduced size: {like}.
It is a test object and knows next to nothing: do not use it for anything else. It has no weights of Microsoft's models
and is not endorsed by Microsoft.

## Architecture
`Phi3ForCausalLM`, stored in BF16. Texts of up to {switch} tokens are rotated by LongRoPE's short factors, longer ones
by its long ones (the real models switch at 4,096); cosines and sines are multiplied with
sqrt(1 + ln({context} / {switch}) / ln({switch})). The window is longer than the context and never in effect.

{architecture}

Short factors: {short}

Long factors: {long}

The tokenizer is a byte-level BPE with the real model's special tokens as its last ones and the real model's chat
template. These tokens end an answer: {ends}.

## Training
`python golden/phi-3-tiny/family.py {name} --out golden/{name}/checkpoint`

On the texts of Phi-3 tiny, whose card names sources and licences; SHA-256 of the corpus:
`{sha256}`.
{steps:,} steps in FP32 on rows of 64, 192 and 512 tokens. It took {minutes:.1f} minutes on one core with
{versions}. Seeded and deterministic.

## Evaluation
On the documents set aside, by the saved BF16 weights in FP32 arithmetic; texts in pieces of up to 512 tokens,
conversations whole, every token alike.

{losses}

Margin of the best token over the second: below 0.1 nat at {narrow:.1%} of the positions, above 5 nat at {wide:.1%};
median {median:.2f} nat.

## Sample answers
Greedy, each token by a pass over the whole text, so that an answer that passes the switch is computed anew there:

{samples}
"""
MORE = ("original_max_position_embeddings", "partial_rotary_factor")


def write(folder: Path, name: str, like: str, settings: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write README.md, the model card, into the checkpoint's folder."""
    rope, margins = settings["rope_scaling"], record["margins"]
    shown = [(f"`{key}`", settings[key]) for key in (*SHOWN, *MORE) if key in settings]
    text = CARD.format(
        name=name,
        like=like,
        parameters=record["parameters"] / 1e6,
        switch=settings["original_max_position_embeddings"],
        context=settings["max_position_embeddings"],
        architecture=table(("setting", "value"), shown),
        short=", ".join(map(str, rope["short_factor"])),
        long=", ".join(map(str, rope["long_factor"])),
        ends=", ".join(f"`{token}`" for token in record["ends"]),
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
        samples="\n".join(map(sample, record["samples"])),
    )
    (folder / "README.md").write_text(text, encoding="utf-8", newline="\n")
