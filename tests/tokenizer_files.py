"""Tokenizers of the kinds that Phi-3's family has, small, made on the spot: real ones cannot be bundled.

`sentencepiece` is laid out as Phi-3-mini's tokenizer.json, made from Llama's SentencePiece model: a space put before
the text, bytes for characters that it lacks, added tokens that swallow the white space after them. `split` is laid out
as Phi-4's and Phi-4-mini's: byte-level, split by a long regular expression.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

VOCABULARY = 900
_LEARNED = 600
_TEXTS = (
    "The quick brown fox jumps over the lazy dog. It's what they'll do, isn't it? We've seen 12 of 345.",
    "In the beginning there were tokens, and tokens were made of characters, and characters were made of bytes.",
    "caf\u00e9 na\u00efve Stra\u00dfe \u4e2d\u6587 \u041f\u0440\u0438\u0432\u0435\u0442 word word word",
    "def f(x):\n    return [x + 1, x * 2]\n\n\nif __name__ == '__main__':\n    print(f(3))\n",
)
_ADDED = ("<|endoftext|>", "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>")
# Phi-4-mini's (o200k's) and Phi-4's (cl100k's) are of this form; shortened.
_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Phi-3-mini's, word for word but for its order of branches.
_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}"
    "{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)


def sentencepiece(folder: Path, *, begun: bool = False) -> None:
    """Write the files of a tokenizer of Phi-3-mini's kind."""
    learned = Tokenizer(models.BPE())
    # Llama's was learned so that letters, digits and signs are never in one token, and every digit is one; ends of
    # lines are bytes.
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "removed"),
            pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always"),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    vocabulary, merges = _learn(learned, [], _LEARNED - 259)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    ids = {token: index for index, token in enumerate([*first, *vocabulary])}
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in ("<unk>", "<s>")])
    tokenizer.add_tokens([AddedToken("</s>", rstrip=True, normalized=False)])
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False, rstrip=name != _ADDED[0]) for name in _ADDED]
    )
    template, known = ("<s> $A", [("<s>", tokenizer.token_to_id("<s>"))]) if begun else ("$A", [])
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=known)
    names = {"bos_token": "<s>", "unk_token": "<unk>"}
    _write(tokenizer, folder, "LlamaTokenizer", **names, add_bos_token=begun, legacy=False)


def split(folder: Path) -> None:
    """Write the files of a tokenizer of Phi-4's kind."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_regex(_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    _learn(tokenizer, pre_tokenizers.ByteLevel.alphabet(), _LEARNED)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False, rstrip=True) for name in _ADDED])
    _write(tokenizer, folder, "GPT2Tokenizer", bos_token=_ADDED[0])


def sentencepiece_begun(folder: Path) -> None:
    """As `sentencepiece`, with `<s>` put before every text, as Phi-3-mini's first release did."""
    sentencepiece(folder, begun=True)


KINDS: dict[str, Callable[[Path], None]] = {
    "sentencepiece": sentencepiece,
    "sentencepiece-begun": sentencepiece_begun,
    "split": split,
}


def _regex(pattern: str) -> Any:
    from tokenizers import Regex

    return Regex(pattern)


def _learn(tokenizer: Tokenizer, alphabet: list[str], size: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Learn merges from a few sentences; the tokens in their order, and the merges."""
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=sorted(alphabet), show_progress=False)
    tokenizer.train_from_iterator(_TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    return sorted(vocabulary, key=vocabulary.__getitem__), [tuple(pair) for pair in model["merges"]]


def _write(tokenizer: Tokenizer, folder: Path, name: str, **settings: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = tokenizer.get_added_tokens_decoder().items()
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    config = {
        "added_tokens_decoder": {str(index): {key: getattr(token, key) for key in keys} for index, token in added},
        "add_bos_token": False,
        "add_eos_token": False,
        "chat_template": _TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": _ADDED[0],
        "pad_token": _ADDED[0],
        "model_max_length": 4096,
        "tokenizer_class": name,
        **settings,
    }
    # transformers chooses the tokenizer's class by it.
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3", "architectures": ["Phi3ForCausalLM"]}))
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
