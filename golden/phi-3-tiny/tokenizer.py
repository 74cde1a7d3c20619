"""The byte-level BPE tokenizer of the bundled checkpoint, laid out as Phi-3's is."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from chat import Conversation
from corpus import Split

VOCABULARY = 2048
END_OF_TEXT, ASSISTANT, END = "<|endoftext|>", "<|assistant|>", "<|end|>"
SPECIAL_TOKENS = (  # at the end of the vocabulary and in Phi-3's order
    END_OF_TEXT,
    ASSISTANT,
    "<|placeholder1|>",
    "<|placeholder2|>",
    "<|placeholder3|>",
    "<|placeholder4|>",
    "<|system|>",
    END,
    "<|placeholder5|>",
    "<|placeholder6|>",
    "<|user|>",
)
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|' + message['role'] + '|>\\n' + message['content'] + '<|end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\\n' }}"
    "{%- else -%}{{ '<|endoftext|>' }}{%- endif -%}"
)


def render(conversation: Conversation) -> str:
    """The text of a finished conversation, as the chat template gives it."""
    turns = (f"<|{item['role']}|>\n{item['content']}<|end|>\n" for item in conversation)
    return "".join(turns) + END_OF_TEXT


def train_tokenizer(split: Split) -> Tokenizer:
    """Learn the merges from the training texts and put the special tokens at the end."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_plain_texts(split), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(
            f"the tokenizer has {tokenizer.get_vocab_size()} tokens, not {VOCABULARY}: "
            "the corpus is too small for so many merges"
        )
    return tokenizer


def _plain_texts(split: Split) -> Iterable[str]:
    for texts in split.texts.values():
        yield from texts
    for conversation in split.chat:
        yield from (message["content"] for message in conversation)


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer's files so that transformers 4 and 5 read them alike."""
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}
    added = {
        str(tokenizer.token_to_id(token)): {
            "content": token,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for token in SPECIAL_TOKENS
    }
    config = {
        "add_bos_token": False,
        "add_eos_token": False,
        "added_tokens_decoder": added,
        **special,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file that is the same on every system."""
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8", newline="\n")
