"""What the finished checkpoint can do: held-out loss, margins, sample answers."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import Split
from tokenizer import PHI_3, Form, render

CONTEXT = 512  # tokens; texts longer than this are cut into pieces
SAMPLES = (
    ("You are a helpful AI assistant.", "Can you introduce yourself?"),
    (None, "What is the capital of Hungary?"),
    (None, "What is 7 + 5?"),
    (None, "Count from 3 to 9."),
    (None, "Write a JSON object with the name Anna and the age 31."),
    (None, "Write a Python function that adds two numbers."),
    (None, "Szia! Bemutatkoznál?"),
    (None, "Welche Farbe hat der Himmel?"),
)


def evaluate(folder: Path, held_out: Split, form: Form = PHI_3) -> dict[str, Any]:
    """Load the saved checkpoint in FP32 and measure it on the held-out documents."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    documents = {name: list(texts) for name, texts in held_out.texts.items()}
    documents["chat"] = [render(item, form) for item in held_out.chat]
    losses, margins = {}, []
    for name, texts in documents.items():
        pieces = [_measure(model, piece) for piece in _pieces(tokenizer, texts)]
        if pieces:
            losses[name] = torch.cat([loss for loss, _ in pieces])
            margins += [margin for _, margin in pieces]
    losses["all"] = torch.cat(list(losses.values()))
    return {
        "held_out": {name: _summary(values) for name, values in losses.items()},
        "margins": _margins(torch.cat(margins)),
        "samples": [_sample(model, tokenizer, *sample) for sample in SAMPLES],
    }


def _pieces(tokenizer: Any, texts: Iterable[str]) -> Iterator[torch.Tensor]:
    for text in texts:
        tokens = tokenizer.encode(text, add_special_tokens=False, verbose=False)
        for start in range(0, len(tokens) - 1, CONTEXT):
            yield torch.tensor(tokens[start : start + CONTEXT])


def _measure(model: Any, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of every token but the first, and the margin of the best token over the second."""
    with torch.no_grad():
        logits = model(input_ids=tokens[None]).logits[0, :-1].double()
    loss = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
    best = logits.topk(2, dim=-1).values
    return loss, best[:, 0] - best[:, 1]


def _summary(losses: torch.Tensor) -> dict[str, float]:
    mean = losses.mean().item()
    return {
        "tokens": len(losses),
        "loss": round(mean, 4),
        "perplexity": round(math.exp(mean), 3),
    }


def _margins(margins: torch.Tensor) -> dict[str, float]:
    """How the gaps between the best and the second-best logit are spread, in nat."""
    quantiles = margins.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=margins.dtype)).tolist()
    return {
        "below 0.1": round((margins < 0.1).double().mean().item(), 4),
        "above 5": round((margins > 5).double().mean().item(), 4),
        **{name: round(value, 3) for name, value in zip(("p10", "p50", "p90"), quantiles, strict=True)},
    }


def _sample(model: Any, tokenizer: Any, system: str | None, question: str) -> dict[str, str]:
    """The greedy answer to one question, special tokens and all."""
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": question})
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    # transformers 5.5.4 loses the cache past LongRoPE's original length; a whole pass for each token has none to lose.
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=80, do_sample=False, use_cache=False
    )
    answer = tokenizer.decode(tokens[0, prompt.shape[1] :])
    return {"system": system or "", "question": question, "answer": answer}
