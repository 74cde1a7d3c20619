"""Train the bundled checkpoint, a Phi-3 of 5.8 million parameters, from scratch.

    python golden/phi-3-tiny/train.py --out golden/phi-3-tiny/checkpoint

Seeded and deterministic: the same packages on the same kind of processor give the same weights.
Needs torch, transformers, tokenizers and safetensors; takes about ten minutes on two cores.
"""

import argparse
import json
import platform
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, Phi3Config

import card
import corpus
from batches import Batches
from evaluate import evaluate
from tokenizer import END_OF_TEXT, PHI_3, VOCABULARY, Form, save_tokenizer, train_tokenizer, write_json

HERE = Path(__file__).parent
RECORD = "training.json"
SEED = 3
STEPS = 800
WARM_UP = 30
MATRIX_LEARNING_RATE = 8e-3
TABLE_LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
THREADS = 2  # part of the recipe: sums depend on it
ARCHITECTURE: Mapping[str, Any] = {
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "dtype": "bfloat16",
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.06,
    "intermediate_size": 768,
    "max_position_embeddings": 1024,
    "model_type": "phi3",
    "num_attention_heads": 8,
    "num_hidden_layers": 6,
    "num_key_value_heads": 4,
    "original_max_position_embeddings": 1024,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 10000.0,
    "sliding_window": 256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "vocab_size": VOCABULARY,
}


def main() -> None:
    """Build the corpus, train the tokenizer and the model, save and measure them."""
    parser = argparse.ArgumentParser(description="Train the bundled Phi-3 checkpoint.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (default: %(default)s)")
    options = parser.parse_args()
    started = time.monotonic()
    texts = corpus.build()
    report_corpus(texts)
    tokenizer = train_tokenizer(texts.train)
    settings = config(tokenizer, ARCHITECTURE)
    model, tokens = train(settings, Batches(texts.train, tokenizer, SEED), options.steps)
    save(model, settings, tokenizer, options.out)
    record: dict[str, Any] = {
        "parameters": model.num_parameters(),
        "corpus": {"sha256": texts.sha256, "sources": dict(texts.hashes), "tokens": tokens},
        "steps": options.steps,
        "seconds": round(time.monotonic() - started),
        "versions": versions(),
        **evaluate(options.out, texts.held_out),
    }
    write_json(options.out / RECORD, record)
    card.write(options.out, ARCHITECTURE, record, corpus.HELD_OUT)
    print(json.dumps(record, indent=2))


def report_corpus(texts: corpus.Corpus) -> None:
    """Print the corpus hash, and say so where it is not the one the bundled checkpoint was trained on."""
    print(f"corpus sha256 {texts.sha256}")
    record = HERE / "checkpoint" / RECORD
    if not record.is_file():
        return
    known = json.loads(record.read_text(encoding="utf-8"))["corpus"]
    if known["sha256"] == texts.sha256:
        print("the corpus is the one that the bundled checkpoint was trained on")
        return
    differing = [name for name, value in texts.hashes.items() if known["sources"].get(name) != value]
    print(
        f"WARNING: the corpus differs from the bundled checkpoint's in: {', '.join(differing)}.\n"
        "The checkpoint will differ too. 'topics' and 'licences' come with Python and transformers: "
        f"{RECORD} in the bundled checkpoint names the versions to use."
    )


def config(tokenizer: Tokenizer, architecture: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    return {**architecture, "bos_token_id": end, "eos_token_id": end, "pad_token_id": end}


def train(settings: dict[str, Any], batches: Batches, steps: int, threads: int = THREADS) -> tuple[Any, dict[str, int]]:
    """Train in FP32 with a short warm-up and a cosine to zero."""
    torch.manual_seed(SEED)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    factory: Any = AutoModelForCausalLM
    # A padding token has an embedding of zeros that is never trained, but here it also ends documents.
    shape = Phi3Config(**{**settings, "pad_token_id": None})
    model = factory.from_config(shape, attn_implementation="sdpa", dtype=torch.float32)
    model.train()
    optimizers = make_optimizers(model)
    schedules = [transformers.get_cosine_schedule_with_warmup(item, WARM_UP, steps) for item in optimizers]
    started, recent = time.monotonic(), 0.0
    for step in range(steps):
        tokens, weights = batches.batch(step)
        loss = weighted_loss(model(input_ids=tokens, use_cache=False).logits, tokens, weights)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for item in (*optimizers, *schedules):
            item.step()
        model.zero_grad()
        recent += loss.item()
        if (step + 1) % 50 == 0:
            seconds = time.monotonic() - started
            print(f"step {step + 1}/{steps}  loss {recent / 50:.3f}  {seconds:.0f} s", flush=True)
            recent = 0.0
    return model.eval(), batches.tokens


def weighted_loss(logits: torch.Tensor, tokens: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The mean cross-entropy of every next token, by weight."""
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:], reduction="none")
    return (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()


def make_optimizers(model: torch.nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embedding, LM head and norms."""
    named = dict(model.named_parameters())
    matrices = [item for name, item in named.items() if item.ndim == 2 and ".layers." in name]
    tables = [item for name, item in named.items() if item.ndim == 2 and ".layers." not in name]
    norms = [item for item in named.values() if item.ndim == 1]
    groups = [{"params": tables, "weight_decay": WEIGHT_DECAY}, {"params": norms, "weight_decay": 0.0}]
    return [
        torch.optim.Muon(matrices, lr=MATRIX_LEARNING_RATE, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=TABLE_LEARNING_RATE, betas=(0.9, 0.95), fused=True),
    ]


def save(model: Any, settings: dict[str, Any], tokenizer: Tokenizer, folder: Path, form: Form = PHI_3) -> None:
    """Write the checkpoint in BF16, with files that every transformers from 4.47 on reads; a tied LM head once."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    if settings["tie_word_embeddings"]:
        del tensors["lm_head.weight"]
    path = folder / "model.safetensors"
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    path.chmod(0o644)  # safetensors writes for its owner only
    end = settings["eos_token_id"]
    generation = {
        "bos_token_id": end,
        "eos_token_id": [tokenizer.token_to_id(token) for token in form.ends],
        "pad_token_id": end,
    }
    write_json(folder / "config.json", settings)
    write_json(folder / "generation_config.json", generation)
    save_tokenizer(tokenizer, folder, form)


def versions() -> dict[str, str]:
    """What the result depends on besides the texts."""
    modules = (torch, transformers, tokenizers, safetensors)
    return {
        "python": platform.python_version(),
        **{module.__name__: module.__version__.split("+")[0] for module in modules},
    }


if __name__ == "__main__":
    main()
